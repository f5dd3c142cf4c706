using System.Collections.Concurrent;

namespace PoolingInvoker;

/// <summary>
/// What a pool has done so far, as its metrics count it. It outlives the pool: a counter that goes down says nothing.
/// </summary>
internal sealed class PoolTally
{
    private readonly ConcurrentDictionary<(ChannelPoolEventKind Kind, ChannelPoolEventReason Reason), long> _events =
        new(concurrencyLevel: 1, capacity: 7);
    private long _retries; // without hedges, for both to go up only
    private long _hedges;
    private long _leaks;
    private long _affinityCalls;
    private long _affinityMoves;

    public long AffinityCalls => Interlocked.Read(ref _affinityCalls); // leases for calls with a key
    public long AffinityMoves => Interlocked.Read(ref _affinityMoves); // how many of them are on another channel than the first choice of the key

    public IReadOnlyDictionary<(ChannelPoolEventKind Kind, ChannelPoolEventReason Reason), long> CopyEvents() => _events.ToDictionary();

    /// <summary>As that of a pool that has no channels any more.</summary>
    public PoolReading ToReading() => new(AddTo(default), [], CopyEvents());

    public ChannelPoolStatistics AddTo(ChannelPoolStatistics statistics)
    {
        var hedges = Interlocked.Read(ref _hedges);
        return statistics with
        {
            AffinityCalls = AffinityCalls,
            AffinityMoves = AffinityMoves,
            Retries = Interlocked.Read(ref _retries) + hedges,
            Hedges = hedges,
            LeaksReclaimed = Interlocked.Read(ref _leaks),
        };
    }

    public void Count(ChannelPoolEventKind kind, ChannelPoolEventReason reason) => Add((kind, reason), 1);
    public void CountRetry(bool isHedge) => Interlocked.Increment(ref isHedge ? ref _hedges : ref _retries);
    public void CountReclaimedLeak() => Interlocked.Increment(ref _leaks);
    public void CountAffinity(bool isMove)
    {
        Interlocked.Increment(ref _affinityCalls);
        Interlocked.Add(ref _affinityMoves, isMove ? 1 : 0);
    }

    /// <summary>Adds what another one has.</summary>
    public void Add(PoolTally other)
    {
        foreach (var (what, count) in other._events)
        {
            Add(what, count);
        }

        var counted = other.AddTo(default);
        Interlocked.Add(ref _retries, counted.Retries - counted.Hedges);
        Interlocked.Add(ref _hedges, counted.Hedges);
        Interlocked.Add(ref _leaks, counted.LeaksReclaimed);
        Interlocked.Add(ref _affinityCalls, counted.AffinityCalls);
        Interlocked.Add(ref _affinityMoves, counted.AffinityMoves);
    }

    private void Add((ChannelPoolEventKind Kind, ChannelPoolEventReason Reason) what, long count) => _events.AddOrUpdate(what, count, (_, before) => before + count);
}

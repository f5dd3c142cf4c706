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

    public long Retries => Interlocked.Read(ref _retries);
    public long Hedges => Interlocked.Read(ref _hedges);
    public long Leaks => Interlocked.Read(ref _leaks);
    public long AffinityCalls => Interlocked.Read(ref _affinityCalls); // leases for calls with a key
    public long AffinityMoves => Interlocked.Read(ref _affinityMoves); // how many of them are on another channel than the first choice of the key

    public IReadOnlyDictionary<(ChannelPoolEventKind Kind, ChannelPoolEventReason Reason), long> CopyEvents() => _events.ToDictionary();

    public PoolReading ToReading() => AddTo(new PoolReading(default, [], CopyEvents()));
    public PoolReading AddTo(PoolReading reading) => reading with
    {
        Retries = Retries,
        Hedges = Hedges,
        Leaks = Leaks,
        AffinityMoves = AffinityMoves,
        AffinityCalls = AffinityCalls,
    };

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

        Interlocked.Add(ref _retries, other.Retries);
        Interlocked.Add(ref _hedges, other.Hedges);
        Interlocked.Add(ref _leaks, other.Leaks);
        Interlocked.Add(ref _affinityCalls, other.AffinityCalls);
        Interlocked.Add(ref _affinityMoves, other.AffinityMoves);
    }

    private void Add((ChannelPoolEventKind Kind, ChannelPoolEventReason Reason) what, long count) => _events.AddOrUpdate(what, count, (_, before) => before + count);
}

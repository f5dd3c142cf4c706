// Who watches the pool from outside, by what everybody can see: who got which channel when, what became of the channels, and the
// statistics. It knows the laws and nothing of how the pool keeps them, so that it finds in a release build what it finds in a debug one.
//
//  * Law 1: when all leases have come back the pool counts none, and there is room for max times capacity again, not for one more.
//  * Law 2: there are never more leases on a channel than its capacity.
//  * Law 3: an acquire does not wait for ever (that shows as a hang), and nobody is left in line.
//  * Law 4: a channel that was replaced or closed is not leased by who comes later; a channel is not disposed while it is leased; in the
//    end all channels are disposed.
using System.Collections.Concurrent;
using Grpc.Net.Client;

namespace PoolingInvoker.Interleavings;

internal sealed class Witness
{
    private readonly ConcurrentDictionary<GrpcChannel, int> _leases = new();
    private readonly ConcurrentDictionary<GrpcChannel, long> _gone = new(); // since when a channel takes no leases
    private readonly ChannelPoolOptions _options;
    private long _moment;
    private volatile bool _isClosing;
    private volatile string? _broken;

    public Witness(ChannelPoolOptions options, EndpointList? endpoints = null, Random? random = null)
    {
        _options = options;
        options.LoggerFactory = new ChannelDiary(Log);
        Policy.OnCreate = () => ForeignCode("Create");
        Policy.OnDispose = () => ForeignCode("Dispose");
        Pool = new ChannelPool(Policy, options.ValidatedCopy(), random ?? Random.Shared, endpoints);
    }

    public ProbePolicy Policy { get; } = new();

    public ChannelPool Pool { get; }

    /// <summary>Gets or sets what is told where code that is not the pool's runs.</summary>
    public Action<string> ForeignCode { get; set; } = static _ => { };

    /// <summary>Gets or sets a value indicating whether the pool is being disposed, which may cut what is in flight.</summary>
    public bool IsClosing
    {
        get => _isClosing;
        set => _isClosing = value;
    }

    private static int Capacity(ChannelPoolOptions options) => options.MaxConcurrentCallsPerChannel!.Value;

    /// <summary>Takes a lease, and blocks where that has to wait.</summary>
    public ChannelLease Acquire(CancellationToken cancellationToken = default)
    {
        var since = Interlocked.Read(ref _moment);
        return Taken(Pool.AcquireAsync(cancellationToken).AsTask().GetAwaiter().GetResult(), since);
    }

    public async Task<ChannelLease> AcquireAsync(CancellationToken cancellationToken)
    {
        var since = Interlocked.Read(ref _moment);
        return Taken(await Pool.AcquireAsync(cancellationToken).ConfigureAwait(false), since);
    }

    public bool TryAcquire(bool fast)
    {
        var since = Interlocked.Read(ref _moment);
        if (fast ? !Pool.Picker.TryLease(new LeaseRequest(LeaseKind.Call), out var lease) : !Pool.TryAcquire(out lease))
        {
            return false;
        }

        Return(Taken(lease!, since));
        return true;
    }

    public void Return(ChannelLease lease, LeaseOutcome outcome = LeaseOutcome.Unknown)
    {
        Leaves(lease);
        lease.Return(outcome);
    }

    /// <summary>The lease will be given back from here on.</summary>
    public void Leaves(ChannelLease lease)
    {
        var channel = lease.Channel;
        Require(IsClosing || !Policy.IsDisposed(channel), "Law 4: a channel was disposed while it was leased.");
        _leases.AddOrUpdate(channel, -1, static (_, leases) => leases - 1);
    }

    /// <summary>Everybody has ended, and all leases have come back.</summary>
    public void CheckTheEnd()
    {
        Policy.OnCreate = static () => { };
        Policy.OnReturn = static _ => true;
        if (!IsClosing)
        {
            CheckQuiet();
            IsClosing = true;
            Pool.Dispose();
        }

        CheckDiary();
        var statistics = Pool.GetStatistics();
        Require(
            statistics is { Channels: 0, DrainingChannels: 0, CallsInFlight: 0, CallsWaiting: 0 },
            $"Law 1: a disposed pool, to which all came back, has {Describe(statistics)}.");
        CheckAllDisposed();
    }

    /// <summary>Nobody uses the pool in this moment: all that it counts can be told beforehand.</summary>
    public void CheckQuiet()
    {
        CheckDiary();
        var statistics = Pool.GetStatistics();
        var open = Policy.Made.Count(channel => !Policy.IsDisposed(channel));
        Require(statistics.CallsInFlight == 0, $"Law 1: all leases have come back, and the pool has {Describe(statistics)}.");
        Require(statistics.CallsWaiting == 0, $"Law 3: nobody waits, and the pool has {Describe(statistics)}.");
        Require(statistics.DrainingChannels == 0, $"Law 4: nothing is leased, and the pool has {Describe(statistics)}.");
        Require(statistics.Channels <= _options.MaxPoolSize, $"Law 2: the pool has {Describe(statistics)}.");
        Require(statistics.IdleChannels == statistics.Channels, $"Law 1: all channels are idle, and the pool has {Describe(statistics)}.");
        Require(open == statistics.Channels, $"Law 4: {open} channels are open, and the pool has {Describe(statistics)}.");

        var room = _options.MaxPoolSize * Capacity(_options);
        var leases = new List<ChannelLease>();
        while (leases.Count <= room && Pool.TryAcquire(out var lease))
        {
            leases.Add(Taken(lease, Interlocked.Read(ref _moment)));
        }

        Require(leases.Count == room, $"Laws 1 and 2: there is room for {leases.Count} leases, not for {room}.");
        leases.ForEach(lease => Return(lease));
    }

    public void CheckAllDisposed()
    {
        var open = Policy.Made.Count(channel => !Policy.IsDisposed(channel));
        Require(open == 0, $"Law 4: the pool is closed, and {open} of its channels are not disposed.");
    }

    private static void Require(bool condition, string law)
    {
        if (!condition)
        {
            throw new LawBrokenException(law);
        }
    }

    private static string Describe(ChannelPoolStatistics statistics) => FormattableString.Invariant(
        $"channels {statistics.Channels}, idle {statistics.IdleChannels}, draining {statistics.DrainingChannels}, ")
        + FormattableString.Invariant($"in flight {statistics.CallsInFlight}, waiting {statistics.CallsWaiting}");

    private ChannelLease Taken(ChannelLease lease, long since)
    {
        var channel = lease.Channel;
        var leases = _leases.AddOrUpdate(channel, 1, static (_, leases) => leases + 1);
        Require(leases <= Capacity(_options), $"Law 2: {leases} leases are out on a channel that takes {Capacity(_options)}.");
        Require(
            !_gone.TryGetValue(channel, out var gone) || gone > since || IsClosing,
            "Law 4: a channel that had been replaced or closed before was leased again.");
        return lease;
    }

    // What a logger throws is lost, so it is kept.
    private void Log(string entry, PooledChannel? channel, PooledChannel? replaced)
    {
        ForeignCode(entry);
        if (entry is "MaintenanceFailed" or "CloseFailed" or "PolicyThrew")
        {
            _broken ??= $"The pool logs {entry}.";
        }

        if (entry == "ChannelClosed" && !IsClosing && _leases.GetValueOrDefault(channel!.Channel) is > 0 and var leases)
        {
            _broken ??= $"Law 4: a channel was closed while {leases} leases were out on it.";
        }

        if ((entry == "ChannelClosed" ? channel : replaced) is { } gone)
        {
            _gone.TryAdd(gone.Channel, Interlocked.Increment(ref _moment));
        }
    }

    private void CheckDiary() => Require(_broken is null, _broken!);
}

using System.Collections.Concurrent;
using System.Diagnostics;
using System.Diagnostics.Metrics;

namespace PoolingInvoker;

/// <summary>What a pool measures. Where nobody listens that is a look at whether somebody does.</summary>
internal sealed class PoolMetrics
{
    private readonly object _lock = new();
    private readonly PoolInstruments _instruments;
    private readonly TimeProvider _time;
    private ConcurrentDictionary<object, long>? _taken; // when the leases that are out were taken, once somebody has asked
    private PoolReading? _reading;
    private long _readAt;
    private long _readBy; // a bit for each instrument that the reading was for

    public PoolMetrics(IMeterFactory? factory, string name, string target, TimeProvider time)
    {
        _time = time;
        var (server, port) = ServerOf(target);
        Identity = new PoolIdentity(name, server, port);
        Tags = port is null
            ? [new("pool.name", name), new("server.address", server)]
            : [new("pool.name", name), new("server.address", server), new("server.port", port)];
        _instruments = PoolInstruments.Of(factory);
        _instruments.Add(this);
    }

    public PoolTally Tally { get; } = new();
    public PoolIdentity Identity { get; }
    public KeyValuePair<string, object?>[] Tags { get; } // these three
    public bool MeasuresCalls => _instruments.CallDuration.Enabled;
    public bool MeasuresWaits => _instruments.WaitTime.Enabled;

    public TimeSpan OneCollection { get; set; } = TimeSpan.FromSeconds(0.1); // it takes less than this

    /// <summary>Reads the pool in one locked section; null once it is closed.</summary>
    public Func<PoolReading?>? Read { get; set; }
    public Func<double?>? BudgetLeft { get; set; } // of the retries, from 0 to 1; null where they are not counted
    public Func<long>? ReplayBytes { get; set; }

    // Under the lock of the pool, as its reading is: what is read is of the same moment.
    public void Count(ChannelPoolEventKind kind, ChannelPoolEventReason reason) => Tally.Count(kind, reason);

    /// <summary>The reading for an instrument. Its next collection gets another one, and all instruments of one collection get the same.</summary>
    public PoolReading? ReadingFor(int instrument)
    {
        lock (_lock)
        {
            var bit = 1L << instrument;
            if ((_readBy & bit) != 0 || _reading is null || Stopwatch.GetElapsedTime(_readAt) > OneCollection)
            {
                _reading = Read?.Invoke() is { } reading ? reading with { ReplayBytes = ReplayBytes?.Invoke() ?? 0, BudgetLeft = BudgetLeft?.Invoke() } : null;
                (_readAt, _readBy) = (Stopwatch.GetTimestamp(), 0);
            }

            _readBy |= bit;
            return _reading;
        }
    }

    public void Waited(TimeSpan time) => Record(_instruments.WaitTime, time, Tags);

    public void Connected(TimeSpan time, string endpoint) => Record(_instruments.ConnectTime, time, [.. Tags, new("pool.endpoint", endpoint)]);

    public void CallEnded(TimeSpan time, params ReadOnlySpan<KeyValuePair<string, object?>> tags) => Record(_instruments.CallDuration, time, [.. Tags, .. tags]);

    /// <summary>Under the lock of the pool, where no clock is read.</summary>
    public void Taken(object lease, long now)
    {
        if (_instruments.UseTime.Enabled)
        {
            (_taken ??= [])[lease] = now;
        }
    }

    public void Returned(object lease)
    {
        if (Volatile.Read(ref _taken) is { } taken && taken.TryRemove(lease, out var since))
        {
            Record(_instruments.UseTime, _time.GetElapsedTime(since), Tags);
        }
    }

    // One host is taken apart. A list, or the name of a policy, is the address as it is.
    private static (string Server, int? Port) ServerOf(string target) =>
        target.LastIndexOf(':') is var colon and >= 0 && !target.Contains(',', StringComparison.Ordinal) && ushort.TryParse(target.AsSpan(colon + 1), out var port)
            ? (target[..colon].Trim('[', ']'), port)
            : (target, null);

    // What a listener throws is lost: it would cost a lease.
    private static void Record(Histogram<double> histogram, TimeSpan time, ReadOnlySpan<KeyValuePair<string, object?>> tags)
    {
        try
        {
            histogram.Record(time.TotalSeconds, tags);
        }
        catch
        {
        }
    }
}

/// <summary>A pool at one moment.</summary>
internal sealed record PoolReading(
    ChannelPoolStatistics Statistics,
    IReadOnlyList<PooledChannelSnapshot> Channels,
    IReadOnlyDictionary<(ChannelPoolEventKind Kind, ChannelPoolEventReason Reason), long> Events)
{
    public long ReplayBytes { get; init; }
    public double? BudgetLeft { get; init; }
}

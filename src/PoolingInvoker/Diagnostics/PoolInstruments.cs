using System.Collections.Concurrent;
using System.Diagnostics.Metrics;
using System.Reflection;
using System.Runtime.CompilerServices;
using Told = (long Value, string? First, string? Second);

namespace PoolingInvoker;

/// <summary>
/// The instruments of one meter, which all pools that report to it share. Counts and states are asked for when they are collected; what takes
/// time is recorded as it ends, where somebody listens. docs/telemetry.md lists them all.
/// </summary>
internal sealed class PoolInstruments
{
    public const string Name = "PoolingInvoker"; // of the meter, and of the activity source

    private const string Prefix = "grpc.client.channel_pool.";
    private const string Reason = "pool.reason";

    private static readonly ConditionalWeakTable<Meter, PoolInstruments> OfMeter = [];
    private static readonly Lazy<Meter> Shared = new(static () => new Meter(Name, Version));

#if NET9_0_OR_GREATER
    private static readonly double[] Bounds = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10]; // as OpenTelemetry advises
#endif

    private readonly Meter _meter;
    private readonly MeteredPools _pools = new();
    private int _observed;

    private PoolInstruments(Meter meter)
    {
        _meter = meter;
        CallDuration = Histogram("rpc.client.call.duration", "How long calls took, with their retries and the wait for a channel.");
        WaitTime = Histogram(Prefix + "wait_time", "How long it took to get a lease on a channel.");
        UseTime = Histogram(Prefix + "use_time", "How long leases were out.");
        ConnectTime = Histogram(Prefix + "connect_time", "How long it took to make, connect and prime a channel.");

        Level("channel.count", "{channel}", "Channels, by state.", ByState, "pool.channel.state", "pool.endpoint");
        Level("channel.limit", "{channel}", "MaxPoolSize.", static pool => [(pool.Statistics.MaxPoolSize, null, null)]);
        Level("active_calls", "{call}", "Leases that are out.", ByEndpoint, "pool.endpoint");
        Level("pending_calls", "{call}", "Calls that wait for a channel.", static pool => [(pool.Statistics.CallsWaiting, null, null)]);
        Level("replay_buffer.usage", "By", "Requests of streams that are kept for another attempt.", static pool => [(pool.ReplayBytes, null, null)]);

        Count("channel.created", "{channel}", "Channels that were made.", ByReason(ChannelPoolEventKind.Created), Reason);
        Count("channel.replaced", "{channel}", "Channels that were made in place of another one.", ByReason(ChannelPoolEventKind.Replaced), Reason);
        Count("channel.retired", "{channel}", "Channels that took no more calls, without another one in their place.", ByReason(ChannelPoolEventKind.Retired), Reason);
        Count("channel.given_up", "{channel}", "Channels that were given up because nothing came from them.", ByReason(ChannelPoolEventKind.GivenUp), Reason);
        Count("channel.connect_failures", "{channel}", "Channels that could not be made or connected.", ByReason(ChannelPoolEventKind.ConnectFailed), Reason);
        Count("refusals", "{call}", "Calls that got no channel.", ByReason(ChannelPoolEventKind.Refused), Reason);
        Count("retries", "{retry}", "Attempts that followed one that had failed.", static pool => [(pool.Statistics.Retries - pool.Statistics.Hedges, null, null)]);
        Count("hedges", "{hedge}", "Attempts beside one that was under way.", static pool => [(pool.Statistics.Hedges, null, null)]);
        Count("affinity.calls", "{call}", "Attempts of calls with a key.", static pool => [(pool.Statistics.AffinityCalls, null, null)]);
        Count("affinity.moves", "{call}", "Attempts of calls with a key on another channel than that of the key.", static pool => [(pool.Statistics.AffinityMoves, null, null)]);
        Count("leaks", "{lease}", "Leases of calls that were dropped before their end, and taken back.", static pool => [(pool.Statistics.LeaksReclaimed, null, null)]);

        var budget = _observed++;
        _meter.CreateObservableGauge(Prefix + "retry_budget.remaining", () => Budgets(budget), "1", "What is left of the retry budget. Nothing is sent again up to a half.");
    }

    public static string? Version { get; } = typeof(PoolInstruments).Assembly.GetCustomAttribute<AssemblyInformationalVersionAttribute>()?.InformationalVersion.Split('+')[0];

    public Histogram<double> CallDuration { get; }
    public Histogram<double> WaitTime { get; }
    public Histogram<double> UseTime { get; }
    public Histogram<double> ConnectTime { get; }

    public static PoolInstruments Of(IMeterFactory? factory)
    {
        var meter = factory?.Create(new MeterOptions(Name) { Version = Version }) ?? Shared.Value;
        if (OfMeter.TryGetValue(meter, out var known))
        {
            return known;
        }

        lock (OfMeter) // a table makes two values where two ask at the same moment, and a meter keeps the instruments of both
        {
            return OfMeter.GetValue(meter, static meter => new PoolInstruments(meter));
        }
    }

    public void Add(PoolMetrics pool) => _pools.Add(pool);

    private static IEnumerable<Told> ByState(PoolReading pool) => pool.Channels
        .Where(static channel => channel.State != PooledChannelState.Closed)
        .GroupBy(static channel => (channel.State, channel.Endpoint))
        .Select(static group => ((long)group.Count(), (string?)SnakeCase.Of(group.Key.State), (string?)group.Key.Endpoint));

    private static IEnumerable<Told> ByEndpoint(PoolReading pool) => pool.Channels
        .GroupBy(static channel => channel.Endpoint)
        .Select(static group => (group.Sum(static channel => (long)channel.CallsInFlight), (string?)group.Key, default(string)));

    private static Func<PoolReading, IEnumerable<Told>> ByReason(ChannelPoolEventKind kind) => pool => pool.Events
        .Where(counted => counted.Key.Kind == kind)
        .Select(static counted => (counted.Value, (string?)SnakeCase.Of(counted.Key.Reason), default(string)));

    private Histogram<double> Histogram(string name, string description) =>
#if NET9_0_OR_GREATER
        _meter.CreateHistogram(name, "s", description, tags: null, new InstrumentAdvice<double> { HistogramBucketBoundaries = Bounds });
#else
        _meter.CreateHistogram<double>(name, "s", description); // whose bounds a view has to set
#endif

    private void Level(string name, string unit, string description, Func<PoolReading, IEnumerable<Told>> what, params string[] attributes)
    {
        var index = _observed++;
        _meter.CreateObservableUpDownCounter(Prefix + name, () => Observe(index, what, attributes, isCounter: false), unit, description);
    }

    private void Count(string name, string unit, string description, Func<PoolReading, IEnumerable<Told>> what, params string[] attributes)
    {
        var index = _observed++;
        _meter.CreateObservableCounter(Prefix + name, () => Observe(index, what, attributes, isCounter: true), unit, description);
    }

    // Of several pools that cannot be told apart there is the sum. A counter has what those counted, too, that are closed.
    private List<Measurement<long>> Observe(int index, Func<PoolReading, IEnumerable<Told>> what, string[] attributes, bool isCounter)
    {
        var (pools, gone) = _pools.Read();
        var read = pools.Select(pool => (pool, Reading: pool.ReadingFor(index))).ToList();
        var open = read.Where(static one => one.Reading is not null).ToList();
        var tags = open.DistinctBy(static one => one.pool.Identity).ToDictionary(static one => one.pool.Identity, static one => one.pool.Tags);
        var closed = !isCounter ? [] : read.Where(static one => one.Reading is null).Select(static one => (one.pool.Identity, one.pool.Tally)).Concat(gone)
            .Where(one => tags.ContainsKey(one.Identity));
        return [..
            from one in open.Select(static one => (one.pool.Identity, Reading: one.Reading!)).Concat(closed.Select(static one => (one.Identity, Reading: one.Tally.ToReading())))
            from told in what(one.Reading)
            group told.Value by (one.Identity, told.First, told.Second) into same
            select new Measurement<long>(same.Sum(), [.. tags[same.Key.Identity], .. attributes.Zip([same.Key.First, same.Key.Second], Tag)])];
    }

    private IEnumerable<Measurement<double>> Budgets(int index) =>
        from pool in _pools.Read().Pools
        let left = pool.ReadingFor(index)?.BudgetLeft
        where left is not null
        group (pool.Tags, left.Value) by pool.Identity into same
        select new Measurement<double>(same.Min(static one => one.Value), same.First().Tags);

    private static KeyValuePair<string, object?> Tag(string name, string? value) => new(name, value);
}

/// <summary>Names of members as OpenTelemetry writes values.</summary>
internal static class SnakeCase
{
    private static readonly ConcurrentDictionary<Enum, string> Known = [];

    public static string Of(Enum value) => Known.GetOrAdd(value, static value => string.Concat(
        $"{value}".Select(static (letter, index) => index > 0 && char.IsUpper(letter) ? $"_{char.ToLowerInvariant(letter)}" : $"{char.ToLowerInvariant(letter)}")));
}

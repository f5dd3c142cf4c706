using System.Diagnostics.Metrics;
using Microsoft.Extensions.DependencyInjection;
using PoolingInvoker.Demo.Servers;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.TelemetryTests;

/// <summary>What an exporter gets of pools to a real server, and of one in virtual time.</summary>
public sealed class MetricTests
{
    private const string Prefix = "grpc.client.channel_pool.";

    private static readonly double[] Bounds = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10];

    [Fact]
    public async Task AnExporterGetsAllOfThem()
    {
        using var metrics = new Metrics();
        await using var scenario = await Scenario.StartAsync();
        var (port, endpoint) = (scenario.Server.Address.Port, scenario.Server.Address.Authority);
        var points = metrics.Collect(Scenario.Users, Scenario.Full, scenario.Virtual);
        Assert.All(points, point => Assert.Equal(
            $"{point.Tags["pool.name"]}" == scenario.Virtual ? ("Policy", null) : ("127.0.0.1", port), (point.Tags["server.address"], point.Tags.GetValueOrDefault("server.port"))));

        Has(2, "channel.count", "{channel}", "UpDownCounter", Scenario.Users, ("pool.channel.state", "active"), ("pool.endpoint", endpoint));
        Has(100, "channel.limit", "{channel}", "UpDownCounter", Scenario.Users);
        Has(1, "channel.limit", "{channel}", "UpDownCounter", Scenario.Full);
        Has(1, "active_calls", "{call}", "UpDownCounter", Scenario.Full, ("pool.endpoint", endpoint));
        Has(1, "pending_calls", "{call}", "UpDownCounter", Scenario.Full);
        Has(0, "pending_calls", "{call}", "UpDownCounter", Scenario.Users);
        Assert.InRange(Has(null, "replay_buffer.usage", "By", "UpDownCounter", Scenario.Users).Value, 4, 1024);
        Has(1, "channel.created", "{channel}", "Counter", Scenario.Users, ("pool.reason", "calls_waiting"));
        Has(1, "channel.created", "{channel}", "Counter", Scenario.Users, ("pool.reason", "another_attempt"));
        Has(1, "channel.replaced", "{channel}", "Counter", scenario.Virtual, ("pool.reason", "call_failed"));
        Has(1, "channel.replaced", "{channel}", "Counter", scenario.Virtual, ("pool.reason", "silent"));
        Has(1, "channel.retired", "{channel}", "Counter", scenario.Virtual, ("pool.reason", "idle"));
        Has(1, "channel.given_up", "{channel}", "Counter", scenario.Virtual, ("pool.reason", "silent"));
        Has(1, "channel.connect_failures", "{channel}", "Counter", scenario.Virtual, ("pool.reason", "no_channel"));
        Has(1, "refusals", "{call}", "Counter", Scenario.Full, ("pool.reason", "line_full"));
        Has(1, "retries", "{retry}", "Counter", Scenario.Users);
        Has(1, "hedges", "{hedge}", "Counter", Scenario.Users);
        Has(1, "affinity.calls", "{call}", "Counter", Scenario.Users);
        Assert.InRange(Has(null, "affinity.moves", "{call}", "Counter", Scenario.Users).Value, 0, 1); // the channel of the key may have failed before
        Has(1, "leaks", "{lease}", "Counter", Scenario.Users);
        Assert.InRange(Has(null, "retry_budget.remaining", "1", "Gauge", Scenario.Users).Value, 0.99, 0.9999);
        Assert.Equal(Bounds, Has(1, "wait_time", "s", "Histogram", Scenario.Full).Bounds.Take(Bounds.Length));
        Assert.True(Has(null, "use_time", "s", "Histogram", scenario.Virtual).Sum >= 5);
        Assert.True(Has(2, "connect_time", "s", "Histogram", Scenario.Users, ("pool.endpoint", endpoint)).Sum > 0);

        (string, object?)[] call = [("rpc.system.name", "grpc"), ("rpc.method", "user.v1.User/GetName"), ("rpc.status_code", "OK")];
        Assert.Equal(Bounds, HasNamed(1, "rpc.client.call.duration", "s", "Histogram", Scenario.Users, call).Bounds.Take(Bounds.Length));
        call = [("rpc.system.name", "grpc"), ("rpc.method", "user.v1.User/ListNames"), ("rpc.status_code", "CANCELLED"), ("error.type", "CANCELLED")];
        HasNamed(1, "rpc.client.call.duration", "s", "Histogram", Scenario.Users, call);

        Point Has(double? value, string name, string unit, string kind, string pool, params (string, object?)[] tags) => HasNamed(value, Prefix + name, unit, kind, pool, tags);

        Point HasNamed(double? value, string name, string unit, string kind, string pool, params (string Name, object? Value)[] tags)
        {
            var found = Assert.Single(points, point => point.Name == name && pool.Equals(point.Tags["pool.name"]) && tags.All(tag => tag.Value!.Equals(point.Tags.GetValueOrDefault(tag.Name))));
            Assert.Equal((unit, kind), (found.Unit, found.Kind));
            Assert.Equal(value ?? found.Value, found.Value);
            return found;
        }
    }

    [Fact]
    public async Task AFactoryOfMeters_GetsThePoolsThatNameIt_AndNoOthers()
    {
        await using var services = new ServiceCollection().AddMetrics().BuildServiceProvider();
        var meters = services.GetRequiredService<IMeterFactory>();
        using var named = ChannelPool.ForAddress("http://named:5000", new ChannelPoolOptions { MeterFactory = meters });
        using var other = ChannelPool.ForAddress("http://other:5000");
        var seen = new List<string>();
        using var listener = new MeterListener
        {
            InstrumentPublished = (instrument, listener) =>
            {
                if (instrument.Meter.Name == "PoolingInvoker" && instrument.Meter.Scope == meters && instrument.Name == Prefix + "channel.limit")
                {
                    listener.EnableMeasurementEvents(instrument);
                }
            },
        };
        listener.SetMeasurementEventCallback<long>((_, _, tags, _) => seen.Add($"{tags[0].Value}"));
        listener.Start();
        listener.RecordObservableInstruments();
        Assert.Equal(["named:5000"], seen);
    }

    [Fact]
    public void PoolsThatCannotBeToldApart_AreAddedUp()
    {
        using var metrics = new Metrics();
        using var one = ChannelPool.ForAddress("http://twice:5000", new ChannelPoolOptions { MaxPoolSize = 2 });
        using var two = ChannelPool.ForAddress("http://twice:5000", new ChannelPoolOptions { MaxPoolSize = 3 });
        Assert.Equal(5, Assert.Single(metrics.Collect("twice:5000"), static point => point.Name == Prefix + "channel.limit").Value);
    }

    [Fact]
    public void APoolThatIsDisposed_IsNotTold()
    {
        using var metrics = new Metrics();
        var pool = ChannelPool.ForAddress("http://gone:5000");
        Assert.NotEmpty(metrics.Collect("gone:5000"));
        pool.Dispose();
        Assert.Empty(metrics.Collect("gone:5000"));
    }

    [Fact]
    public async Task AListenerThatThrows_CostsNoCall_AndNoLease()
    {
        await using var server = await UserServer.StartAsync("one");
        using var listener = new MeterListener
        {
            InstrumentPublished = static (instrument, listener) =>
            {
                if (instrument.Meter.Name == "PoolingInvoker")
                {
                    listener.EnableMeasurementEvents(instrument);
                }
            },
        };
        listener.SetMeasurementEventCallback<double>(static (_, _, _, _) => throw new InvalidOperationException("heard"));
        listener.Start();
        await using var invoker = PoolingCallInvoker.ForAddress(server.Address);
        Assert.Equal("user-7", (await new User.UserClient(invoker).GetNameAsync(new GetNameRequest { Id = 7 }).ResponseAsync.Soon()).Name);
        Assert.Equal(0, invoker.Pool.GetStatistics().CallsInFlight);
    }
}

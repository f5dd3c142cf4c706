using System.Collections.Concurrent;
using System.Diagnostics.Metrics;
using System.Text.Json;
using Microsoft.Extensions.Logging;
using Microsoft.Extensions.Logging.Testing;
using Microsoft.Extensions.Time.Testing;
using PoolingInvoker.Testing;

namespace PoolingInvoker.AspNetCoreTests;

/// <summary>What it costs to watch, with time in hand.</summary>
public sealed class SamplerTests : IAsyncDisposable
{
    private readonly FakeTimeProvider _time = new();
    private readonly ServiceProvider _services = new ServiceCollection().BuildServiceProvider();
    private readonly ChannelPool _pool = ChannelPool.ForAddress("http://localhost:1");
    private readonly PoolSampler _sampler;

    public SamplerTests() => _sampler = new PoolSampler(new PoolList(new ChannelPoolsPageOptions().Add(_pool, "users"), _services), _time);

    [Fact]
    public async Task WhileNobodyWatches_ItDoesNotLook()
    {
        _time.Advance(TimeSpan.FromMinutes(1));
        Assert.Equal(0, _sampler.Looks);

        using (var watcher = _sampler.Watch())
        {
            await FrameOf(watcher);
        }

        var looks = _sampler.Looks;
        _time.Advance(TimeSpan.FromMinutes(1));
        Assert.Equal(looks, _sampler.Looks);
        Assert.Equal(0, _sampler.Watchers);
    }

    [Fact]
    public async Task TwoWhoWatch_ShareTheLooks()
    {
        using var first = _sampler.Watch();
        Assert.True((await FrameOf(first)).GetProperty("whole").GetBoolean());
        using var second = _sampler.Watch();
        Assert.True((await FrameOf(second)).GetProperty("whole").GetBoolean());
        Assert.Equal(1, _sampler.Looks);

        _time.Advance(PoolSampler.Interval);
        Assert.False((await FrameOf(first)).GetProperty("whole").GetBoolean());
        Assert.False((await FrameOf(second)).GetProperty("whole").GetBoolean());
        Assert.Equal(2, _sampler.Looks);
    }

    [Fact]
    public async Task ASlowOne_HoldsUpNobody_AndThenGetsTheWhole()
    {
        using var slow = _sampler.Watch();
        Assert.True((await FrameOf(slow)).GetProperty("whole").GetBoolean());
        using var fast = _sampler.Watch();
        await FrameOf(fast);
        for (var i = 0; i < 10; i++)
        {
            _time.Advance(PoolSampler.Interval);
            Assert.False((await FrameOf(fast)).GetProperty("whole").GetBoolean());
        }

        var whole = await FrameOf(slow);
        Assert.True(whole.GetProperty("whole").GetBoolean());
        Assert.Equal(11, whole.GetProperty("pools")[0].GetProperty("points").GetArrayLength());
        _time.Advance(PoolSampler.Interval);
        Assert.False((await FrameOf(slow)).GetProperty("whole").GetBoolean());
    }

    [Fact]
    public async Task TheLastMinutes_AreKept_AndNoMore()
    {
        using (var watcher = _sampler.Watch())
        {
            for (var i = 0; i < 5; i++)
            {
                await FrameOf(watcher);
                _time.Advance(PoolSampler.Interval);
            }

            await FrameOf(watcher);
        }

        _time.Advance(TimeSpan.FromMinutes(4));
        using (var watcher = _sampler.Watch())
        {
            // The sixth look and the seventh, with the gap between them, and no rate over it.
            await Waiting.Until(() => _sampler.Looks == 7);
            var points = (await FrameOf(watcher)).GetProperty("pools")[0].GetProperty("points");
            Assert.Equal(7, points.GetArrayLength());
            Assert.False(points[6].TryGetProperty("rate", out _));
        }

        _time.Advance(TimeSpan.FromMinutes(6));
        using (var watcher = _sampler.Watch())
        {
            await Waiting.Until(() => _sampler.Looks == 8);
            Assert.Equal(1, (await FrameOf(watcher)).GetProperty("pools")[0].GetProperty("points").GetArrayLength());
        }
    }

    [Fact]
    public async Task PoolsOfOneName_ShareWhatIsMeasured()
    {
        var options = new ChannelPoolOptions { Name = Guid.NewGuid().ToString() };
        await using var other = ChannelPool.ForAddress("http://localhost:1", options);
        await using var another = ChannelPool.ForAddress("http://localhost:1", options);
        var sampler = new PoolSampler(new PoolList(new ChannelPoolsPageOptions().Add(other, "other").Add(another, "another"), _services), _time);
        using var watcher = sampler.Watch();
        await FrameOf(watcher);

        using var meter = new Meter("PoolingInvoker");
        meter.CreateHistogram<double>("rpc.client.call.duration", "s").Record(0.2, new KeyValuePair<string, object?>("pool.name", options.Name));
        _time.Advance(PoolSampler.Interval);
        var pools = (await FrameOf(watcher)).GetProperty("pools");
        Assert.Equal([true, true], pools.EnumerateArray().Select(static pool => pool.GetProperty("points")[0].TryGetProperty("p50", out _)));
    }

    /// <summary>The stream ends, so that a browser comes again, and finds whatever can be shown by then.</summary>
    [Fact]
    public async Task ALookThatFails_IsNotTheLast()
    {
        var log = new FakeLogCollector();
        using var loggers = new LoggerFactory([new FakeLoggerProvider(log)]);
        var services = new Services(static () => throw new ArithmeticException("of the container"));
        var sampler = new PoolSampler(new PoolList(new ChannelPoolsPageOptions().Add(_pool, "users"), services), _time, loggers);
        using (var watcher = sampler.Watch())
        {
            Assert.Null(await watcher.NextAsync(CancellationToken.None).AsTask().Soon());
            var told = Assert.Single(log.GetSnapshot());
            Assert.Equal(("PoolingInvoker.ChannelPoolsPage", LogLevel.Error), (told.Category, told.Level));
            Assert.IsType<ArithmeticException>(told.Exception);

            services.Ask = static () => { };
            using var next = sampler.Watch(); // while the first has not gone yet
            Assert.True((await FrameOf(next)).GetProperty("whole").GetBoolean());
            _time.Advance(PoolSampler.Interval);
            Assert.False((await FrameOf(next)).GetProperty("whole").GetBoolean());
        }
    }

    [Fact]
    public async Task Looks_AreInTheContextOfNobodyWhoWatches()
    {
        var request = new AsyncLocal<string?>();
        var seen = new ConcurrentQueue<string?>();
        var sampler = new PoolSampler(new PoolList(new ChannelPoolsPageOptions().Add(_pool, "users"), new Services(() => seen.Enqueue(request.Value))), _time);
        request.Value = "the first who came";
        using var watcher = sampler.Watch();
        request.Value = null;
        await FrameOf(watcher);
        _time.Advance(PoolSampler.Interval);
        await FrameOf(watcher);
        Assert.Equal([null, null], seen);
    }

    public async ValueTask DisposeAsync()
    {
        await _pool.DisposeAsync();
        await _services.DisposeAsync();
    }

    private static async Task<JsonElement> FrameOf(Watcher watcher) =>
        JsonSerializer.Deserialize<JsonElement>((await watcher.NextAsync(CancellationToken.None).Soon())!.AsSpan("data: ".Length));

    private sealed class Services(Action ask) : IServiceProvider
    {
        public Action Ask { get; set; } = ask;

        public object? GetService(Type serviceType)
        {
            Ask();
            return null;
        }
    }
}

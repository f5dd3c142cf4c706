using System.Collections.Concurrent;
using System.Diagnostics.Metrics;
using System.Runtime.CompilerServices;
using PoolingInvoker.Testing;
using PoolingInvoker.Tests.Pool;

namespace PoolingInvoker.Tests.Diagnostics;

/// <summary>What pools measure, in virtual time.</summary>
public sealed class PoolMetricsTests : IDisposable
{
    private const string Prefix = "grpc.client.channel_pool.";

    private readonly PoolInTime _in = new();
    private readonly Meters _meters = new();
    private readonly MeterListener _listener;
    private readonly ConcurrentQueue<(string Name, double Value)> _heard = new();
    private Action _whenHeard = static () => { };

    public PoolMetricsTests()
    {
        _listener = new MeterListener
        {
            InstrumentPublished = (instrument, listener) =>
            {
                if (instrument.Meter.Scope == _meters)
                {
                    listener.EnableMeasurementEvents(instrument);
                }
            },
        };
        _listener.SetMeasurementEventCallback<double>((instrument, value, _, _) => Hear(instrument, value));
        _listener.SetMeasurementEventCallback<long>((instrument, value, _, _) => Hear(instrument, value));
        _listener.Start();
    }

    public void Dispose()
    {
        _listener.Dispose();
        _in.Dispose();
        _meters.Dispose();
    }

    [Fact]
    public async Task WaitAndUse_AreAsLongAsTheyWere()
    {
        var pool = New();
        var first = await pool.AcquireAsync().Soon();
        _in.Time.Advance(TimeSpan.FromSeconds(2));
        var waiting = pool.AcquireAsync();
        _in.Time.Advance(TimeSpan.FromSeconds(3));
        first.Dispose();
        var second = await waiting.Soon();
        _in.Time.Advance(TimeSpan.FromSeconds(7));
        second.Dispose();
        pool.Return(pool.Get());
        Assert.Equal([0, 3, 0], Heard("wait_time"));
        Assert.Equal([5, 7, 0], Heard("use_time"));
    }

    [Fact]
    public async Task AWaitThatFails_IsNoWaitForALease()
    {
        var pool = New();
        using var first = await pool.AcquireAsync().Soon();
        using var stop = new CancellationTokenSource();
        var waiting = pool.AcquireAsync(stop.Token);
        await stop.CancelAsync();
        await Assert.ThrowsAnyAsync<OperationCanceledException>(() => waiting.Soon());
        Assert.Equal([0], Heard("wait_time"));
    }

    [Fact]
    public async Task ConnectTime_IsThatOfConnectingAndPriming()
    {
        var pool = New(options => options.PrimeCallback = _in.PrimeByHand);
        var connecting = pool.ConnectAsync();
        await Waiting.Until(() => _in.Primes.Count == 1);
        _in.Time.Advance(TimeSpan.FromSeconds(4));
        _in.Primes[0].Ends.SetResult();
        await connecting.Soon();
        Assert.Equal([4], Heard("connect_time"));
    }

    [Fact]
    public async Task ListenersAreTold_OutsideOfTheLock()
    {
        var pool = New();
        var wereUnderTheLock = new ConcurrentQueue<bool>();
        _whenHeard = () => wereUnderTheLock.Enqueue(pool.State.IsEntered);
        var lease = await pool.AcquireAsync().Soon();
        var waiting = pool.AcquireAsync();
        lease.Dispose();
        (await waiting.Soon()).Dispose();
        _listener.RecordObservableInstruments();
        Assert.NotEmpty(wereUnderTheLock);
        Assert.DoesNotContain(true, wereUnderTheLock);
    }

    [Fact]
    public async Task ACollection_ReadsAPoolOnce_AndTheNextOneAgain()
    {
        var pool = New();
        pool.State.Metrics.OneCollection = TimeSpan.MaxValue; // the first one has all of its code compiled
        var (read, readings) = (pool.State.Metrics.Read!, 0);
        pool.State.Metrics.Read = () =>
        {
            readings++;
            return read();
        };
        _listener.RecordObservableInstruments();
        Assert.Equal(1, readings);
        Assert.Equal([0], Heard("pending_calls"));

        using var lease = await pool.AcquireAsync().Soon();
        var waiting = pool.AcquireAsync();
        _listener.RecordObservableInstruments();
        Assert.Equal(2, readings);
        Assert.Equal([0, 1], Heard("pending_calls"));
        lease.Dispose();
        (await waiting.Soon()).Dispose();
    }

    [Fact]
    public async Task APoolThatIsListenedTo_IsCollected_WhenItIsDropped()
    {
        var pool = Drop();
        await Waiting.Until(() =>
        {
            _listener.RecordObservableInstruments();
            GC.Collect();
            return !pool.IsAlive;
        });

        [MethodImpl(MethodImplOptions.NoInlining)]
        WeakReference Drop() => new(new ChannelPool(new StubPolicy(), new ChannelPoolOptions { MeterFactory = _meters }));
    }

    [Fact]
    public async Task InstrumentsAreThereOnce_WhereTwoPoolsAreMadeAtTheSameMoment()
    {
        var published = new ConcurrentQueue<string>();
        using var listener = new MeterListener
        {
            InstrumentPublished = (instrument, _) =>
            {
                if (instrument.Meter.Scope is Meters { IsRace: true })
                {
                    Thread.Sleep(1); // so that the other thread comes to it, too
                    published.Enqueue(instrument.Name);
                }
            },
        };
        listener.Start();
        for (var round = 0; round < 5; round++)
        {
            using var meters = new Meters { IsRace = true };
            _ = meters.Create(new MeterOptions("PoolingInvoker"));
            using var together = new Barrier(2);
            await Task.WhenAll(Enumerable.Range(0, 2).Select(_ => Task.Factory.StartNew(
                () =>
                {
                    together.SignalAndWait();
                    GC.KeepAlive(new PoolMetrics(meters, "name", "target", _in.Time));
                },
                CancellationToken.None,
                TaskCreationOptions.LongRunning,
                TaskScheduler.Default))).Soon();
            Assert.Equal(published.Distinct(), published);
            Assert.Contains(Prefix + "channel.count", published);
            published.Clear();
        }
    }

    [Fact]
    public void ACounter_DoesNotGoDown_WhenAPoolIsClosed()
    {
        var one = Used();
        var two = Used();
        Assert.Equal(2, Last("channel.created"));
        two.State.Metrics.Tally.CountRetry(isHedge: false);
        two.State.Metrics.Tally.CountRetry(isHedge: true);
        two.State.Metrics.Tally.CountReclaimedLeak();
        one.Dispose();
        two.Dispose();
        var three = Used();
        Assert.Equal((3, 1, 1, 1), (Last("channel.created"), Last("retries"), Last("hedges"), Last("leaks")));
        Assert.Equal(1, Last("channel.limit"));
        three.Dispose();
        _heard.Clear();
        _listener.RecordObservableInstruments();
        Assert.Empty(_heard);
        using var four = Used();
        Assert.Equal(4, Last("channel.created"));
    }

    [Fact]
    public async Task CallsWithAKey_AreCounted_AndThoseThatWentElsewhere()
    {
        var pool = New(static options => (options.Name, options.MinPoolSize, options.MaxPoolSize) = ("counted", 2, 2));
        Assert.Equal((0, 0), (Last("affinity.calls"), Last("affinity.moves")));
        await pool.ConnectAsync().Soon();
        var invoker = new PoolingCallInvoker(pool); // a pool by hand has no keys
        var (own, other) = (PoolInTime.Take(pool, isStream: false, "user-7"), PoolInTime.Take(pool, isStream: false, "user-7"));
        Assert.Equal((2, 1), (Last("affinity.calls"), Last("affinity.moves")));
        own.Dispose();
        PoolInTime.Take(pool, isStream: false, "user-7").Dispose();
        other.Dispose();
        pool.Dispose();
        using var next = New(static options => options.Name = "counted");
        Assert.Equal((3, 1), (Last("affinity.calls"), Last("affinity.moves")));
        GC.KeepAlive(invoker);
    }

    [Fact]
    public async Task ACounter_DoesNotGoDown_WhenAPoolIsDropped()
    {
        using var stays = Used();
        var gone = Enumerable.Range(0, 3).Select(_ => Drop()).ToList();
        await Waiting.Until(() =>
        {
            GC.Collect();
            return !gone.Exists(static pool => pool.IsAlive);
        });
        GC.WaitForPendingFinalizers();
        GC.Collect();
        Assert.Equal(4, Last("channel.created"));
        Assert.Equal(4, Last("channel.created"));
        Assert.Equal(1, Last("channel.limit"));
        Assert.Equal(3, Last("affinity.calls")); // nobody read them while the pools were there

        [MethodImpl(MethodImplOptions.NoInlining)]
        WeakReference Drop()
        {
            var pool = new ChannelPool(new StubPolicy(), new ChannelPoolOptions { Name = "counted", MeterFactory = _meters, MaxPoolSize = 1 });
            pool.Return(pool.Get());
            PoolInTime.Take(pool, isStream: false, "user-7").Dispose();
            return new WeakReference(pool);
        }
    }

    [Theory]
    [InlineData("users:5000", "users", 5000)]
    [InlineData("users", "users", null)]
    [InlineData("10.0.0.1:80", "10.0.0.1", 80)]
    [InlineData("[::1]:5000", "::1", 5000)]
    [InlineData("one:1,two:2", "one:1,two:2", null)]
    [InlineData("UserPolicy", "UserPolicy", null)]
    public void ATarget_IsAServer_WithAPortWhereThatIsGiven(string target, string server, int? port)
    {
        var metrics = new PoolMetrics(_meters, "name", target, _in.Time);
        Assert.Equal((server, port), (metrics.Identity.Server, metrics.Identity.Port));
    }

    private ChannelPool New(Action<ChannelPoolOptions>? configure = null) => _in.New(options =>
    {
        (options.MeterFactory, options.MaxPoolSize, options.MaxConcurrentCallsPerChannel) = (_meters, 1, 1);
        configure?.Invoke(options);
    });

    private ChannelPool Used()
    {
        var pool = new ChannelPool(new StubPolicy(), new ChannelPoolOptions { Name = "counted", MeterFactory = _meters, MaxPoolSize = 1 });
        pool.Return(pool.Get());
        return pool;
    }

    private double Last(string name)
    {
        _heard.Clear();
        _listener.RecordObservableInstruments();
        return Assert.Single(Heard(name));
    }

    private IEnumerable<double> Heard(string name) => _heard.Where(one => one.Name == Prefix + name).Select(static one => one.Value);

    private void Hear(Instrument instrument, double value)
    {
        _whenHeard();
        _heard.Enqueue((instrument.Name, value));
    }

    private sealed class Meters : IMeterFactory
    {
        private Meter? _meter;

        public bool IsRace { get; init; }

        public Meter Create(MeterOptions options)
        {
            options.Scope = this;
            return _meter ??= new Meter(options);
        }

        public void Dispose() => _meter?.Dispose();
    }
}

using System.Collections.Concurrent;
using System.Net;
using Microsoft.AspNetCore.Http.Features;
using Microsoft.Extensions.Primitives;
using Microsoft.Extensions.ServiceDiscovery;
using Microsoft.Extensions.Time.Testing;
using PoolingInvoker.Testing;

namespace PoolingInvoker.Tests.Pool;

/// <summary>Loggers, handlers and policies of the user's: they may throw, which costs no lease, and never run under the lock.</summary>
public sealed class ForeignCodeTests : IDisposable
{
    private readonly FakeTimeProvider _time = new();
    private readonly StubPolicy _policy = new();
    private readonly RecordingLoggerFactory _log = new();
    private readonly List<ChannelPool> _pools = [];
    private readonly ConcurrentQueue<string> _underTheLock = new();

    public void Dispose() => _pools.ForEach(static pool =>
    {
        Assert.Equal(0, pool.GetStatistics().CallsInFlight);
        pool.Dispose();
    });

    [Fact]
    public async Task ALoggerThatThrows_CostsNoLease()
    {
        var pool = NewPool();
        _log.OnEntry = static () => throw new FormatException("of the user's");
        var lease = await pool.AcquireAsync().Soon();
        _policy.OnReturn = static _ => throw new InvalidOperationException("no idea");
        lease.Dispose();
        Assert.Equal(["ChannelCreated", "PolicyThrew", "ChannelReplaced", "ChannelClosed"], Events());

        _policy.OnCreate = static () => throw new TimeoutException("no dial tone");
        (await pool.AcquireAsync().Soon()).Dispose();
        Assert.Equal(1, pool.GetStatistics().IdleChannels);
    }

    [Fact]
    public async Task AHandlerThatThrowsInDispose_CostsNoCall_AndNoneOfTheOtherChannels()
    {
        _policy.OnCreate = static () => StubPolicy.NewChannel(new HandlerThatCannotBeDisposed());
        var pool = NewPool();
        var first = await pool.AcquireAsync().Soon();
        _policy.OnReturn = static _ => false;
        first.Dispose();
        Assert.Equal(["ChannelCreated", "ChannelReplaced", "CloseFailed"], Events());
        Assert.Equal(0, pool.GetStatistics().DrainingChannels);

        var second = await pool.AcquireAsync().Soon();
        var third = await pool.AcquireAsync().Soon();
        pool.Dispose();
        await pool.DisposeAsync().AsTask().Soon();
        Assert.All(_policy.Created, static channel => Assert.True(StubPolicy.IsDisposed(channel)));
        second.Dispose();
        third.Dispose();
    }

    [Fact]
    public async Task TheLog_IsNotWrittenUnderTheLock()
    {
        var pool = NewPool(minPoolSize: 2, idleTimeout: TimeSpan.FromMinutes(10), leakDetectionThreshold: TimeSpan.FromMinutes(1));
        WatchTheLock(pool);

        _policy.OnCreate = static () => throw new TimeoutException("no dial tone");
        await Assert.ThrowsAsync<InvalidOperationException>(() => pool.ConnectAsync().Soon());
        _policy.OnCreate = static () => StubPolicy.NewChannel(new HandlerThatCannotBeDisposed());
        await pool.ConnectAsync().Soon();
        AssertEvents("ChannelCreated", "CreationFailed");

        await LeaseThreeAsync(pool, during: static time => time.Advance(TimeSpan.FromMinutes(2)));
        AssertEvents("ChannelCreated", "CreationFailed", "LateLeaseReturned", "LeaseHeldLong");

        _policy.OnCreate = static () => throw new TimeoutException("no dial tone");
        _policy.OnReturn = static _ => throw new InvalidOperationException("no idea");
        (await pool.AcquireAsync().Soon()).Dispose();
        _time.Advance(TimeSpan.FromSeconds(10));
        _policy.OnCreate = StubPolicy.NewChannel;
        _policy.OnReturn = static _ => true;
        await LeaseThreeAsync(pool, during: static _ => { }); // one of them is the one that could not be replaced before
        _time.Advance(TimeSpan.FromMinutes(20));
        pool.Dispose();
        AssertEvents(
            "ChannelClosed", "ChannelCreated", "ChannelReplaced", "ChannelRetired", "CloseFailed", "CreationFailed", "LateLeaseReturned", "LeaseHeldLong",
            "PolicyThrew", "ReplacementFailed");
        Assert.Empty(_underTheLock);
    }

    [Fact]
    public async Task ConnectAsync_ConnectsOutsideOfTheLock()
    {
        // Channels of the pool's own write into the same log.
        using var pool = ChannelPool.ForAddress("http://127.0.0.1:1", new ChannelPoolOptions { LoggerFactory = _log });
        WatchTheLock(pool);
        await Assert.ThrowsAsync<HttpRequestException>(() => pool.ConnectAsync().Soon());
        Assert.NotEmpty(Events());
        Assert.Empty(_underTheLock);
    }

    [Fact]
    public async Task TheClock_IsNotReadAndNoTimerIsSet_UnderTheLock()
    {
        var time = new WatchingTime(_underTheLock);
        using var pool = new ChannelPool(_policy, new ChannelPoolOptions
        {
            MaxPoolSize = 2,
            MaxConcurrentCallsPerChannel = 1,
            TargetConcurrentCallsPerChannel = 1,
            AcquireTimeout = TimeSpan.FromSeconds(5),
            LeakDetectionThreshold = TimeSpan.FromMinutes(1),
            ProbeDelay = TimeSpan.FromSeconds(1),
            ProbeCallback = static (_, _) => Task.CompletedTask,
            LoggerFactory = _log,
            TimeProvider = time,
            Queue = InlineWork.Queue,
        });
        time.Watched = pool.State;

        // One that waits, is served, fails, and is replaced; and one whose time is up.
        var first = await pool.AcquireAsync().Soon();
        var second = await pool.AcquireAsync().Soon();
        var third = pool.AcquireAsync().AsTask();
        var fourth = pool.AcquireAsync().AsTask();
        first.Return(LeaseOutcome.ServerFailed);
        var served = await third.Soon();
        time.Advance(TimeSpan.FromSeconds(5));
        await Assert.ThrowsAsync<ChannelPoolExhaustedException>(fourth.Soon);
        _policy.OnCreate = static () => throw new TimeoutException("no dial tone");
        served.Return(LeaseOutcome.ChannelFailed);
        _policy.OnCreate = StubPolicy.NewChannel;
        second.Return(LeaseOutcome.Answered);
        pool.Get();
        for (var minute = 0; minute < 90; minute++)
        {
            time.Advance(TimeSpan.FromMinutes(1));
        }

        Assert.NotEqual(0, time.Set);
        Assert.Empty(_underTheLock);
    }

    // On a clock of the system it is the thread of a timer, on which that would end the process.
    [Fact]
    public async Task ACallbackThatThrows_OnTheTokenOfAProbe_EndsNothing()
    {
        var time = new RecordingTime(DateTimeOffset.UtcNow);
        var probes = 0;
        using var pool = new ChannelPool(_policy, new ChannelPoolOptions
        {
            ProbeDelay = TimeSpan.FromSeconds(1),
            ProbeCallback = (_, token) =>
            {
                Interlocked.Increment(ref probes);
                token.Register(static () => throw new InvalidOperationException("a callback"));
                return new TaskCompletionSource().Task;
            },
            TimeProvider = time,
            Queue = InlineWork.Queue,
        });
        using var lease = await pool.Queue.AcquireAsync(Timeout.InfiniteTimeSpan, new LeaseRequest(LeaseKind.Call), CancellationToken.None).Soon();
        await Waiting.Until(() =>
        {
            time.Advance(TimeSpan.FromMilliseconds(250));
            return Volatile.Read(ref probes) >= 5;
        });
    }

    [Theory]
    [InlineData("the time-out")]
    [InlineData("dispose")]
    public async Task ACallbackThatThrows_OnTheTokenOfADial_EndsNothing(string endedBy)
    {
        var time = new RecordingTime(DateTimeOffset.UtcNow);
        var dials = new TaskCompletionSource();
        var pool = ChannelPool.ForAddress("http://users", new ChannelPoolOptions
        {
            ConfigureHandler = handler =>
            {
                handler.ConnectTimeout = TimeSpan.FromSeconds(1);
                handler.ConnectCallback = async (_, token) =>
                {
                    token.Register(static () => throw new InvalidOperationException("a callback"));
                    dials.TrySetResult();
                    await Task.Delay(Timeout.InfiniteTimeSpan, TimeProvider.System, token);
                    throw new InvalidOperationException();
                };
            },
            TimeProvider = time,
        });
        var connecting = pool.ConnectAsync();
        await dials.Task.Soon();
        if (endedBy == "dispose")
        {
            pool.Dispose();
        }

        await Waiting.Until(() =>
        {
            time.Advance(TimeSpan.FromMilliseconds(250));
            return connecting.IsCompleted;
        });
        await Assert.ThrowsAnyAsync<Exception>(() => connecting);
        pool.Dispose();
    }

    [Fact]
    public async Task TheEndpointsOfAService_AreNotAskedForUnderTheLock()
    {
        var time = new WatchingTime(_underTheLock);
        var asked = 0;
        var policy = new EndpointPolicy(time);
        var server = new ChannelEndpoint(new IPEndPoint(IPAddress.Loopback, 1));
        policy.Dead.Add(server);
        var options = new ChannelPoolOptions { TimeProvider = time, PrimeCallback = policy.ConnectAsync, Queue = InlineWork.Queue };
        using var pool = new ChannelPool(policy, options.ValidatedCopy(), new Random(1), new EndpointList([], new Uri("http://users"), ResolveAsync));
        time.Watched = pool.State;
        await Assert.ThrowsAsync<HttpRequestException>(() => pool.ConnectAsync().Soon());
        await Waiting.Until(() =>
        {
            time.Advance(EndpointWatcher.RefreshPause);
            return Volatile.Read(ref asked) >= 2;
        });
        Assert.Empty(_underTheLock);

        ValueTask<ServiceEndpointSource> ResolveAsync(CancellationToken cancellationToken)
        {
            Interlocked.Increment(ref asked);
            return new(new ServiceEndpointSource([ServiceEndpoint.Create(server.EndPoint)], new CancellationChangeToken(CancellationToken.None), new FeatureCollection()));
        }
    }

    private async Task LeaseThreeAsync(ChannelPool pool, Action<FakeTimeProvider> during)
    {
        var leases = new[] { await pool.AcquireAsync().Soon(), await pool.AcquireAsync().Soon(), await pool.AcquireAsync().Soon() };
        during(_time);
        Array.ForEach(leases, static lease => lease.Dispose());
    }

    private void AssertEvents(params string[] events) => Assert.Equal(events, Events().Order(StringComparer.Ordinal).Distinct());

    private IEnumerable<string> Events() => _log.Entries.Select(static entry => entry.Event);

    // Who writes an entry under the lock keeps everybody else from it.
    private void WatchTheLock(ChannelPool pool) => _log.OnEntry = () =>
    {
        var other = new Thread(() => pool.GetStatistics()) { IsBackground = true };
        other.Start();
        if (_underTheLock.IsEmpty && !other.Join(Waiting.Long))
        {
            _underTheLock.Enqueue(Environment.StackTrace);
        }
    };

    private ChannelPool NewPool(int minPoolSize = 1, TimeSpan? idleTimeout = null, TimeSpan leakDetectionThreshold = default)
    {
        var pool = new ChannelPool(_policy, new ChannelPoolOptions
        {
            MinPoolSize = minPoolSize,
            MaxConcurrentCallsPerChannel = 1,
            PooledChannelIdleTimeout = idleTimeout ?? Timeout.InfiniteTimeSpan,
            PooledChannelLifetime = Timeout.InfiniteTimeSpan,
            LeakDetectionThreshold = leakDetectionThreshold,
            LoggerFactory = _log,
            TimeProvider = _time,
            Queue = InlineWork.Queue,
        });
        _pools.Add(pool);
        return pool;
    }

    // What is asked of a clock by a thread that is in the section of a pool: a FakeTimeProvider runs there the timers that are due.
    private sealed class WatchingTime(ConcurrentQueue<string> underTheLock) : FakeTimeProvider
    {
        private int _set;

        public PoolState? Watched { get; set; }

        public int Set => Volatile.Read(ref _set);

        public override DateTimeOffset GetUtcNow()
        {
            Look();
            return base.GetUtcNow();
        }

        public override long GetTimestamp()
        {
            Look();
            return base.GetTimestamp();
        }

        public override ITimer CreateTimer(TimerCallback callback, object? state, TimeSpan dueTime, TimeSpan period)
        {
            Look();
            return new WatchingTimer(this, base.CreateTimer(callback, state, dueTime, period));
        }

        private void Look()
        {
            if (Watched is { IsEntered: true })
            {
                underTheLock.Enqueue(Environment.StackTrace);
            }
        }

        private sealed class WatchingTimer(WatchingTime time, ITimer inner) : ITimer
        {
            public bool Change(TimeSpan dueTime, TimeSpan period)
            {
                Interlocked.Increment(ref time._set);
                time.Look();
                return inner.Change(dueTime, period);
            }

            public void Dispose() => inner.Dispose();

            public ValueTask DisposeAsync() => inner.DisposeAsync();
        }
    }

    private sealed class HandlerThatCannotBeDisposed : HttpMessageHandler
    {
        protected override Task<HttpResponseMessage> SendAsync(HttpRequestMessage request, CancellationToken cancellationToken) =>
            throw new InvalidOperationException("No call was expected.");

        protected override void Dispose(bool disposing)
        {
            base.Dispose(disposing);
            throw new FormatException("of the user's");
        }
    }
}

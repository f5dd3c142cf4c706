using System.Collections.Concurrent;
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

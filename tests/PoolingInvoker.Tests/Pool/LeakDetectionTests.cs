using System.Runtime.CompilerServices;
using Microsoft.Extensions.Time.Testing;
using PoolingInvoker.Testing;

namespace PoolingInvoker.Tests.Pool;

public sealed class LeakDetectionTests
{
    private readonly FakeTimeProvider _time = new();
    private readonly RecordingLoggerFactory _log = new();

    [Fact]
    public async Task ALeaseThatIsHeldLong_IsReportedOnce_WithTheStackThatTookIt_AndAgainWhenItComesBack()
    {
        using var pool = NewPool(TimeSpan.FromMinutes(1));
        var shortly = await pool.AcquireAsync().Soon();
        var held = await TakeForLong(pool);
        _time.Advance(TimeSpan.FromSeconds(59));
        shortly.Dispose();
        Assert.Empty(Reports());

        _time.Advance(TimeSpan.FromSeconds(10));
        _time.Advance(TimeSpan.FromMinutes(5));
        var (name, message) = Assert.Single(Reports());
        Assert.Equal("LeaseHeldLong", name);
        Assert.True(message.Contains(nameof(TakeForLong), StringComparison.Ordinal), message);

        held.Dispose();
        Assert.Equal(["LeaseHeldLong", "LateLeaseReturned"], Reports().Select(static report => report.Event));
        Assert.Contains("00:06:09", Reports()[1].Message, StringComparison.Ordinal);
    }

    [Fact]
    public async Task OneThatWasWaitedFor_IsReportedWithTheStackOfWhoWaited()
    {
        using var pool = NewPool(TimeSpan.FromMinutes(1), mostChannels: 1);
        var leases = await Task.WhenAll(Enumerable.Range(0, 10).Select(_ => pool.AcquireAsync().AsTask())).Soon();
        var waiting = TakeForLong(pool);
        leases[0].Dispose();
        using var held = await waiting.Soon();
        Array.ForEach(leases, static lease => lease.Dispose());
        _time.Advance(TimeSpan.FromMinutes(2));
        var message = Assert.Single(Reports()).Message;
        Assert.True(message.Contains(nameof(TakeForLong), StringComparison.Ordinal), message);
    }

    // The lease that Return gives back is the last one that Get took on that channel, whoever has that.
    [Fact]
    public async Task OneThatIsGivenBackBeforeItsTakerHasIt_IsNotReported()
    {
        using var pool = NewPool(TimeSpan.FromMinutes(1), mostChannels: 1);
        for (var round = 0; round < 200; round++)
        {
            var channel = pool.Get();
            for (var i = 1; i < 10; i++)
            {
                pool.Get();
            }

            var getting = Task.Run(pool.Get);
            await Waiting.Until(() => pool.GetStatistics().CallsWaiting == 1);
            for (var i = 0; i < 11; i++)
            {
                pool.Return(channel);
            }

            await getting.Soon();
        }

        Assert.Equal(0, pool.GetStatistics().CallsInFlight);
        _time.Advance(TimeSpan.FromMinutes(2));
        Assert.Empty(Reports());
    }

    [Fact]
    public void AnExplicitLease_IsWatchedToo()
    {
        using var pool = NewPool(TimeSpan.FromMinutes(1));
        var channel = pool.Get();
        _time.Advance(TimeSpan.FromMinutes(2));
        Assert.Single(Reports());
        pool.Return(channel);
        Assert.Equal(2, Reports().Count);
    }

    [Fact]
    public async Task Off_IsTheDefault()
    {
        using var pool = NewPool(TimeSpan.Zero);
        using var held = await pool.AcquireAsync().Soon();
        _time.Advance(TimeSpan.FromDays(1));
        Assert.Empty(Reports());
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static ValueTask<ChannelLease> TakeForLong(ChannelPool pool) => pool.AcquireAsync();

    private List<(string Event, string Message)> Reports() => [.. _log.Entries.Where(static entry => entry.Event.Contains("Lease", StringComparison.Ordinal))];

    private ChannelPool NewPool(TimeSpan threshold, int mostChannels = 100) => new(new StubPolicy(), new ChannelPoolOptions
    {
        MaxPoolSize = mostChannels,
        MaxConcurrentCallsPerChannel = 10,
        LeakDetectionThreshold = threshold,
        LoggerFactory = _log,
        TimeProvider = _time,
    });
}

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
        Assert.Contains(nameof(TakeForLong), message, StringComparison.Ordinal);

        held.Dispose();
        Assert.Equal(["LeaseHeldLong", "LateLeaseReturned"], Reports().Select(static report => report.Event));
        Assert.Contains("00:06:09", Reports()[1].Message, StringComparison.Ordinal);
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

    private ChannelPool NewPool(TimeSpan threshold) => new(new StubPolicy(), new ChannelPoolOptions
    {
        MaxConcurrentCallsPerChannel = 10,
        LeakDetectionThreshold = threshold,
        LoggerFactory = _log,
        TimeProvider = _time,
    });
}

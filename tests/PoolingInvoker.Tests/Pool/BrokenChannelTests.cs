namespace PoolingInvoker.Tests.Pool;

/// <summary>Channels that are broken, and that no call picks as long as there are others.</summary>
public sealed class BrokenChannelTests : IDisposable
{
    private readonly PoolInTime _in = new();
    private bool _isDown;

    public void Dispose() => _in.Dispose();

    [Fact]
    public void OneWhoseReplacementFailed_IsReplacedWhenTheServerIsBack_WithNoCall()
    {
        var pool = NewPool(channels: 2);
        PoolInTime.Answer(pool);
        var broken = Break(pool, isDown: true);
        Assert.Equal((PooledChannelState.Active, 0L), (broken.State, pool.GetStatistics().ChannelsReplaced));
        _isDown = false;
        _in.PassUntil(() => pool.GetStatistics().ChannelsReplaced == 1, TimeSpan.FromSeconds(1));
        Assert.Equal(PooledChannelState.Closed, broken.State);
    }

    [Fact]
    public void OneThatFailedWhileThePoolHeldBackDials_IsReplacedAfterThePause_WithNoCall()
    {
        var pool = NewPool(channels: 2);
        Break(pool, isDown: false);
        var broken = Break(pool, isDown: false); // none of the two has ever worked
        Assert.Equal((PooledChannelState.Active, 1L), (broken.State, pool.GetStatistics().ChannelsReplaced));
        _in.PassUntil(() => pool.GetStatistics().ChannelsReplaced == 2, TimeSpan.FromSeconds(1));
        Assert.Equal(PooledChannelState.Closed, broken.State);
    }

    [Fact]
    public void WhileTheServerIsDown_ItIsTriedAboutOnceASecond()
    {
        var pool = NewPool(channels: 2);
        PoolInTime.Answer(pool);
        Break(pool, isDown: true);
        var created = _in.Policy.Created.Count;
        _in.Pass(TimeSpan.FromMinutes(1), TimeSpan.FromSeconds(0.25));
        Assert.InRange(_in.Policy.Created.Count - created, 30, 70);
    }

    [Fact]
    public void WhereAllAreBroken_NoneIsTried_UntilACallComes()
    {
        var pool = NewPool(channels: 2);
        PoolInTime.Answer(pool);
        Break(pool, isDown: true);
        Break(pool, isDown: true);
        var created = _in.Policy.Created.Count;
        _in.Pass(TimeSpan.FromMinutes(1), TimeSpan.FromSeconds(0.25));
        Assert.Equal(created, _in.Policy.Created.Count);
        _isDown = false;
        _ = PoolInTime.Come(pool, 1);
        _in.PassUntil(() => pool.GetStatistics().ChannelsReplaced == 2, TimeSpan.FromSeconds(3));
    }

    private ChannelPool NewPool(int channels)
    {
        var pool = _in.New(options => (options.MinPoolSize, options.MaxPoolSize, options.PrimeCallback) =
            (channels, channels, (_, _) => _isDown ? Task.FromException(new IOException("no dial tone")) : Task.CompletedTask));
        PoolInTime.Take(pool).Dispose();
        return pool;
    }

    private PooledChannel Break(ChannelPool pool, bool isDown)
    {
        _isDown = isDown;
        var lease = PoolInTime.Take(pool);
        var channel = lease.Pooled;
        lease.Return(LeaseOutcome.ChannelFailed);
        return channel;
    }
}

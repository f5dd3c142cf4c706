namespace PoolingInvoker.Tests.Pool;

/// <summary>Who listens to a pool for a while, and how many leases it has given.</summary>
public sealed class ListenTests : IDisposable
{
    private readonly PoolInTime _in = new();
    private readonly List<ChannelPoolEvent> _told = [];

    public void Dispose() => _in.Dispose();

    [Fact]
    public void WhoListens_IsToldFromThenOn_UntilItIsOver()
    {
        var pool = _in.New(static options => options.MaxConcurrentCallsPerChannel = 1);
        PoolInTime.Take(pool);
        var listening = pool.Listen(_told.Add);
        PoolInTime.Take(pool);
        Assert.Same(_in.Events[1], Assert.Single(_told));

        listening.Dispose();
        listening.Dispose();
        PoolInTime.Take(pool);
        Assert.Single(_told);
        Assert.Equal(3, _in.Events.Count);
    }

    [Fact]
    public void OneWhoThrows_AndOneWhoListensTwice_DisturbNobody()
    {
        var pool = _in.New(static options => (options.MaxConcurrentCallsPerChannel, options.OnEvent) = (1, null));
        using var throwing = pool.Listen(static _ => throw new FormatException("of the user's"));
        using var first = pool.Listen(_told.Add);
        var second = pool.Listen(_told.Add);
        PoolInTime.Take(pool);
        Assert.Equal(2, _told.Count);

        second.Dispose();
        PoolInTime.Take(pool);
        Assert.Equal(3, _told.Count);
    }

    [Fact]
    public void NoListener_IsAMistake() => Assert.Throws<ArgumentNullException>(() => _in.New().Listen(null!));

    [Fact]
    public void LeasesTaken_CountsThoseThatAreBack()
    {
        var pool = _in.New();
        Assert.Equal(0, pool.GetStatistics().LeasesTaken);
        PoolInTime.Take(pool).Dispose();
        PoolInTime.Take(pool);
        Assert.Equal((2, 1), (pool.GetStatistics().LeasesTaken, pool.GetStatistics().CallsInFlight));
    }
}

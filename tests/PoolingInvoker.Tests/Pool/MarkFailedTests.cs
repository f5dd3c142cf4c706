using PoolingInvoker.Testing;

namespace PoolingInvoker.Tests.Pool;

/// <summary>Who leases by hand sees what is behind the lease, and says that it has failed: the channel is replaced as if a call had.</summary>
public sealed class MarkFailedTests : IDisposable
{
    private readonly PoolInTime _in = new();
    private readonly IOException _error = new("the answer made no sense");

    public void Dispose() => _in.Dispose();

    [Fact]
    public async Task TheChannel_IsReplaced_AndItsLeasesGoOn()
    {
        var pool = _in.New();
        var (lease, neighbour) = (await pool.AcquireAsync().Soon(), await pool.AcquireAsync().Soon());
        Assert.Equal((1, "StubPolicy", PooledChannelState.Active), (lease.ChannelId, lease.Endpoint, lease.ChannelState));

        lease.MarkFailed(_error);
        Assert.Equal((1, PooledChannelState.Draining), (lease.ChannelId, lease.ChannelState));
        Assert.Equal((2, _error), (pool.GetChannels()[0].CallsInFlight, pool.GetChannels()[0].LastError));
        Assert.Equal(2, (await pool.AcquireAsync().Soon()).ChannelId);
        var replaced = Assert.Single(_in.Events, static told => told.Kind == ChannelPoolEventKind.Replaced);
        Assert.Equal((2, ChannelPoolEventReason.MarkedFailed), (replaced.ChannelId, replaced.Reason));
        Assert.Equal("in place of #1, because who had leased it marked it as failed", replaced.Message);

        var channel = lease.Channel;
        lease.Dispose();
        Assert.False(StubPolicy.IsDisposed(channel));
        neighbour.Dispose();
        Assert.True(StubPolicy.IsDisposed(channel));
        Assert.Equal(1, pool.GetStatistics().CallsInFlight);
    }

    [Fact]
    public async Task UntilItIsReplaced_ItTakesNoLeases_AndIfItCannotBe_ItGoesOn()
    {
        var pool = _in.New(options => (options.MaxPoolSize, options.MaxConcurrentCallsPerChannel, options.PrimeCallback) = (2, 1, _in.PrimeByHand));
        var line = PoolInTime.Come(pool, 2);
        _in.Primes[0].Ends.SetResult();
        _in.Primes[1].Ends.SetResult();
        var lease = (await PoolInTime.ServedAsync(pool, line))[0];
        lease.MarkFailed(_error);
        Assert.Equal((1, PooledChannelState.Replacing), (lease.ChannelId, lease.ChannelState));
        lease.MarkFailed();
        lease.Dispose();
        Assert.False(pool.TryAcquire(out _));
        var waiting = pool.AcquireAsync().AsTask();
        Assert.Equal((1, 3), (pool.GetStatistics().CallsWaiting, _in.Primes.Count));

        _in.Primes[2].Ends.SetException(new TimeoutException("no dial tone"));
        using var second = await waiting.Soon();
        Assert.Equal((1, PooledChannelState.Active), (second.ChannelId, second.ChannelState));
        second.Dispose();

        // It is still one that has failed, and replaced when the backoff is over.
        _in.Pass(TimeSpan.FromSeconds(1.5));
        var third = pool.AcquireAsync().AsTask();
        _in.Primes[3].Ends.SetResult();
        Assert.Equal(4, (await third.Soon()).ChannelId);
        Assert.Equal(ChannelPoolEventReason.MarkedFailed, _in.Events.Single(static told => told.Kind == ChannelPoolEventKind.Replaced).Reason);
    }

    [Fact]
    public async Task Twice_IsOnce()
    {
        var pool = _in.New();
        using var lease = await pool.AcquireAsync().Soon();
        lease.MarkFailed(_error);
        lease.MarkFailed();
        Assert.Same(_error, pool.GetChannels()[0].LastError);
        lease.Dispose();
        Assert.Equal((1, 0, 1L, 2L), (pool.GetStatistics().Channels, pool.GetStatistics().DrainingChannels, pool.GetStatistics().ChannelsReplaced, pool.GetStatistics().ChannelsCreated));
    }

    [Fact]
    public async Task AfterTheLeaseIsGivenBack_ItIsAnError_AndNothingHappens()
    {
        var pool = _in.New();
        var lease = await pool.AcquireAsync().Soon();
        lease.Dispose();
        Assert.Throws<ObjectDisposedException>(() => lease.MarkFailed(_error));
        Assert.Throws<ObjectDisposedException>(() => lease.ChannelId);
        Assert.Throws<ObjectDisposedException>(() => lease.Endpoint);
        Assert.Throws<ObjectDisposedException>(() => lease.ChannelState);
        Assert.Equal((0L, 1), (pool.GetStatistics().ChannelsReplaced, pool.GetStatistics().Channels));
    }

    [Fact]
    public async Task AnExclusiveLease_CostsItsChannelAlone()
    {
        var pool = _in.New(static options => (options.MaxConcurrentCallsPerChannel, options.MaxPoolSize) = (1, 2));
        var (lease, neighbour) = (await pool.AcquireAsync().Soon(), await pool.AcquireAsync().Soon());
        var waiting = pool.AcquireAsync().AsTask();
        Assert.Equal(1, pool.GetStatistics().CallsWaiting);
        lease.MarkFailed(_error);
        Assert.Equal(3, (await waiting.Soon()).ChannelId);
        Assert.Equal((2, 1, 3), (pool.GetStatistics().Channels, pool.GetStatistics().DrainingChannels, pool.GetStatistics().CallsInFlight));
        Assert.Equal(PooledChannelState.Active, neighbour.ChannelState);
        lease.Dispose();
        lease.Dispose();
        Assert.Equal((2, 0, 2), (pool.GetStatistics().Channels, pool.GetStatistics().DrainingChannels, pool.GetStatistics().CallsInFlight));
    }

    [Fact]
    public async Task WhileItIsRefreshed_TheOneThatIsComingTakesItsPlace()
    {
        var pool = _in.New(options => options.PrimeCallback = _in.PrimeByHand);
        var first = pool.AcquireAsync().AsTask();
        _in.Primes[0].Ends.SetResult();
        using var lease = await first.Soon();
        var refreshing = pool.RefreshAsync();
        Assert.Equal(PooledChannelState.Refreshing, lease.ChannelState);
        lease.MarkFailed(_error);
        Assert.Equal(2, _in.Primes.Count);
        _in.Primes[1].Ends.SetResult();
        await refreshing.Soon();
        Assert.Equal((PooledChannelState.Draining, 2), (lease.ChannelState, _in.Open));
    }

    [Fact]
    public async Task ManyMarks_MakeFewDials()
    {
        var pool = _in.New();
        for (var i = 0; i < 100; i++)
        {
            using var lease = await pool.AcquireAsync().Soon();
            lease.MarkFailed(_error);
        }

        Assert.InRange(_in.Policy.Created.Count, 1, 3);
    }

    [Fact]
    public async Task InADisposedPool_NothingIsReplaced()
    {
        var pool = _in.New();
        var lease = await pool.AcquireAsync().Soon();
        pool.Dispose();
        lease.MarkFailed(_error);
        lease.Dispose();
        Assert.Equal((0, 0L), (_in.Open, pool.GetStatistics().ChannelsReplaced));
    }

    [Fact]
    public async Task ToLook_CostsNothing()
    {
        var pool = _in.New();
        using var lease = await pool.AcquireAsync().Soon();
        var seen = 0;
        Look();
        var before = GC.GetAllocatedBytesForCurrentThread();
        Look();
        Assert.Equal(0, GC.GetAllocatedBytesForCurrentThread() - before);
        Assert.True(seen > 0);

        void Look()
        {
            for (var i = 0; i < 100; i++)
            {
                seen += lease.ChannelId + lease.Endpoint.Length + (int)lease.ChannelState;
            }
        }
    }
}

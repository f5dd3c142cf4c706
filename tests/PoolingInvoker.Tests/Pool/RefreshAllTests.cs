using PoolingInvoker.Testing;

namespace PoolingInvoker.Tests.Pool;

/// <summary>All channels are replaced because the user wants it: how many at a time, when that is over, and what of those that cannot be.</summary>
public sealed class RefreshAllTests : IDisposable
{
    private static readonly TimeSpan Second = TimeSpan.FromSeconds(1);

    private readonly PoolInTime _in = new();

    public void Dispose() => _in.Dispose();

    [Theory]
    [InlineData(1)]
    [InlineData(5)]
    [InlineData(30)]
    public async Task All_AreReplaced_AFewAtATime_AndThereIsRoomAllTheTime(int channels)
    {
        var pool = _in.New(options =>
        {
            (options.MinPoolSize, options.MaxPoolSize) = (channels, channels);
            options.PrimeCallback = _in.PrimeIn(Second);
        });
        var warm = pool.ConnectAsync();
        _in.Pass(Second);
        await warm.Soon();
        var stream = PoolInTime.Take(pool, isStream: true);

        var refreshing = pool.RefreshAsync();
        var atATime = 0;
        while (pool.GetStatistics().ChannelsReplaced < channels)
        {
            var seen = pool.GetChannels();
            Assert.Equal(channels, seen.Count(static channel => channel.State is PooledChannelState.Active or PooledChannelState.Refreshing));
            atATime = Math.Max(atATime, seen.Count(static channel => channel.State == PooledChannelState.Refreshing));
            PoolInTime.Take(pool).Return(LeaseOutcome.Answered);
            Assert.False(refreshing.IsCompleted);
            _in.Time.Advance(TimeSpan.FromMilliseconds(100));
        }

        await refreshing.Soon();
        Assert.Equal(Math.Max(1, channels / 10), atATime);
        Assert.Equal(
            Enumerable.Repeat(ChannelPoolEventReason.Refreshed, channels),
            _in.Events.Where(static told => told.Kind == ChannelPoolEventKind.Replaced).Select(static told => told.Reason));
        Assert.Equal((PooledChannelState.Draining, channels + 1), (stream.ChannelState, _in.Open)); // a stream lives on where it is
        stream.Return(LeaseOutcome.Answered);
        Assert.All(pool.GetChannels(), channel => Assert.True(channel.Id > channels && channel.State == PooledChannelState.Active, channel.ToString()));
    }

    [Fact]
    public async Task WhatCannotBeReplaced_Stays_AndTheTaskSaysSo_WhenAllHaveBeenTried()
    {
        var pool = await NewPoolAsync(3);
        var refreshing = pool.RefreshAsync();
        for (var prime = 3; prime < 6; prime++)
        {
            Assert.Equal(prime + 1, _in.Primes.Count);
            Assert.False(refreshing.IsCompleted);
            End(prime, prime == 4 ? new TimeoutException("no dial tone") : null);
        }

        var exception = await Assert.ThrowsAsync<HttpRequestException>(() => refreshing.Soon());
        Assert.Equal("1 of the channels could not be replaced, and stay: #2 to StubPolicy. no dial tone", exception.Message);
        Assert.Equal(("no dial tone", HttpRequestError.ConnectionError), (exception.InnerException!.Message, exception.HttpRequestError));
        Assert.Equal([2, 4, 6], pool.GetChannels().Select(static channel => channel.Id));
        _in.Pass(TimeSpan.FromMinutes(1), Second);
        Assert.Equal(6, _in.Primes.Count); // each is tried once

        // The next one tries it again, with all others.
        refreshing = pool.RefreshAsync();
        for (var prime = 6; prime < 9; prime++)
        {
            End(prime);
        }

        await refreshing.Soon();
        Assert.Equal([7, 8, 9], pool.GetChannels().Select(static channel => channel.Id));
    }

    [Fact]
    public async Task WithNoServerAtAll_AllStay_AndEachIsDialledOnce()
    {
        var pool = await NewPoolAsync(3);
        var refreshing = pool.RefreshAsync();
        for (var prime = 3; prime < 6; prime++)
        {
            End(prime, new IOException($"refused {prime}"));
        }

        var exception = await Assert.ThrowsAsync<HttpRequestException>(() => refreshing.Soon());
        Assert.Equal(["refused 3", "refused 4", "refused 5"], Assert.IsType<AggregateException>(exception.InnerException).InnerExceptions.Select(static one => one.Message));
        Assert.Equal([1, 2, 3], pool.GetChannels().Select(static channel => channel.Id));
        Assert.Equal((3, 3), (_in.Open, pool.GetStatistics().Channels));
    }

    [Fact]
    public async Task CallsAtTheSameTime_ShareTheWork()
    {
        List<Action>? held = null;
        var pool = await NewPoolAsync(2, work =>
        {
            if (held is null)
            {
                InlineWork.Queue(work);
            }
            else
            {
                held.Add(work);
            }
        });
        held = [];
        var (first, second) = (pool.RefreshAsync(), pool.RefreshAsync());
        var begin = Assert.Single(held);
        held = null;
        begin();
        End(2);
        End(3);
        await Task.WhenAll(first, second).Soon();
        Assert.Equal([3, 4], pool.GetChannels().Select(static channel => channel.Id));
        Assert.Equal((2L, 4), (pool.GetStatistics().ChannelsReplaced, _in.Primes.Count));
    }

    [Fact]
    public async Task ALaterCall_HasReplacedWhatHasComeMeanwhile_AndNoMore()
    {
        var pool = await NewPoolAsync(2);
        var first = pool.RefreshAsync();
        End(2); // #3 takes the place of #1
        var second = pool.RefreshAsync(); // of #2, #3, and #4, which is being made
        End(3);
        await first.Soon();
        Assert.False(second.IsCompleted);
        End(4);
        End(5);
        await second.Soon();
        Assert.Equal([5, 6], pool.GetChannels().Select(static channel => channel.Id));
        Assert.Equal((4L, 6), (pool.GetStatistics().ChannelsReplaced, _in.Primes.Count));
    }

    [Fact]
    public async Task AChannelThatIsBeingConnected_IsReplacedWhenItHasJoined()
    {
        var pool = _in.New(options => options.PrimeCallback = _in.PrimeByHand);
        var line = PoolInTime.Come(pool, 1);
        var refreshing = pool.RefreshAsync();
        End(0);
        var lease = Assert.Single(await PoolInTime.ServedAsync(pool, line));
        Assert.False(refreshing.IsCompleted);
        End(1);
        await refreshing.Soon();
        Assert.Equal((1, PooledChannelState.Draining), (lease.ChannelId, lease.ChannelState));
        lease.Dispose();

        // One that does not come to join is none.
        lease = PoolInTime.Take(pool);
        lease.Return(LeaseOutcome.Answered);
        lease = PoolInTime.Take(pool);
        lease.Return(LeaseOutcome.ChannelFailed);
        refreshing = pool.RefreshAsync();
        End(2, new TimeoutException("no dial tone"));
        End(3);
        await refreshing.Soon();
        Assert.Equal([4], pool.GetChannels().Select(static channel => channel.Id));
    }

    [Fact]
    public async Task AChannelWhoseCallbacksRunAsItIsAskedFor_IsReplacedWhenItHasJoined()
    {
        Task? refreshing = null;
        var pool = _in.New();
        _in.Policy.OnCreate = () =>
        {
            refreshing ??= pool.RefreshAsync();
            return StubPolicy.NewChannel();
        };
        PoolInTime.Take(pool).Return(LeaseOutcome.Answered);
        await refreshing!.Soon();
        Assert.Equal([2], pool.GetChannels().Select(static channel => channel.Id));
    }

    [Fact]
    public async Task AChannelThatCannotBeMadeAsItIsAskedFor_IsNotWaitedFor()
    {
        Task? refreshing = null;
        var pool = _in.New();
        _in.Policy.OnCreate = () =>
        {
            refreshing ??= pool.RefreshAsync();
            throw new TimeoutException("no dial tone");
        };
        await Assert.ThrowsAsync<InvalidOperationException>(() => pool.AcquireAsync().AsTask().Soon());
        await refreshing!.Soon();
    }

    [Fact]
    public async Task TheToken_EndsTheWait_AndTheRefreshGoesOn()
    {
        var pool = await NewPoolAsync(1);
        using var given = new CancellationTokenSource();
        var refreshing = pool.RefreshAsync(given.Token);
        await given.CancelAsync();
        await Assert.ThrowsAnyAsync<OperationCanceledException>(() => refreshing.Soon());
        End(1);
        Assert.Equal([2], pool.GetChannels().Select(static channel => channel.Id));
    }

    [Fact]
    public async Task Dispose_EndsIt()
    {
        var pool = await NewPoolAsync(2);
        var refreshing = pool.RefreshAsync();
        pool.Dispose();
        await Assert.ThrowsAsync<ObjectDisposedException>(() => refreshing.Soon());
        await Assert.ThrowsAsync<ObjectDisposedException>(() => pool.RefreshAsync().Soon());
        await Waiting.Until(() => _in.Open == 0);
    }

    [Fact]
    public async Task WhereThereAreNoChannels_ItIsOverAtOnce_AndWhatWasPreparedIsMadeAnew()
    {
        var certificate = "old";
        List<string> given = [];
        using var pool = ChannelPool.ForAddress("http://localhost:5000", new ChannelPoolOptions { ConfigureHandler = _ => given.Add(certificate), Queue = InlineWork.Queue });
        certificate = "new";
        await pool.RefreshAsync().Soon();
        given.Clear();
        Assert.True(pool.TryAcquire(out var lease));
        Assert.Equal(["new"], given);
        lease.Dispose();
    }

    private void End(int prime, Exception? error = null)
    {
        if (error is null)
        {
            _in.Primes[prime].Ends.SetResult();
        }
        else
        {
            _in.Primes[prime].Ends.SetException(error);
        }
    }

    private async Task<ChannelPool> NewPoolAsync(int channels, Action<Action>? queue = null)
    {
        var pool = _in.New(options => (options.MinPoolSize, options.PrimeCallback, options.Queue) = (channels, _in.PrimeByHand, queue ?? InlineWork.Queue));
        var warm = pool.ConnectAsync();
        for (var prime = 0; prime < channels; prime++)
        {
            End(prime);
        }

        await warm.Soon();
        return pool;
    }
}

using System.Collections.Concurrent;
using PoolingInvoker.Testing;

namespace PoolingInvoker.Tests.Pool;

/// <summary>Channels that are made, and primed, before they are needed.</summary>
public sealed class WarmUpTests : IDisposable
{
    private readonly PoolInTime _in = new();

    public void Dispose() => _in.Dispose();

    [Fact]
    public async Task ConnectAsync_BringsUpTheMinimum_AllAtATime()
    {
        var pool = NewPool(min: 5);
        var connecting = pool.ConnectAsync();
        Assert.Equal(5, _in.Primes.Count);
        foreach (var i in (int[])[3, 1, 4, 0])
        {
            _in.Primes[i].Ends.SetResult();
            Assert.False(connecting.IsCompleted);
        }

        _in.Primes[2].Ends.SetResult();
        await connecting.Soon();
        Assert.Equal((5, 5, 5L), (pool.GetStatistics().Channels, pool.GetStatistics().IdleChannels, pool.GetStatistics().ChannelsCreated));
        await pool.ConnectAsync().Soon(); // there is nothing left to do
        Assert.Equal(5, _in.Primes.Count);
    }

    [Theory]
    [InlineData(1, false)]
    [InlineData(2, false)]
    [InlineData(2, true)]
    [InlineData(5, false)]
    public async Task ConnectAsync_SaysHowManyFailed_AndWhy(int failing, bool invalidOperation)
    {
        var pool = NewPool(min: 5);
        var connecting = pool.ConnectAsync();
        for (var i = 0; i < 5; i++)
        {
            if (i < 5 - failing)
            {
                _in.Primes[i].Ends.SetResult();
            }
            else
            {
                _in.Primes[i].Ends.SetException(invalidOperation ? new InvalidOperationException($"no. {i}") : new TimeoutException($"no. {i}"));
            }
        }

        var exception = await Assert.ThrowsAsync<HttpRequestException>(() => connecting.Soon());
        Assert.Equal($"{failing} of 5 channels could not connect to StubPolicy: no. {5 - failing}", exception.Message);
        IEnumerable<Exception> inner = exception.InnerException is AggregateException all ? all.InnerExceptions : [exception.InnerException!];
        Assert.Equal(Enumerable.Range(5 - failing, failing).Select(static i => $"no. {i}"), inner.Select(static one => one.Message));
        Assert.Equal(Math.Max(1, 5 - failing), pool.GetStatistics().Channels); // one joins in any case
        Assert.Equal(pool.GetStatistics().Channels, _in.Open);

        var again = pool.ConnectAsync();
        foreach (var priming in _in.Primes)
        {
            priming.Ends.TrySetResult();
        }

        await again.Soon();
        Assert.Equal(5, pool.GetStatistics().Channels);
    }

    [Fact]
    public async Task WhatConfigureChannelThrows_ConnectAsyncThrowsAsItIs()
    {
        var configured = 0;
        using var pool = ChannelPool.ForAddress("http://127.0.0.1:1", new ChannelPoolOptions
        {
            MinPoolSize = 3,
            ConfigureChannel = _ => configured = configured == 2 ? throw new FormatException("of the user's") : configured + 1,
            TimeProvider = _in.Time,
        });
        var exception = await Assert.ThrowsAsync<FormatException>(() => pool.ConnectAsync().Soon());
        Assert.Equal("of the user's", exception.Message);
    }

    [Fact]
    public async Task ConnectAsync_Twice_WaitsTwice()
    {
        var pool = NewPool(min: 2);
        var first = pool.ConnectAsync();
        var second = pool.ConnectAsync();
        Assert.Equal(2, _in.Primes.Count);
        Assert.False(second.IsCompleted); // nothing is connected yet
        _in.Primes[0].Ends.SetResult();
        Assert.False(second.IsCompleted);
        _in.Primes[1].Ends.SetResult();
        await Task.WhenAll(first, second).Soon();
        Assert.Equal(2, pool.GetStatistics().ChannelsCreated);
    }

    [Fact]
    public async Task ConnectAsync_WaitsForWhatACallHasBegun()
    {
        var pool = NewPool(min: 2);
        var line = PoolInTime.Come(pool, 1);
        Assert.Equal(2, _in.Primes.Count);
        var connecting = pool.ConnectAsync();
        _in.Primes[0].Ends.SetResult();
        Assert.Single(await PoolInTime.ServedAsync(pool, line));
        Assert.False(connecting.IsCompleted);
        _in.Primes[1].Ends.SetResult();
        await connecting.Soon();
    }

    [Fact]
    public async Task ConnectAsync_ThatIsCancelled_LeavesWhatIsBeingConnected()
    {
        var pool = NewPool(min: 2);
        using var cancellation = new CancellationTokenSource();
        var connecting = pool.ConnectAsync(cancellation.Token);
        await cancellation.CancelAsync();
        await Assert.ThrowsAnyAsync<OperationCanceledException>(() => connecting.Soon());
        Assert.All(_in.Primes, static priming => Assert.False(priming.Token.IsCancellationRequested));
        foreach (var priming in _in.Primes)
        {
            priming.Ends.SetResult();
        }

        Assert.Equal((2, 2), (pool.GetStatistics().Channels, pool.GetStatistics().IdleChannels));
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public async Task APoolThatIsDisposedMeanwhile_SaysSo_AndKeepsNothing(bool waits)
    {
        var pool = NewPool(min: 3);
        var connecting = pool.ConnectAsync();
        var line = PoolInTime.Come(pool, 2);
        _in.Primes[0].Ends.SetResult();
        Assert.Equal(2, (await PoolInTime.ServedAsync(pool, line)).Count);
        if (waits)
        {
            line.ForEach(static one => one.Result.Dispose());
            await pool.DisposeAsync().AsTask().Soon();
        }
        else
        {
            pool.Dispose();
        }

        await Assert.ThrowsAsync<ObjectDisposedException>(() => connecting.Soon());
        await Waiting.Until(() => _in.Primes.Skip(1).All(static priming => priming.Token.IsCancellationRequested));
        await Waiting.Until(() => _in.Open == 0); // though they have not ended, and may never
        await Assert.ThrowsAsync<ObjectDisposedException>(() => pool.ConnectAsync().Soon());
    }

    [Fact]
    public async Task EachChannel_IsPrimedOnce_BeforeAnyCallGetsIt()
    {
        // Also those that are made in place of others, because they failed or are old.
        var primed = new ConcurrentDictionary<object, int>(ReferenceEqualityComparer.Instance);
        var pool = _in.New(options =>
        {
            options.MinPoolSize = 2;
            options.MaxConcurrentCallsPerChannel = 2;
            options.MaxPoolSize = 5;
            options.PooledChannelLifetime = TimeSpan.FromMinutes(1);
            options.PooledChannelIdleTimeout = TimeSpan.FromSeconds(20);
            options.PrimeCallback = async (invoker, _) =>
            {
                await Task.Delay(TimeSpan.FromMilliseconds(50), _in.Time, CancellationToken.None).ConfigureAwait(false);
                primed.AddOrUpdate(invoker, 1, static (_, times) => times + 1);
            };
        });
        var random = new Random(1);
        _in.Policy.OnReturn = _ => random.Next(20) > 0;
        List<ChannelLease> leases = [];
        List<Task<ChannelLease>> line = [];
        for (var i = 0; i < 2_000; i++)
        {
            line.AddRange(PoolInTime.Come(pool, random.Next(3)));
            _ = await PoolInTime.ServedAsync(pool, line);
            foreach (var one in line.Where(static one => one.IsCompleted).ToList())
            {
                var lease = await one;
                Assert.True(primed.ContainsKey(lease.CallInvoker), "A call got a channel that was not primed.");
                leases.Add(lease);
                line.Remove(one);
            }

            while (leases.Count > 6)
            {
                var over = random.Next(leases.Count);
                leases[over].Return(LeaseOutcome.Answered);
                leases.RemoveAt(over);
            }

            _in.Time.Advance(TimeSpan.FromMilliseconds(random.Next(300)));
        }

        Assert.All(primed.Values, static times => Assert.Equal(1, times));
        Assert.True(pool.GetStatistics().ChannelsReplaced > 10);
    }

    [Fact]
    public async Task ACallThatCannotWait_AndIsSentAgain_GetsNoUnprimedChannelEither()
    {
        var pool = NewPool(min: 1);
        var line = PoolInTime.Come(pool, 1);
        _in.Primes[0].Ends.SetResult();
        var failed = (await PoolInTime.ServedAsync(pool, line))[0].Pooled;
        var again = await pool.Queue.AcquireAsync(TimeSpan.Zero, new LeaseRequest(LeaseKind.Call, failed), CancellationToken.None).Soon();
        Assert.Same(_in.Primes[0].Invoker, again.CallInvoker); // the only one that there is
        Assert.Equal(1, _in.Open);
    }

    [Fact]
    public async Task APrimingCallThatNeverEnds_IsGivenTenSeconds()
    {
        var pool = NewPool(min: 2);
        var connecting = pool.ConnectAsync();
        _in.Primes[0].Ends.SetResult();
        _in.Pass(TimeSpan.FromSeconds(9.9), TimeSpan.FromMilliseconds(100));
        Assert.False(connecting.IsCompleted);
        _in.Pass(TimeSpan.FromSeconds(0.1));
        var exception = await Assert.ThrowsAsync<HttpRequestException>(() => connecting.Soon());
        Assert.Equal("1 of 2 channels could not connect to StubPolicy: Pool.PrimeCallback did not end within 10 s.", exception.Message);
        Assert.True(_in.Primes[1].Token.IsCancellationRequested);
        Assert.Equal((1, 1), (pool.GetStatistics().Channels, _in.Open));
    }

    [Theory]
    [InlineData("throws at once")]
    [InlineData("gives null")]
    public async Task APrimingCallThatIsNone_FailsLikeOthers(string how)
    {
        var pool = _in.New(options => options.PrimeCallback = (_, _) => how == "gives null" ? null! : throw new FormatException("of the user's"));
        await Assert.ThrowsAsync<HttpRequestException>(() => pool.ConnectAsync().Soon());
        PoolInTime.Take(pool).Dispose(); // it is the only one
    }

    private ChannelPool NewPool(int min) => _in.New(options => (options.MinPoolSize, options.PrimeCallback) = (min, _in.PrimeByHand));
}

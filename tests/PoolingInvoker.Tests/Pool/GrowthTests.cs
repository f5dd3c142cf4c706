using PoolingInvoker.Testing;

namespace PoolingInvoker.Tests.Pool;

/// <summary>How many channels a line makes, and when they serve it.</summary>
public sealed class GrowthTests(ITestOutputHelper output) : IDisposable
{
    private static readonly TimeSpan Connects = TimeSpan.FromMilliseconds(150);

    private readonly PoolInTime _in = new();

    public void Dispose() => _in.Dispose();

    [Fact]
    public async Task AColdPool_MakesAtOnceWhatTheLineNeeds_AndEachChannelServesAsSoonAsItIsPrimed()
    {
        var pool = _in.New(options => (options.MaxConcurrentCallsPerChannel, options.TargetConcurrentCallsPerChannel, options.PrimeCallback) = (100, null, _in.PrimeByHand));
        var line = PoolInTime.Come(pool, 1_000);
        Assert.Equal(10, _in.Primes.Count); // all at a time, none is primed yet
        AssertPool(pool, channels: 10, inFlight: 0, waiting: 1_000);

        int[] order = [7, 2, 9, 0, 1, 8, 5, 4, 6, 3];
        for (var i = 0; i < order.Length; i++)
        {
            var ready = _in.Primes[order[i]];
            ready.Ends.SetResult();
            var served = await PoolInTime.ServedAsync(pool, line);
            Assert.Equal((i + 1) * 100, served.Count);
            Assert.All(line.Take(served.Count), static first => Assert.True(first.IsCompletedSuccessfully));
            Assert.All(served.Skip(i * 100), lease => Assert.Same(ready.Invoker, lease.CallInvoker));
        }

        _in.Pass(TimeSpan.FromSeconds(1));
        AssertPool(pool, channels: 10, inFlight: 1_000);
        Assert.Equal(10, _in.Policy.Created.Count);
    }

    [Fact]
    public async Task AColdPoolOfExclusiveChannels_MakesOneForEach()
    {
        var pool = _in.New(options => (options.MaxConcurrentCallsPerChannel, options.PrimeCallback) = (1, _in.PrimeIn(Connects)));
        var line = PoolInTime.Come(pool, 50);
        _in.Pass(Connects);
        var leases = await PoolInTime.ServedAsync(pool, line);
        Assert.Equal(50, leases.DistinctBy(static lease => lease.Pooled).Count());
        _in.Pass(TimeSpan.FromSeconds(1));
        AssertPool(pool, channels: 50, inFlight: 50);
        Assert.Equal(50, _in.Policy.Created.Count);
    }

    [Fact]
    public async Task WhoLeavesWhileChannelsConnect_CostsNoLease()
    {
        var pool = _in.New(options => (options.MaxConcurrentCallsPerChannel, options.PrimeCallback) = (1, _in.PrimeByHand));
        using var cancellation = new CancellationTokenSource();
        var cancelled = PoolInTime.Come(pool, 10, cancellationToken: cancellation.Token);
        var late = PoolInTime.Come(pool, 10, timeout: TimeSpan.FromSeconds(5));
        var stay = PoolInTime.Come(pool, 10);
        Assert.Equal(30, _in.Primes.Count);

        await cancellation.CancelAsync();
        _in.Pass(TimeSpan.FromSeconds(5));
        await Task.WhenAll(cancelled.Select(static one => Assert.ThrowsAnyAsync<OperationCanceledException>(() => one.Soon())));
        await Task.WhenAll(late.Select(static one => Assert.ThrowsAsync<ChannelPoolExhaustedException>(() => one.Soon())));
        foreach (var priming in _in.Primes)
        {
            priming.Ends.SetResult();
        }

        var leases = await PoolInTime.ServedAsync(pool, stay);
        Assert.Equal(10, leases.Count);
        AssertPool(pool, channels: 30, inFlight: 10);
        leases.ForEach(static lease => lease.Dispose());
        Assert.Equal(30, pool.GetStatistics().IdleChannels);
    }

    [Theory]
    [InlineData(2)]
    [InlineData(10)]
    public async Task AShortSpike_IsServedByTheChannelsThatThereAre(int milliseconds)
    {
        // As in HikariCP's "Welcome to the jungle": 50 callers come at once to 5 connections, and another one takes 150 ms.
        var (pool, took) = await SpikeAsync(TimeSpan.FromMilliseconds(milliseconds));
        output.WriteLine($"50 leases of {milliseconds} ms on 5 warm channels: {took.TotalMilliseconds} ms, {_in.Policy.Created.Count} channels made");
        Assert.Equal(5, _in.Policy.Created.Count);
        AssertPool(pool, channels: 5, inFlight: 0);
    }

    [Fact]
    public async Task ALastingSpike_GetsTheChannelsThatItNeeds_OneLookLater()
    {
        var pool = await WarmAsync(5);
        var line = PoolInTime.Come(pool, 50);
        _in.Pass(TimeSpan.FromMilliseconds(29), TimeSpan.FromMilliseconds(1)); // a fifth of what connecting takes
        AssertPool(pool, channels: 5, inFlight: 5, waiting: 45);
        _in.Pass(TimeSpan.FromMilliseconds(1));
        AssertPool(pool, channels: 50, inFlight: 5, waiting: 45);
        _in.Pass(Connects);
        Assert.Equal(50, (await PoolInTime.ServedAsync(pool, line)).Count); // long before the first lease of 1 s comes back
        _in.Pass(TimeSpan.FromSeconds(1));
        AssertPool(pool, channels: 50, inFlight: 50);
    }

    [Theory]
    [InlineData(5)]
    [InlineData(10)]
    [InlineData(20)]
    [InlineData(50)]
    [InlineData(100)]
    [InlineData(1_000)]
    public async Task TheLengthOfASpike_DecidesHowManyChannelsItMakes(int milliseconds)
    {
        var (_, took) = await SpikeAsync(TimeSpan.FromMilliseconds(milliseconds));
        var made = _in.Policy.Created.Count;
        output.WriteLine($"50 leases of {milliseconds} ms on 5 warm channels: {took.TotalMilliseconds} ms, {made} channels made");
        Assert.InRange(made, 5, 50);
    }

    [Fact]
    public async Task WhereConnectingTakesNoTime_ALineAtMostDoublesThePool()
    {
        var pool = _in.New(options => (options.MaxConcurrentCallsPerChannel, options.PrimeCallback) = (1, _in.PrimeByHand));
        var first = PoolInTime.Come(pool, 1);
        _in.Primes[0].Ends.SetResult();
        _ = await PoolInTime.ServedAsync(pool, first);

        var line = PoolInTime.Come(pool, 40);
        List<int> sizes = [];
        for (var primed = 1; pool.GetStatistics().CallsWaiting > 0;)
        {
            var channels = pool.GetStatistics().Channels;
            Assert.InRange(channels, primed + 1, 2 * primed);
            sizes.Add(channels);
            for (; primed < channels; primed++)
            {
                _in.Primes[primed].Ends.SetResult();
            }

            _ = await PoolInTime.ServedAsync(pool, line);
        }

        output.WriteLine($"Channels: 1, {string.Join(", ", sizes)}");
        AssertPool(pool, channels: 41, inFlight: 41);
    }

    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(3)]
    public async Task ThePool_IsNeverLargerThanItsMaximum_WhateverBecomesOfThoseUnderWay(int seed)
    {
        const int Max = 7;
        var random = new Random(seed);
        var pool = _in.New(options => (options.MaxConcurrentCallsPerChannel, options.MaxPoolSize, options.PrimeCallback) = (1, Max, _in.PrimeByHand));
        var line = PoolInTime.Come(pool, 100);
        Assert.Equal(Max, _in.Primes.Count);

        HashSet<ChannelLease> returned = [];
        await Waiting.Until(() =>
        {
            var open = _in.Primes.Where(static priming => !priming.Ends.Task.IsCompleted).ToList();
            if (open.Count > 0)
            {
                var ends = open[random.Next(open.Count)].Ends;
                if (random.Next(3) == 0)
                {
                    ends.SetException(new TimeoutException("no dial tone"));
                }
                else
                {
                    ends.SetResult();
                }
            }

            // Some of them are good for nothing when they come back, and are replaced.
            _in.Policy.OnReturn = _ => random.Next(5) > 0;
            var held = line.Where(one => one.IsCompletedSuccessfully && !returned.Contains(one.Result)).Select(static one => one.Result).ToList();
            held.Where(_ => random.Next(2) == 0).ToList().ForEach(lease =>
            {
                returned.Add(lease);
                lease.Dispose();
            });
            var statistics = pool.GetStatistics();
            Assert.InRange(statistics.Channels, 0, Max);
            Assert.InRange(statistics.CallsInFlight, 0, Max + statistics.DrainingChannels);
            _in.Time.Advance(TimeSpan.FromMilliseconds(random.Next(20)));
            return line.TrueForAll(static one => one.IsCompletedSuccessfully);
        });
    }

    [Fact]
    public async Task WhatCannotBePrimed_IsDropped_AndOneAtATimeTriesAgain_AfterAPauseThatGrows()
    {
        var pool = _in.New(options => (options.MaxConcurrentCallsPerChannel, options.PrimeCallback) = (1, _in.PrimeByHand));
        var first = PoolInTime.Come(pool, 1);
        _in.Primes[0].Ends.SetResult();
        _ = await PoolInTime.ServedAsync(pool, first);

        var line = PoolInTime.Come(pool, 1);
        var expected = 0.1;
        List<double> pauses = [];
        for (var tries = 2; tries < 12; tries++)
        {
            Assert.Equal(tries, _in.Primes.Count);
            line.AddRange(PoolInTime.Come(pool, 5)); // however many wait
            _in.Primes[^1].Ends.SetException(new TimeoutException("no dial tone"));
            Assert.Equal(1, _in.Open);
            AssertPool(pool, channels: 1, inFlight: 1, waiting: line.Count);

            var pause = _in.PassUntil(() => _in.Primes.Count > tries, TimeSpan.FromSeconds(2)).TotalSeconds;
            pauses.Add(pause);
            Assert.InRange(pause, 0.8 * expected, (1.2 * expected) + 0.02);
            expected = Math.Min(1, expected * 1.6);
        }

        output.WriteLine($"Pauses: {string.Join(", ", pauses.Select(static pause => $"{pause:0.00}"))} s");
        Assert.All(line, static waiter => Assert.False(waiter.IsCompleted));
        foreach (var priming in _in.Primes)
        {
            priming.Ends.TrySetResult();
        }

        await Waiting.Until(() =>
        {
            _in.Pass(TimeSpan.FromMilliseconds(10));
            foreach (var priming in _in.Primes)
            {
                priming.Ends.TrySetResult();
            }

            return line.TrueForAll(static waiter => waiter.IsCompletedSuccessfully);
        });
        AssertPool(pool, channels: line.Count + 1, inFlight: line.Count + 1);
    }

    [Fact]
    public async Task WhatCannotBePrimed_JoinsAllTheSame_WhereThereIsNoOther()
    {
        var pool = _in.New(options => (options.MaxConcurrentCallsPerChannel, options.PrimeCallback) = (2, _in.PrimeByHand));
        var line = PoolInTime.Come(pool, 5);
        Assert.Equal(3, _in.Primes.Count);
        _in.Primes[1].Ends.SetException(new TimeoutException("no dial tone"));
        var served = await PoolInTime.ServedAsync(pool, line);
        Assert.Equal(2, served.Count);
        Assert.All(served, lease => Assert.Same(_in.Primes[1].Invoker, lease.CallInvoker));
        Assert.Equal("no dial tone", pool.GetChannels().Single(static channel => channel.CallsInFlight > 0).LastError?.Message);

        // There is one now: the others are dropped, and one at a time tries again.
        _in.Primes[0].Ends.SetException(new TimeoutException("no dial tone"));
        _in.Primes[2].Ends.SetException(new TimeoutException("no dial tone"));
        AssertPool(pool, channels: 1, inFlight: 2, waiting: 3);
        Assert.Equal(1, _in.Open);
        _in.PassUntil(() => _in.Primes.Count > 3, TimeSpan.FromSeconds(1.3));
        Assert.Equal(4, _in.Primes.Count);
        _in.Primes[3].Ends.SetResult();
        Assert.Equal(4, (await PoolInTime.ServedAsync(pool, line)).Count);
    }

    [Theory]
    [InlineData("TryAcquire", 1)]
    [InlineData("TryAcquire", 0)]
    [InlineData("AcquireTimeout", 1)]
    [InlineData("AcquireTimeout", 0)]
    [InlineData("MaxCallsWaiting", 0)]
    public async Task WhoCannotWait_GetsNoUnprimedChannel_ButHasOneMade(string nowait, int min)
    {
        var pool = _in.New(options =>
        {
            options.MinPoolSize = min;
            options.MaxConcurrentCallsPerChannel = 1;
            options.PrimeCallback = _in.PrimeByHand;
            options.AcquireTimeout = nowait == "AcquireTimeout" ? TimeSpan.Zero : options.AcquireTimeout;
            options.MaxCallsWaiting = nowait == "MaxCallsWaiting" ? 0 : options.MaxCallsWaiting;
        });

        // With an empty pool, and with a full one.
        for (var channels = 1; channels <= 3; channels++)
        {
            for (var i = 0; i < 3; i++)
            {
                Assert.Null(await AcquireAsync());
            }

            Assert.Equal(channels, _in.Primes.Count);
            _in.Primes[^1].Ends.SetResult();
            Assert.Same(_in.Primes[^1].Invoker, (await AcquireAsync())?.CallInvoker);
        }

        AssertPool(pool, channels: 3, inFlight: 3);

        async Task<ChannelLease?> AcquireAsync()
        {
            if (nowait == "TryAcquire")
            {
                return pool.TryAcquire(out var lease) ? lease : null;
            }

            try
            {
                return await pool.AcquireAsync().Soon();
            }
            catch (Exception exception) when (exception is TimeoutException or InvalidOperationException)
            {
                return null;
            }
        }
    }

    // How long it takes until 50 callers, each with a lease of this length, have been served by a pool of 5 warm exclusive channels.
    private async Task<(ChannelPool Pool, TimeSpan Took)> SpikeAsync(TimeSpan length)
    {
        var pool = await WarmAsync(5);
        var line = PoolInTime.Come(pool, 50);
        var since = _in.Time.GetTimestamp();
        Dictionary<ChannelLease, long> taken = [];
        while (taken.Count < 50 || pool.GetStatistics().CallsInFlight > 0)
        {
            foreach (var lease in await PoolInTime.ServedAsync(pool, line))
            {
                taken.TryAdd(lease, _in.Time.GetTimestamp());
            }

            _in.Time.Advance(TimeSpan.FromMilliseconds(1));
            foreach (var lease in taken.Where(one => _in.Time.GetElapsedTime(one.Value) >= length).Select(static one => one.Key))
            {
                lease.Dispose();
            }
        }

        var took = _in.Time.GetElapsedTime(since);
        _in.Pass(TimeSpan.FromSeconds(1));
        return (pool, took);
    }

    private async Task<ChannelPool> WarmAsync(int channels)
    {
        var pool = _in.New(options => (options.MinPoolSize, options.MaxConcurrentCallsPerChannel, options.PrimeCallback) = (channels, 1, _in.PrimeIn(Connects)));
        var connecting = pool.ConnectAsync();
        _in.Pass(Connects);
        await connecting.Soon();
        AssertPool(pool, channels: channels, inFlight: 0);
        return pool;
    }

    private static void AssertPool(ChannelPool pool, int channels, int inFlight, int waiting = 0)
    {
        var statistics = pool.GetStatistics();
        Assert.Equal((channels, inFlight, waiting), (statistics.Channels, statistics.CallsInFlight, statistics.CallsWaiting));
    }
}

using PoolingInvoker.Testing;

namespace PoolingInvoker.Tests.Pool;

/// <summary>Options that change while the pool is at work. The laws are asserted at the end of each section, as everywhere.</summary>
public sealed class OptionsUpdateTests : ProbedPools
{
    private readonly PoolInTime _in = new();
    private readonly RecordingLoggerFactory _log = new();

    [Fact]
    public async Task AboveASmallerMaximum_ChannelsDrain_AndNoCallIsCut()
    {
        var pool = New(options => (options.MaxConcurrentCallsPerChannel, options.MaxPoolSize) = (1, 5));
        var leases = Enumerable.Range(0, 5).Select(_ => PoolInTime.Take(pool)).ToList();
        Update(pool, options => (options.MaxConcurrentCallsPerChannel, options.MaxPoolSize) = (1, 2));
        var statistics = pool.GetStatistics();
        Assert.Equal((2, 3, 5), (statistics.Channels, statistics.DrainingChannels, statistics.CallsInFlight));
        Assert.Equal(5, _in.Open);
        Assert.Equal(3, _in.Events.Count(static told => told.Kind == ChannelPoolEventKind.Retired && told is { Reason: ChannelPoolEventReason.OptionsChanged, Message: "there are more than 2 channels" }));

        leases.ForEach(static lease => lease.Return(LeaseOutcome.Answered));
        Assert.Equal((2, 2), (_in.Open, pool.GetStatistics().Channels));
        var line = PoolInTime.Come(pool, 3);
        Assert.Equal(1, pool.GetStatistics().CallsWaiting);
        foreach (var one in line)
        {
            (await one.Soon()).Dispose();
        }
    }

    [Fact]
    public void AboveASmallerMaximum_IdleChannelsGoFirst()
    {
        var pool = New(static options => options.MinPoolSize = 3);
        var leases = Enumerable.Range(0, 3).Select(_ => PoolInTime.Take(pool)).ToList();
        PoolInTime.Answer(pool);
        var busy = leases[1].Pooled;
        var (stay, go) = (leases.FindAll(lease => lease.Pooled == busy), leases.FindAll(lease => lease.Pooled != busy));
        go.ForEach(static lease => lease.Return(LeaseOutcome.Answered));
        Update(pool, static options => options.MaxPoolSize = 1);
        Assert.Same(busy, Assert.Single(pool.State.Active));
        stay.ForEach(static lease => lease.Return(LeaseOutcome.Answered));
    }

    [Fact]
    public async Task ChannelsThatAreBeingMade_JoinBeforeTheyGo()
    {
        var pool = New(options => (options.MinPoolSize, options.PrimeCallback) = (4, _in.PrimeByHand));
        var line = PoolInTime.Come(pool, 1);
        Assert.Equal(4, _in.Primes.Count);
        Update(pool, static options => options.MaxPoolSize = 1);
        Assert.Equal(4, pool.GetStatistics().Channels);
        for (var i = 0; i < 4; i++)
        {
            _in.Primes[i].Ends.SetResult();
            Assert.Equal(4 - i, pool.GetStatistics().Channels);
        }

        Assert.Equal((1, 1), (pool.GetStatistics().Channels, _in.Open));
        (await line[0].Soon()).Dispose();
    }

    [Fact]
    public async Task AChannelThatIsGood_DoesNotGo_ForOneThatIsBeingReplaced()
    {
        var pool = New(options => (options.MinPoolSize, options.PrimeCallback) = (2, _in.PrimeByHand));
        var line = PoolInTime.Come(pool, 1);
        _in.Primes[0].Ends.SetResult();
        _in.Primes[1].Ends.SetResult();
        var failed = await line[0].Soon();
        failed.MarkFailed();
        Update(pool, static options => options.MaxPoolSize = 1);
        Assert.True(pool.TryAcquire(out var good));
        Assert.NotEqual(failed.ChannelId, good.ChannelId);

        _in.Primes[2].Ends.SetResult();
        failed.Dispose();
        good.Dispose();
        Assert.Equal((1, 1), (pool.GetStatistics().Channels, _in.Open));
    }

    [Fact]
    public async Task ALargerMaximum_ServesThoseThatWait()
    {
        var pool = New(static options => (options.MaxConcurrentCallsPerChannel, options.MaxPoolSize) = (1, 1));
        var line = PoolInTime.Come(pool, 3);
        Assert.Equal(2, pool.GetStatistics().CallsWaiting);
        Update(pool, static options => (options.MaxConcurrentCallsPerChannel, options.MaxPoolSize) = (1, 3));
        _in.Pass(TimeSpan.FromSeconds(1));
        Assert.Equal((0, 3), (pool.GetStatistics().CallsWaiting, pool.GetStatistics().Channels));
        foreach (var one in line)
        {
            (await one.Soon()).Dispose();
        }
    }

    [Fact]
    public async Task MoreCallsAChannel_ServeThoseThatWait_AndFewerCutNone()
    {
        var pool = New(static options => (options.MaxConcurrentCallsPerChannel, options.MaxPoolSize) = (1, 1));
        var line = PoolInTime.Come(pool, 3);
        PoolInTime.Take(Update(pool, static options => (options.MaxConcurrentCallsPerChannel, options.MaxPoolSize) = (4, 1))).Dispose();
        Assert.Equal((0, 4), (pool.GetStatistics().CallsWaiting, pool.GetChannels()[0].Capacity));

        Update(pool, static options => (options.MaxConcurrentCallsPerChannel, options.MaxPoolSize) = (2, 1));
        (await line[0].Soon()).Dispose();
        var next = PoolInTime.Come(pool, 1)[0];
        Assert.False(next.IsCompleted); // two are out
        (await line[1].Soon()).Dispose();
        Assert.Equal(0, pool.GetStatistics().CallsWaiting);
        (await line[2].Soon()).Dispose();
        (await next.Soon()).Dispose();
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void ALargerMinimum_IsMadeAtOnce_InAPoolThatIsUsed(bool isUsed)
    {
        var pool = New();
        if (isUsed)
        {
            PoolInTime.Take(pool).Dispose();
        }

        Update(pool, static options => options.MinPoolSize = 3);
        Assert.Equal(isUsed ? 3 : 0, pool.GetStatistics().Channels);
    }

    [Fact]
    public void TimesThatAreShorter_HoldForChannelsThatThereAre()
    {
        var pool = New(static options => options.MinPoolSize = 2);
        PoolInTime.Take(pool).Return(LeaseOutcome.Answered);
        _in.Pass(TimeSpan.FromHours(1), TimeSpan.FromMinutes(1));
        Assert.Equal(2, pool.GetStatistics().ChannelsCreated);
        Update(pool, static options => options.PooledChannelIdleTimeout = TimeSpan.FromMinutes(1));
        _in.PassUntil(() => pool.GetStatistics().Channels == 1, TimeSpan.FromMinutes(2), TimeSpan.FromSeconds(1));

        Update(pool, static options => options.PooledChannelLifetime = TimeSpan.FromHours(3));
        var lifetime = Assert.Single(pool.State.Active).Lifetime;
        Assert.InRange(lifetime, TimeSpan.FromHours(2.7), TimeSpan.FromHours(3));
        Update(pool, static options => (options.PooledChannelLifetime, options.MaxCallsWaiting) = (TimeSpan.FromHours(3), 1));
        Assert.Equal(lifetime, pool.State.Active.Single().Lifetime); // drawn once
        _in.PassUntil(() => pool.GetStatistics().ChannelsReplaced == 1, TimeSpan.FromHours(3), TimeSpan.FromSeconds(30));

        // And not, when there is none any more.
        Update(pool, static _ => { });
        _in.Pass(TimeSpan.FromHours(10), TimeSpan.FromMinutes(1));
        Assert.Equal(1, pool.GetStatistics().ChannelsReplaced);
    }

    [Fact]
    public void ASmallerTarget_SpreadsTheCallsOverMoreChannels()
    {
        var pool = New();
        var leases = Enumerable.Range(0, 12).Select(_ => PoolInTime.Take(pool)).ToList();
        _in.Pass(TimeSpan.FromSeconds(1));
        Assert.Equal(1, pool.GetStatistics().Channels);
        Update(pool, static options => options.TargetConcurrentCallsPerChannel = 4);
        leases.Add(PoolInTime.Take(pool));
        _in.Pass(TimeSpan.FromSeconds(1));
        Assert.Equal(4, pool.GetStatistics().Channels);
        leases.ForEach(static lease => lease.Dispose());
    }

    [Fact]
    public async Task TheLine_AndTheWait_AreThoseOfNow()
    {
        var pool = New(static options => (options.MaxConcurrentCallsPerChannel, options.MaxPoolSize, options.MaxCallsWaiting) = (1, 1, 0));
        var lease = PoolInTime.Take(pool);
        Assert.True(PoolInTime.Come(pool, 1)[0].IsFaulted);
        Update(pool, static options => (options.MaxConcurrentCallsPerChannel, options.MaxPoolSize, options.AcquireTimeout) = (1, 1, TimeSpan.FromSeconds(5)));
        var waiting = pool.AcquireAsync().AsTask();
        Assert.False(waiting.IsCompleted);
        Update(pool, static options => (options.MaxConcurrentCallsPerChannel, options.MaxPoolSize, options.AcquireTimeout) = (1, 1, TimeSpan.Zero));
        await Assert.ThrowsAsync<ChannelPoolExhaustedException>(() => pool.AcquireAsync().AsTask());
        _in.Time.Advance(TimeSpan.FromSeconds(4));
        Assert.False(waiting.IsCompleted); // it keeps the time that it had
        _in.Time.Advance(TimeSpan.FromSeconds(1));
        await Assert.ThrowsAsync<ChannelPoolExhaustedException>(() => waiting.Soon());
        lease.Dispose();
    }

    [Fact]
    public async Task Probes_BeginAndEnd()
    {
        var pool = NewPool(channels: 1, probeDelay: Timeout.InfiniteTimeSpan);
        var silent = await CallAsync(pool);
        Pass(TimeSpan.FromSeconds(10));
        Assert.Empty(AllAsked);
        pool.UpdateOptions(new ChannelPoolOptions { ProbeDelay = TimeSpan.FromSeconds(2), PooledChannelIdleTimeout = Timeout.InfiniteTimeSpan, PooledChannelLifetime = Timeout.InfiniteTimeSpan });
        Pass(TimeSpan.FromSeconds(0.5));
        Assert.Single(AllAsked); // it has been silent for long
        AllAsked[0].Answer.SetResult();
        await Waiting.Until(() => !silent.Pooled.Pulse.IsSuspect);

        pool.UpdateOptions(new ChannelPoolOptions { ProbeDelay = Timeout.InfiniteTimeSpan, PooledChannelIdleTimeout = Timeout.InfiniteTimeSpan, PooledChannelLifetime = Timeout.InfiniteTimeSpan });
        Pass(TimeSpan.FromMinutes(1));
        Assert.Single(AllAsked);
        silent.Dispose();
    }

    [Fact]
    public void WhatChanges_IsTold_AndWhatCannot()
    {
        var pool = New();
        Update(pool, static _ => { });
        Assert.Empty(_in.Events);
        Assert.Empty(_log.Entries);

        Update(pool, static options =>
        {
            options.MaxPoolSize = 20;
            options.ProbeDelay = TimeSpan.FromSeconds(2.5);
            options.MaxConcurrentCallsPerChannel = 7;
            options.LeakDetectionThreshold = TimeSpan.FromMinutes(1);
            options.OnEvent = static _ => Assert.Fail("It is not the listener of the pool.");
        });
        const string Changes = "MaxPoolSize 100 → 20, MaxConcurrentCallsPerChannel null → 7, ProbeDelay Infinite → 00:00:02.5000000";
        var told = Assert.Single(_in.Events);
        Assert.Equal((ChannelPoolEventKind.OptionsChanged, Changes, 0), (told.Kind, told.Message, told.ChannelId));
        Assert.Equal(["OptionsChanged", "OptionsKept"], _log.Entries.Select(static entry => entry.Event));
        Assert.Contains(Changes, _log.Entries[0].Message, StringComparison.Ordinal);
        Assert.Contains("LeakDetectionThreshold 00:00:00 → 00:01:00", _log.Entries[1].Message, StringComparison.Ordinal);
    }

    [Fact]
    public void OptionsThatAreNotValid_ChangeNothing()
    {
        var pool = New();
        var exception = Assert.Throws<ArgumentException>(() => pool.UpdateOptions(new ChannelPoolOptions { MaxPoolSize = 5, MinPoolSize = 6 }));
        Assert.Contains("MinPoolSize (6) is larger than MaxPoolSize (5)", exception.Message, StringComparison.Ordinal);
        Assert.Throws<ArgumentNullException>(() => pool.UpdateOptions(null!));
        Assert.Equal(100, pool.State.Options.MaxPoolSize);
        Assert.Empty(_in.Events);
        pool.Dispose();
        Assert.Throws<ObjectDisposedException>(() => pool.UpdateOptions(new ChannelPoolOptions()));
    }

    /// <summary>Real threads: each lease comes back, nobody waits for ever, and in the end the sizes are those that were asked for last.</summary>
    [Fact]
    public async Task SizesThatChangeUnderLoad_LoseNothing()
    {
        using var pool = new ChannelPool(new StubPolicy(), new ChannelPoolOptions { MaxConcurrentCallsPerChannel = 2, MaxPoolSize = 4 });
        var callers = Enumerable.Range(0, 8).Select(caller => Task.Run(async () =>
        {
            for (var i = 0; i < 400; i++)
            {
                using var lease = await pool.AcquireAsync();
                await Task.Yield();
            }
        })).ToList();
        var random = new Random(7);
        var all = Task.WhenAll(callers);
        var updates = 0;
        while (!all.IsCompleted || updates < 50)
        {
            var most = random.Next(1, 8);
            pool.UpdateOptions(new ChannelPoolOptions
            {
                MaxPoolSize = most,
                MinPoolSize = random.Next(0, most + 1),
                MaxConcurrentCallsPerChannel = random.Next(1, 4),
                TargetConcurrentCallsPerChannel = random.Next(2) == 0 ? null : random.Next(1, 4),
            });
            updates++;
            await Task.Yield();
        }

        await all.Soon();
        pool.UpdateOptions(new ChannelPoolOptions { MaxPoolSize = 1 });
        await Waiting.Until(() => pool.GetStatistics() is { Channels: <= 1, DrainingChannels: 0, CallsInFlight: 0, CallsWaiting: 0 });
    }

    private ChannelPool New(Action<ChannelPoolOptions>? configure = null) => _in.New(options =>
    {
        options.LoggerFactory = _log;
        configure?.Invoke(options);
    });

    private static ChannelPool Update(ChannelPool pool, Action<ChannelPoolOptions> change)
    {
        var options = new ChannelPoolOptions
        {
            AcquireTimeout = Timeout.InfiniteTimeSpan,
            PooledChannelIdleTimeout = Timeout.InfiniteTimeSpan,
            PooledChannelLifetime = Timeout.InfiniteTimeSpan,
            ProbeDelay = Timeout.InfiniteTimeSpan,
        };
        change(options);
        pool.UpdateOptions(options);
        return pool;
    }
}

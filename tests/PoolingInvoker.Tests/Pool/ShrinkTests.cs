namespace PoolingInvoker.Tests.Pool;

/// <summary>What becomes of channels that the load does not need any more.</summary>
public sealed class ShrinkTests(ITestOutputHelper output) : IDisposable
{
    private readonly PoolInTime _in = new();

    public void Dispose() => _in.Dispose();

    [Theory]
    [InlineData(1)]
    [InlineData(3)]
    public void WhenTheLoadFalls_CallsKeepToFewChannels_AndTheOthersClose(int min)
    {
        var pool = NewPool(min);
        var leases = Hold(pool, 60);
        _in.Pass(TimeSpan.FromSeconds(1));
        PoolInTime.Answer(pool);
        Assert.Equal(5, pool.GetStatistics().Channels);
        Answer(leases);

        // Two calls at a time, all the time: at first they are spread, then the pool sees that it needs less.
        Assert.Equal(5, UsedFor(pool, TimeSpan.FromSeconds(20)).Count);
        _in.Pass(TimeSpan.FromMinutes(1.5), TimeSpan.FromSeconds(1));
        var kept = UsedFor(pool, TimeSpan.FromMinutes(8));
        Assert.Equal(min, kept.Count);
        Assert.Equal(5, pool.GetStatistics().Channels);

        // What was set aside has been idle for 10 minutes.
        Assert.Equal(kept, UsedFor(pool, TimeSpan.FromMinutes(2.5)));
        Assert.Equal(min, pool.GetStatistics().Channels);
        Assert.Equal(5 - min, _in.Events.Count(static told => told.Kind == ChannelPoolEventKind.Retired));
        UsedFor(pool, TimeSpan.FromHours(2));
        _in.Pass(TimeSpan.FromHours(2), TimeSpan.FromSeconds(30));
        Assert.Equal(min, pool.GetStatistics().Channels);
        Assert.Equal(5, pool.GetStatistics().ChannelsCreated);
    }

    [Fact]
    public void WhenTheLoadComesBack_WhatWasSetAsideServesIt()
    {
        var pool = NewPool(min: 1);
        Answer(Hold(pool, 60, TimeSpan.FromSeconds(1)));
        PoolInTime.Answer(pool);
        UsedFor(pool, TimeSpan.FromMinutes(3));
        Assert.Single(UsedFor(pool, TimeSpan.FromSeconds(1)));

        var leases = Hold(pool, 60);
        Assert.Equal(5, leases.DistinctBy(static lease => lease.Pooled).Count()); // at once, and none is made
        _in.Pass(TimeSpan.FromSeconds(1));
        Assert.Equal(5, pool.GetStatistics().ChannelsCreated);
    }

    [Theory]
    [InlineData(12, 1)]
    [InlineData(12, 20)]
    [InlineData(12, 60)]
    [InlineData(12, 240)]
    [InlineData(12, 540)]
    [InlineData(24, 1)]
    [InlineData(24, 20)]
    [InlineData(24, 60)]
    [InlineData(24, 240)]
    [InlineData(24, 540)]
    public void ALoadAtTheEdge_DoesNotMakeAndCloseChannelsOverAndOver(int calls, int seconds)
    {
        var random = new Random(1);
        var pool = NewPool(min: 1);
        var leases = Hold(pool, calls);
        var period = TimeSpan.FromSeconds(seconds);
        var step = period < TimeSpan.FromSeconds(10) ? period / 4 : TimeSpan.FromSeconds(10);
        for (var since = _in.Time.GetTimestamp(); _in.Time.GetElapsedTime(since) < TimeSpan.FromHours(6);)
        {
            // One more or one less for each period, and of the others some end and some begin all the time.
            var wanted = calls + ((int)(_in.Time.GetElapsedTime(since) / period) % 2);
            for (var i = 0; i < 4 || leases.Count > wanted; i++)
            {
                var over = random.Next(leases.Count);
                leases[over].Return(LeaseOutcome.Answered);
                leases.RemoveAt(over);
                leases.AddRange(Hold(pool, wanted - leases.Count));
            }

            _in.Pass(TimeSpan.FromMilliseconds(200), TimeSpan.FromMilliseconds(50)); // long enough for a crowd to be seen
            _in.Time.Advance(step - TimeSpan.FromMilliseconds(200));
        }

        var statistics = pool.GetStatistics();
        output.WriteLine($"{calls} and {calls + 1} calls by turns of {seconds} s, for 6 hours: {statistics.ChannelsCreated} channels made, {statistics.Channels} there");
        Assert.Equal((calls / 12) + 1, statistics.ChannelsCreated);
    }

    [Fact]
    public void AnIdlePool_KeepsItsMinimum()
    {
        var pool = NewPool(min: 3);
        Answer(Hold(pool, 60, TimeSpan.FromSeconds(1)));
        _in.Pass(TimeSpan.FromHours(3), TimeSpan.FromSeconds(30));
        Assert.Equal((3, 5L), (pool.GetStatistics().Channels, pool.GetStatistics().ChannelsCreated));
        Assert.Equal(3, _in.Open);
    }

    [Fact]
    public void WithAMinimumOfZero_AllClose_AndTheNextCallMakesOne()
    {
        var pool = NewPool(min: 0);
        Answer(Hold(pool, 3));
        _in.Pass(TimeSpan.FromMinutes(11), TimeSpan.FromSeconds(30));
        Assert.Equal((0, 0), (pool.GetStatistics().Channels, _in.Open));
        Answer(Hold(pool, 3));
        Assert.Equal(1, pool.GetStatistics().Channels);
    }

    private static void Answer(List<ChannelLease> leases) => leases.ForEach(static lease => lease.Return(LeaseOutcome.Answered));

    private List<ChannelLease> Hold(ChannelPool pool, int count, TimeSpan time = default)
    {
        List<ChannelLease> leases = [.. Enumerable.Range(0, count).Select(_ => PoolInTime.Take(pool))];
        _in.Pass(time);
        return leases;
    }

    // The channels that are used while there are two calls at a time.
    private HashSet<PooledChannel> UsedFor(ChannelPool pool, TimeSpan time)
    {
        HashSet<PooledChannel> used = [];
        for (var since = _in.Time.GetTimestamp(); _in.Time.GetElapsedTime(since) < time;)
        {
            var leases = Hold(pool, 2);
            used.UnionWith(leases.Select(static lease => lease.Pooled));
            _in.Time.Advance(TimeSpan.FromMilliseconds(500));
            Answer(leases);
        }

        return used;
    }

    private ChannelPool NewPool(int min) => _in.New(options => (options.MinPoolSize, options.PooledChannelIdleTimeout) = (min, TimeSpan.FromMinutes(10)));
}

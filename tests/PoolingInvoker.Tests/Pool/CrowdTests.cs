namespace PoolingInvoker.Tests.Pool;

/// <summary>Channels that have room, and are made because the others carry much, or bulk.</summary>
public sealed class CrowdTests(ITestOutputHelper output) : IDisposable
{
    private static readonly TimeSpan Look = TimeSpan.FromMilliseconds(250); // how often the pool looks at its streams

    private readonly PoolInTime _in = new();

    public void Dispose() => _in.Dispose();

    [Fact]
    public void CallsThatStay_GetAsManyChannelsAsTheyShouldHave_AfterATenthOfASecond()
    {
        var pool = NewPool();
        var leases = Take(pool, 64);
        Assert.Equal(1, pool.GetStatistics().Channels);
        _in.Pass(TimeSpan.FromMilliseconds(90));
        Assert.Equal(1, pool.GetStatistics().Channels);
        var took = TimeSpan.FromMilliseconds(90) + _in.PassUntil(() => pool.GetStatistics().Channels == 6, TimeSpan.FromSeconds(1));
        output.WriteLine($"64 calls on one channel: 6 channels after {took.TotalMilliseconds} ms");
        Assert.InRange(took.TotalSeconds, 0.1, 0.2);

        leases.AddRange(Take(pool, 8)); // 72 are what 6 should carry
        _in.Pass(TimeSpan.FromSeconds(10));
        Assert.Equal(6, pool.GetStatistics().ChannelsCreated);
    }

    [Fact]
    public void ABurstThatIsOverAtOnce_MakesNone()
    {
        var pool = NewPool();
        for (var i = 0; i < 20; i++)
        {
            var leases = Take(pool, 64);
            _in.Pass(TimeSpan.FromMilliseconds(50));
            Answer(leases);
            _in.Pass(TimeSpan.FromSeconds(1));
        }

        Assert.Equal(1, pool.GetStatistics().ChannelsCreated);
    }

    [Fact]
    public void WithoutATarget_OnlyAFullPoolGrows()
    {
        var pool = NewPool(static options => options.TargetConcurrentCallsPerChannel = null);
        _ = Take(pool, 100);
        _in.Pass(TimeSpan.FromSeconds(10));
        Assert.Equal(1, pool.GetStatistics().Channels);
        _ = Take(pool, 1);
        Assert.Equal(2, pool.GetStatistics().Channels);
    }

    [Fact]
    public void StreamsThatLast_AndCalls_HaveChannelsOfTheirOwn()
    {
        var pool = NewPool();
        var streams = Take(pool, 2, isStream: true);
        _in.Pass(3 * Look);
        CallFor(pool, TimeSpan.FromSeconds(1));
        Assert.Equal(2, pool.GetStatistics().Channels);

        var ofStreams = streams[0].Pooled;
        var calls = Take(pool, 12);
        Assert.All(calls, lease => Assert.NotSame(ofStreams, lease.Pooled));
        Answer(calls);
        streams.AddRange(Take(pool, 10, isStream: true));
        Assert.All(streams, lease => Assert.Same(ofStreams, lease.Pooled));
        _in.Pass(3 * Look);
        CallFor(pool, TimeSpan.FromSeconds(1));
        Assert.Equal(2, pool.GetStatistics().Channels); // 12 streams are what one channel should carry
    }

    [Theory]
    [InlineData(20, 30)] // one after the other, with a pause
    [InlineData(20, 500)] // now and then
    public void CallsThatAreFew_GetAChannelWithoutStreamsToo(int callMs, int pauseMs)
    {
        var pool = NewPool();
        var stream = Take(pool, 1, isStream: true)[0];
        _in.Pass(3 * Look);
        var shared = CallFor(pool, TimeSpan.FromSeconds(10), callMs, pauseMs);
        output.WriteLine($"Calls of {callMs} ms with pauses of {pauseMs} ms: {shared.Count(one => one == stream.Pooled)} of {shared.Count} beside the stream");
        Assert.DoesNotContain(stream.Pooled, shared.Skip(shared.Count / 2));
    }

    [Fact]
    public void StreamsThatLast_AndCalls_ShareAChannel_WhereThereMayBeNoOther()
    {
        var pool = NewPool(static options => options.MaxPoolSize = 1);
        var streams = Take(pool, 2, isStream: true);
        _in.Pass(3 * Look);
        CallFor(pool, TimeSpan.FromSeconds(1));
        Answer(Take(pool, 50));
        Answer(streams);
        Assert.Equal(1, pool.GetStatistics().ChannelsCreated);
    }

    [Fact]
    public void StreamsAndCallsTogether_KeepWithinTheMaximum()
    {
        var pool = NewPool(static options => options.MaxPoolSize = 3);
        _ = Take(pool, 60, isStream: true);
        for (var i = 0; i < 20; i++)
        {
            _in.Pass(Look);
            CallFor(pool, TimeSpan.FromMilliseconds(200));
        }

        Assert.Equal(3, pool.GetStatistics().Channels);
        _ = Take(pool, 200); // as long as there is room somewhere nobody waits
        Assert.Equal(260, pool.GetStatistics().CallsInFlight);
    }

    [Fact]
    public void ShortStreams_AreSpreadLikeCalls()
    {
        var pool = _in.New(static options => options.MinPoolSize = 10, new Random(1));
        Take(pool, 10).ForEach(static lease => lease.Return(LeaseOutcome.Answered));
        for (var i = 0; i < 10; i++)
        {
            var mixed = Take(pool, 50, isStream: true);
            mixed.AddRange(Take(pool, 50));
            var onEach = pool.GetChannels().Select(static channel => channel.CallsInFlight).ToList();
            Assert.True(onEach.Max() - onEach.Min() <= 5, string.Join(", ", onEach));
            _in.Pass(TimeSpan.FromMilliseconds(80)); // over before they have been seen twice
            Answer(mixed);
            _in.Pass(TimeSpan.FromMilliseconds(420));
        }

        Assert.Equal(10, pool.GetStatistics().Channels);
    }

    [Fact]
    public void AStreamThatLasts_IsKnown_AmongManyThatAreShort()
    {
        var pool = NewPool(static options => options.MaxPoolSize = 2);
        var stream = Take(pool, 1, isStream: true)[0];
        _in.Pass(3 * Look);
        CallFor(pool, TimeSpan.FromSeconds(1));
        Assert.Equal(2, pool.GetStatistics().Channels);
        for (var i = 0; i < 50; i++)
        {
            var shorts = Take(pool, 5, isStream: true);
            var call = Take(pool, 1);
            Assert.NotSame(stream.Pooled, call[0].Pooled);
            _in.Pass(TimeSpan.FromMilliseconds(30));
            Answer(shorts);
            Answer(call);
        }
    }

    [Fact]
    public void AStreamThatHasLasted_AndIsOver_MakesNoChannel_WhateverCameMeanwhile()
    {
        var pool = NewPool();
        var stream = Take(pool, 1, isStream: true);
        _ = Take(pool, 6);
        _in.Pass(TimeSpan.FromMilliseconds(510)); // a hiccup: it has been there for two looks
        Assert.Equal(1, stream[0].Pooled.LongStreams);
        for (var i = 0; i < 24; i++)
        {
            var shorts = Take(pool, 1, isStream: true);
            Answer(stream);
            _in.Pass(TimeSpan.FromMilliseconds(10));
            stream = shorts;
        }

        Answer(stream);
        _in.Pass(TimeSpan.FromSeconds(1));
        Assert.Equal(1, pool.GetStatistics().ChannelsCreated);
    }

    [Fact]
    public void QuietStreams_DoNotEachMakeAChannel()
    {
        var pool = NewPool();
        var streams = Take(pool, 1_000, isStream: true);
        for (var i = 0; i < 100; i++)
        {
            _in.Pass(TimeSpan.FromSeconds(1), Look);
            CallFor(pool, TimeSpan.FromMilliseconds(200));
        }

        var channels = pool.GetStatistics().Channels;
        output.WriteLine($"1,000 streams, and a call now and then: {channels} channels");
        Assert.InRange(channels, 10, 86); // 12 on each, and some for calls
        Answer(streams);
    }

    private static List<ChannelLease> Take(ChannelPool pool, int count, bool isStream = false) =>
        [.. Enumerable.Range(0, count).Select(_ => PoolInTime.Take(pool, isStream))];

    private static void Answer(List<ChannelLease> leases) => leases.ForEach(static lease => lease.Return(LeaseOutcome.Answered));

    // One call after the other. Gives the channels that they were on.
    private List<PooledChannel> CallFor(ChannelPool pool, TimeSpan time, int callMs = 10, int pauseMs = 0)
    {
        List<PooledChannel> channels = [];
        for (var since = _in.Time.GetTimestamp(); _in.Time.GetElapsedTime(since) < time;)
        {
            var lease = PoolInTime.Take(pool);
            channels.Add(lease.Pooled);
            _in.Pass(TimeSpan.FromMilliseconds(callMs));
            lease.Return(LeaseOutcome.Answered);
            _in.Pass(TimeSpan.FromMilliseconds(pauseMs));
        }

        return channels;
    }

    private ChannelPool NewPool(Action<ChannelPoolOptions>? configure = null) => _in.New(configure);
}

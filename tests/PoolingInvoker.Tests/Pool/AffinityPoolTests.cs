using System.Net;
using PoolingInvoker.Testing;

namespace PoolingInvoker.Tests.Pool;

/// <summary>Where keys stay and where they move as channels and endpoints come, fail and go, in virtual time.</summary>
public sealed class AffinityPoolTests : IDisposable
{
    private static readonly string[] Keys = [.. Enumerable.Range(0, 500).Select(static number => $"user-{number}")];
    private static readonly TimeSpan Lifetime = TimeSpan.FromMinutes(30);
    private static readonly ChannelEndpoint[] Servers = [.. Enumerable.Range(1, 4).Select(static number => new ChannelEndpoint(new IPEndPoint(new IPAddress([10, 0, 0, (byte)number]), 5000)))];

    private readonly PoolInTime _in = new();

    public void Dispose() => _in.Dispose();

    [Fact]
    public async Task AChannelThatFails_GivesItsKeys_ToTheOneThatTakesItsPlace()
    {
        var pool = await NewPoolAsync(channels: 5);
        var before = Places(pool);
        var lease = Take(pool, Keys[0]);
        var failing = lease.Pooled;
        var own = Keys.Where(key => before[key] == failing).ToList();
        lease.Return(LeaseOutcome.ChannelFailed);
        Assert.Equal(1, pool.GetStatistics().ChannelsReplaced);
        var after = Places(pool);
        Assert.Single(own.Select(key => after[key]).Distinct());
        Assert.NotSame(failing, after[own[0]]);
        Assert.All(Keys.Except(own), key => Assert.Same(before[key], after[key]));
        Assert.Equal(0, pool.GetStatistics().AffinityMoves); // a channel that has gone is nobody's
    }

    /// <summary>A few channels are made anew at a time: the keys of the others stay.</summary>
    [Fact]
    public async Task ChannelsThatGrowOld_KeepTheirKeysUntilTheNewOneIsThere()
    {
        var pool = await NewPoolAsync(channels: 4, static options => options.PooledChannelLifetime = Lifetime);
        var places = Places(pool);
        var replaced = 0L;
        while (replaced < 8)
        {
            _in.Time.Advance(TimeSpan.FromSeconds(10));
            var now = Places(pool);
            var gone = pool.GetStatistics().ChannelsReplaced - replaced;
            var moved = Keys.GroupBy(key => (Old: places[key], New: now[key])).Where(static keys => keys.Key.Old != keys.Key.New).ToList();
            Assert.Equal(gone, moved.Count); // all keys of each went to one
            (places, replaced) = (now, replaced + gone);
        }

        Assert.Equal(0, pool.GetStatistics().AffinityMoves);
    }

    [Fact]
    public async Task WhileItIsReplaced_ItsKeysAreElsewhere_AndCountAsMoved()
    {
        var pool = await NewPoolAsync(channels: 3, options => options.PrimeCallback = _in.PrimeByHand);
        var lease = Take(pool, Keys[0]);
        var failing = lease.Pooled;
        lease.Return(LeaseOutcome.ChannelFailed);
        var meanwhile = Take(pool, Keys[0]);
        Assert.NotSame(failing, meanwhile.Pooled);
        Assert.Equal(1, pool.GetStatistics().AffinityMoves);
        _in.Primes[^1].Ends.SetResult();
        await Waiting.Until(() => pool.GetStatistics().ChannelsReplaced == 1);
        var after = Take(pool, Keys[0]);
        Assert.NotSame(meanwhile.Pooled, after.Pooled);
        Assert.Equal(1, pool.GetStatistics().AffinityMoves);
        meanwhile.Dispose();
        after.Dispose();
    }

    [Fact]
    public async Task ASilentChannel_GivesWay_AndIsBackWithItsSignOfLife()
    {
        var pool = await NewPoolAsync(channels: 3);
        var own = Take(pool, Keys[0]);
        Signal(pool, own.Pooled, ChannelSignal.Silent);
        var other = Take(pool, Keys[0]);
        Assert.NotSame(own.Pooled, other.Pooled);
        Signal(pool, own.Pooled, ChannelSignal.Life);
        var again = Take(pool, Keys[0]);
        Assert.Same(own.Pooled, again.Pooled);
        Assert.Equal((3, 1), (pool.GetStatistics().AffinityCalls, pool.GetStatistics().AffinityMoves));
        foreach (var lease in (ChannelLease[])[own, other, again])
        {
            lease.Dispose();
        }
    }

    [Fact]
    public async Task ACallThatWaits_GetsTheFirstRoomThereIs_AndItsOwnChannelIfThatHasSome()
    {
        var pool = await NewPoolAsync(channels: 2, static options => options.MaxConcurrentCallsPerChannel = 1);
        var own = Take(pool, Keys[0]);
        var other = Take(pool, Keys[0]);
        var busy = other.Pooled;
        var waiting = PoolInTime.Come(pool, 1, key: Keys[0]);
        other.Dispose();
        var granted = (await PoolInTime.ServedAsync(pool, waiting))[0];
        Assert.Same(busy, granted.Pooled);
        Assert.Equal((3, 2), (pool.GetStatistics().AffinityCalls, pool.GetStatistics().AffinityMoves));
        own.Dispose();
        granted.Dispose();
    }

    [Fact]
    public async Task HowManyHaveMoved_IsToldOnceInAWhile()
    {
        var pool = await NewPoolAsync(channels: 2, static options => (options.MaxConcurrentCallsPerChannel, options.PooledChannelIdleTimeout) = (1, TimeSpan.FromHours(1)));
        for (var round = 0; round < 3; round++)
        {
            var (own, other) = (Take(pool, Keys[0]), Take(pool, Keys[0]));
            own.Return(LeaseOutcome.Answered);
            other.Return(LeaseOutcome.Answered);
        }

        Assert.DoesNotContain(_in.Events, static one => one.Kind == ChannelPoolEventKind.AffinityMoved);
        _in.Pass(TimeSpan.FromMinutes(2), step: TimeSpan.FromSeconds(10));
        var told = Assert.Single(_in.Events, static one => one.Kind == ChannelPoolEventKind.AffinityMoved);
        Assert.Equal("3 of the last 6 calls with a key went to another channel than that of their key", told.Message);
        Assert.Equal((6, 3), (pool.GetStatistics().AffinityCalls, pool.GetStatistics().AffinityMoves));
    }

    [Fact]
    public async Task KeyedStreams_ShareTheChannelOfTheirKey()
    {
        var pool = await NewPoolAsync(channels: 4);
        var streams = Enumerable.Range(0, 5).Select(_ => Take(pool, Keys[0], isStream: true)).ToList();
        var call = Take(pool, Keys[0]);
        Assert.Single(streams.Append(call).Select(static lease => lease.Pooled).Distinct());
        streams.Append(call).ToList().ForEach(static lease => lease.Dispose());
    }

    [Fact]
    public async Task WhereCallsWithAKeyCome_ThePoolKeepsTheirChannels()
    {
        var pool = await NewPoolAsync(channels: 1, static options => (options.MaxPoolSize, options.MaxConcurrentCallsPerChannel, options.PooledChannelIdleTimeout) = (3, 10, TimeSpan.FromMinutes(10)));
        var burst = Enumerable.Range(0, 30).Select(_ => PoolInTime.Take(pool)).ToList();
        burst.ForEach(static lease => lease.Return(LeaseOutcome.Answered));
        Assert.Equal(3, pool.GetStatistics().Channels);
        var places = Places(pool);
        for (var minute = 0; minute < 60; minute++)
        {
            _in.Time.Advance(TimeSpan.FromMinutes(1));
            Assert.Equal(places, Places(pool));
        }

        _in.Time.Advance(TimeSpan.FromMinutes(11));
        Assert.Equal(1, pool.GetStatistics().Channels); // as nobody calls
    }

    [Fact]
    public async Task AnEndpointThatIsLost_AndHeals_MovesItsKeysAlone()
    {
        var policy = new EndpointPolicy(_in.Time);
        using var pool = NewPool(policy, Servers);
        await pool.ConnectAsync().Soon();
        var before = Endpoints(pool, policy);
        var lost = before[Keys[0]];
        policy.Dead.Add(lost);
        foreach (var channel in pool.State.Active.Where(channel => policy.EndpointOf(channel.Channel) == lost).ToList())
        {
            using var section = pool.State.Enter();
            channel.Signal(ChannelSignal.ChannelFailed);
            pool.State.Active.Update(channel);
        }

        var during = Endpoints(pool, policy);
        Assert.DoesNotContain(lost, during.Values);
        Assert.All(Keys, key => Assert.True(before[key] == lost || before[key] == during[key]));
        Assert.InRange(Keys.Count(key => before[key] == lost) / (Keys.Length / 4.0), 0.7, 1.3);
        Assert.Equal(3, Keys.Where(key => before[key] == lost).Select(key => during[key]).Distinct().Count());

        policy.Dead.Clear();
        _in.PassUntil(() => Endpoints(pool, policy).SequenceEqual(before), TimeSpan.FromMinutes(2), TimeSpan.FromSeconds(1));
    }

    [Fact]
    public async Task ClientsOfOneService_AgreeOnTheEndpointOfAKey_AlsoAsTheListChanges()
    {
        var policy = new EndpointPolicy(_in.Time);
        using var one = NewPool(policy, Servers[..3]);
        using var other = NewPool(policy, [.. Servers[..3].Reverse()], static options => options.MinPoolSize = 7);
        await one.ConnectAsync().Soon();
        await other.ConnectAsync().Soon();
        var before = Endpoints(one, policy);
        Assert.Equal(before, Endpoints(other, policy));
        foreach (var pool in (ChannelPool[])[one, other])
        {
            pool.Balancer!.EndpointsChanged(Servers);
            _in.PassUntil(() => pool.GetChannels().Select(static channel => channel.Endpoint).Distinct().Count() == 4, TimeSpan.FromSeconds(10), TimeSpan.FromSeconds(1));
        }

        var after = Endpoints(one, policy);
        Assert.Equal(after, Endpoints(other, policy));
        Assert.All(Keys, key => Assert.True(after[key] == before[key] || after[key] == Servers[3]));
        Assert.InRange(Keys.Count(key => after[key] != before[key]) / (Keys.Length / 4.0), 0.7, 1.3);
    }

    private static ChannelLease Take(ChannelPool pool, string key, bool isStream = false) => PoolInTime.Take(pool, isStream, key);

    private static void Signal(ChannelPool pool, PooledChannel channel, ChannelSignal signal)
    {
        using var section = pool.State.Enter();
        channel.Signal(signal);
        pool.State.Active.Update(channel);
    }

    /// <summary>The channel that a call with each key gets, one after the other.</summary>
    private static Dictionary<string, PooledChannel> Places(ChannelPool pool) => Keys.ToDictionary(static key => key, key =>
    {
        var lease = Take(pool, key);
        var channel = lease.Pooled;
        lease.Return(LeaseOutcome.Answered);
        return channel;
    });

    private static Dictionary<string, ChannelEndpoint> Endpoints(ChannelPool pool, EndpointPolicy policy) =>
        Places(pool).ToDictionary(static place => place.Key, place => policy.EndpointOf(place.Value.Channel));

    private async Task<ChannelPool> NewPoolAsync(int channels, Action<ChannelPoolOptions>? configure = null)
    {
        var pool = _in.New(options =>
        {
            (options.MinPoolSize, options.MaxPoolSize) = (channels, channels);
            configure?.Invoke(options);
        });
        var connecting = pool.ConnectAsync();
        foreach (var priming in _in.Primes)
        {
            priming.Ends.SetResult();
        }

        await connecting.Soon();
        PoolInTime.Answer(pool);
        return pool;
    }

    private ChannelPool NewPool(EndpointPolicy policy, IReadOnlyList<ChannelEndpoint> servers, Action<ChannelPoolOptions>? configure = null)
    {
        var options = new ChannelPoolOptions { TimeProvider = _in.Time, Queue = InlineWork.Queue, PrimeCallback = policy.ConnectAsync, ProbeDelay = Timeout.InfiniteTimeSpan, PooledChannelLifetime = Timeout.InfiniteTimeSpan };
        configure?.Invoke(options);
        return new ChannelPool(policy, options.ValidatedCopy(), Random.Shared, new EndpointList(servers, Name: null, Resolve: null));
    }
}

using System.Net;
using Microsoft.Extensions.Time.Testing;

namespace PoolingInvoker.Tests.Pool;

/// <summary>Where the keys of calls lead, and where they move.</summary>
public sealed class ChannelAffinityTests(ITestOutputHelper output) : IDisposable
{
    private static readonly ulong[] Keys = [.. Enumerable.Range(0, 10_000).Select(static number => ChannelAffinity.KeyOf($"user-{number}"))];

    private readonly List<PooledChannel> _made = [];

    public void Dispose() => _made.ForEach(static channel => channel.Channel.Dispose());

    /// <summary>Clients of all versions agree on these numbers: a server has a key in its cache once.</summary>
    [Theory]
    [InlineData(null, 0)]
    [InlineData("", 0)]
    [InlineData("a", 0x82A2A958A9BECE5B)]
    [InlineData("user-1", 0x41A2FCA5C68401C5)]
    [InlineData("Zoë", 0xA6D04A0EB47DCF32)]
    public void AKey_IsTheSameNumberForEver(string? text, ulong expected) => Assert.Equal(expected, ChannelAffinity.KeyOf(text));

    [Theory]
    [InlineData(2, 1)]
    [InlineData(3, 1)]
    [InlineData(10, 1)]
    [InlineData(20, 1)]
    [InlineData(3, 4)]
    [InlineData(0, 4)]
    [InlineData(0, 20)]
    public void Keys_AreEvenOverEndpoints_AndOverChannels(int endpoints, int channels)
    {
        var pool = NewPool(endpoints, channels);
        var perChannel = Keys.GroupBy(key => Choice(pool, key)).Select(static keys => keys.Count()).ToList();
        var perEndpoint = Keys.GroupBy(key => Choice(pool, key).Server).Select(static keys => keys.Count()).ToList();
        output.WriteLine($"max/mean {Skew(perEndpoint):0.000} of endpoints, {Skew(perChannel):0.000} of channels");
        Assert.Equal(Math.Max(1, endpoints) * channels, perChannel.Count);
        Assert.InRange(Skew(perEndpoint), 1, 1.25);
        Assert.InRange(Skew(perChannel), 1, 1.25);
    }

    [Theory]
    [InlineData(2, 1)]
    [InlineData(4, 1)]
    [InlineData(10, 1)]
    [InlineData(4, 3)]
    public void OneOfTheEndpointsIsLost_OnlyItsKeysMove_AndComeBack(int endpoints, int channels)
    {
        var pool = NewPool(endpoints, channels);
        var before = Keys.ToDictionary(static key => key, key => Choice(pool, key));
        var lost = pool.Active.First().Server;
        var gone = pool.Active.Where(channel => channel.Server == lost).ToList();
        gone.ForEach(pool.Active.Remove);
        var after = Keys.ToDictionary(static key => key, key => Choice(pool, key));
        var moved = Keys.Where(key => before[key] != after[key]).ToList();
        Assert.All(moved, key => Assert.Same(lost, before[key].Server));
        Assert.InRange(moved.Count * endpoints / (double)Keys.Length, 0.75, 1.25);
        Assert.InRange(Skew(Keys.GroupBy(key => after[key].Server).Select(static keys => keys.Count()).ToList()), 1, 1.25); // what it had is for all

        gone.ForEach(pool.Active.Add);
        Assert.All(Keys, key => Assert.Same(before[key], Choice(pool, key)));
    }

    [Theory]
    [InlineData(1, 1)]
    [InlineData(4, 1)]
    [InlineData(10, 1)]
    [InlineData(4, 3)]
    public void OneMoreEndpoint_TakesItsShareOfEach(int endpoints, int channels)
    {
        var pool = NewPool(endpoints, channels);
        var before = Keys.ToDictionary(static key => key, key => Choice(pool, key));
        var added = NewEndpoint(200);
        var channel = New(added);
        pool.Active.Add(channel);
        var moved = Keys.Where(key => Choice(pool, key) != before[key]).ToList();
        Assert.All(moved, key => Assert.Same(channel, Choice(pool, key)));
        Assert.InRange(moved.Count * (endpoints + 1) / (double)Keys.Length, 0.75, 1.25);
        var fromEach = moved.GroupBy(key => before[key].Server).Select(static keys => keys.Count()).ToList();
        Assert.Equal(endpoints, fromEach.Count);
        Assert.InRange(Skew(fromEach), 1, 1.5);
    }

    [Fact]
    public void OneMoreChannel_AndOneLess_MoveTheirShare()
    {
        var pool = NewPool(endpoints: 0, channels: 9);
        var before = Keys.ToDictionary(static key => key, key => Choice(pool, key));
        var tenth = New();
        pool.Active.Add(tenth);
        var moved = Keys.Where(key => Choice(pool, key) != before[key]).ToList();
        Assert.All(moved, key => Assert.Same(tenth, Choice(pool, key)));
        Assert.InRange(moved.Count / (double)Keys.Length, 0.08, 0.12);
        pool.Active.Remove(tenth);
        Assert.All(Keys, key => Assert.Same(before[key], Choice(pool, key)));
    }

    [Fact]
    public void AChannelThatTakesThePlaceOfAnother_HasItsKeys_AndNoOthers()
    {
        var pool = NewPool(endpoints: 0, channels: 5);
        var before = Keys.ToDictionary(static key => key, key => Choice(pool, key));
        var old = pool.Active.First();
        var replacement = New();
        replacement.Seat = old.Seat;
        pool.Active.Add(replacement);
        pool.Active.Remove(old);
        Assert.All(Keys, key => Assert.Same(before[key] == old ? replacement : before[key], Choice(pool, key)));
    }

    /// <summary>Clients have channels of different numbers, and learn of endpoints in an order of their own.</summary>
    [Fact]
    public void AllClients_HaveTheSameEndpointForAKey()
    {
        var (one, other) = (NewPool(endpoints: 0, channels: 0), NewPool(endpoints: 0, channels: 0));
        foreach (var number in (int[])[5, 2, 4, 1, 3])
        {
            var (ofOne, ofOther) = (NewEndpoint(number), NewEndpoint(6 - number));
            for (var i = 0; i < 6; i++)
            {
                (i < number ? one : other).Active.Add(New(i < number ? ofOne : ofOther));
            }
        }

        Assert.Equal(15, one.Active.Count);
        Assert.All(Keys, key => Assert.Equal(Choice(one, key).Server!.Endpoint, Choice(other, key).Server!.Endpoint));
    }

    [Fact]
    public void WhatIsNotGoodGivesWay_ToTheSameNextOne_AndIsBackWhenItIs()
    {
        var pool = NewPool(endpoints: 3, channels: 2);
        foreach (var key in Keys[..200])
        {
            var first = Choice(pool, key);
            var second = pool.Affinity.Pick(key, avoid: first)!;
            Assert.NotSame(first, second);
            Assert.Same(first.Server, second.Server); // as long as the endpoint has another one
            foreach (var health in (ChannelHealth[])[ChannelHealth.Suspect, ChannelHealth.Penalized, ChannelHealth.Broken, ChannelHealth.GivenUp])
            {
                first.Health = health;
                pool.Active.Update(first);
                Assert.Same(second, Choice(pool, key));
            }

            first.Health = ChannelHealth.Healthy;
            first.State = PooledChannelState.Replacing;
            pool.Active.Update(first);
            Assert.Same(second, Choice(pool, key));

            second.Health = ChannelHealth.Suspect;
            pool.Active.Update(second);
            Assert.NotSame(first.Server, Choice(pool, key).Server);

            (first.State, second.Health) = (PooledChannelState.Active, ChannelHealth.Healthy);
            pool.Active.Update(first);
            pool.Active.Update(second);
            Assert.Same(first, Choice(pool, key));
        }
    }

    [Fact]
    public void WhereNoneIsGood_ThereIsNoChoice()
    {
        var pool = NewPool(endpoints: 0, channels: 0);
        Assert.Null(pool.Affinity.Pick(Keys[0], avoid: null));
        var only = New();
        pool.Active.Add(only);
        Assert.Null(pool.Affinity.Pick(Keys[0], avoid: only));
        only.Health = ChannelHealth.Suspect;
        pool.Active.Update(only);
        Assert.Null(pool.Affinity.Pick(Keys[0], avoid: null));
    }

    /// <summary>One key makes so many calls at a time: how many there are on the channel that has most.</summary>
    [Theory]
    [InlineData(1.25, 1, 4, 1, 1)]
    [InlineData(1.25, 1, 4, 4, 2)] // five quarters of the mean, and the next whole number
    [InlineData(1.25, 1, 4, 40, 13)]
    [InlineData(1.25, 1, 4, 100, 32)]
    [InlineData(1, 1, 4, 100, 25)]
    [InlineData(2, 1, 4, 100, 50)]
    [InlineData(double.PositiveInfinity, 1, 4, 100, 100)]
    [InlineData(1.25, 12, 4, 12, 12)] // no more than a channel should carry
    [InlineData(1.25, 12, 4, 13, 12)]
    [InlineData(1.25, 12, 4, 100, 32)]
    [InlineData(1.25, 12, 1, 50, 50)] // there is no other
    public void AHotKey_SpillsOver(double factor, int leastLoad, int channels, int calls, int expected)
    {
        var pool = NewPool(endpoints: 0, channels, factor, leastLoad);
        for (var i = 0; i < calls; i++)
        {
            Lease(pool, Keys[0]);
        }

        Assert.Equal(calls, pool.Active.Calls);
        Assert.Equal(expected, pool.Active.Max(static channel => channel.Leases));
        Assert.Equal((calls, calls - expected), (pool.Tally.AffinityCalls, pool.Tally.AffinityMoves));
    }

    [Fact]
    public void WhatSpillsOver_GoesToTheNextEndpoints_InOrder()
    {
        var pool = NewPool(endpoints: 6, channels: 1);
        var key = Keys[0];
        List<PooledChannel> order = [Choice(pool, key)];
        while (order.Count < 6)
        {
            order[^1].Health = ChannelHealth.Broken;
            pool.Active.Update(order[^1]);
            order.Add(Choice(pool, key));
        }

        foreach (var channel in order)
        {
            channel.Health = ChannelHealth.Healthy;
            pool.Active.Update(channel);
        }

        for (var i = 0; i < 40; i++)
        {
            Lease(pool, key);
            Assert.Equal(order.Select(static channel => channel.Leases).OrderDescending(), order.Select(static channel => channel.Leases));
        }
    }

    [Fact]
    public void ManyKeys_LoadChannelsEvenly()
    {
        var pool = NewPool(endpoints: 5, channels: 2);
        Array.ForEach(Keys[..400], key => Lease(pool, key));
        output.WriteLine($"moved {pool.Tally.AffinityMoves} of {pool.Tally.AffinityCalls}, {string.Join(' ', pool.Active.Select(static channel => channel.Leases))}");
        Assert.All(pool.Active, static channel => Assert.InRange(channel.Leases, 28, 50));
        Assert.InRange(pool.Tally.AffinityMoves, 0, 40);
    }

    private static PooledChannel Choice((ActiveChannels Active, ChannelAffinity Affinity, PoolTally Tally) pool, ulong key) => pool.Affinity.Pick(key, avoid: null)!;

    private static void Lease((ActiveChannels Active, ChannelAffinity Affinity, PoolTally Tally) pool, ulong key)
    {
        var channel = Choice(pool, key);
        pool.Affinity.Count(key, channel);
        pool.Active.Leased(channel, isStream: false);
    }

    private static double Skew(IReadOnlyCollection<int> numbers) => numbers.Max() / numbers.Average();

    private (ActiveChannels Active, ChannelAffinity Affinity, PoolTally Tally) NewPool(int endpoints, int channels, double factor = 1.25, int leastLoad = 1)
    {
        var active = new ActiveChannels(new Random(1), new ChannelTarget(12));
        foreach (var endpoint in Enumerable.Range(1, Math.Max(1, endpoints)).Select(number => endpoints == 0 ? null : NewEndpoint(number)))
        {
            for (var i = 0; i < channels; i++)
            {
                active.Add(New(endpoint));
            }
        }

        var options = new ChannelPoolOptions { AffinityLoadFactor = factor, TargetConcurrentCallsPerChannel = leastLoad };
        var tally = new PoolTally();
        return (active, new ChannelAffinity(active, () => options, tally), tally);
    }

    private static PoolEndpoint NewEndpoint(int number)
    {
        var backoff = new ReconnectBackoff(new FakeTimeProvider(), new Random(1), TimeSpan.FromSeconds(1), TimeSpan.FromSeconds(1));
        return new PoolEndpoint(new ChannelEndpoint(new IPEndPoint(new IPAddress([10, 0, 0, (byte)number]), 5000)), new PoolPriority(0), seed: number, backoff, TimeProvider.System);
    }

    private PooledChannel New(PoolEndpoint? server = null)
    {
        var channel = new PooledChannel(_made.Count + 1, StubPolicy.NewChannel(), "stub", transport: null, mostCalls: 100, now: 0, Timeout.InfiniteTimeSpan)
        {
            Server = server,
            Health = ChannelHealth.Healthy,
        };
        _made.Add(channel);
        return channel;
    }
}

namespace PoolingInvoker.Tests.Pool;

/// <summary>The order of the channels, and the choice among them.</summary>
public sealed class ActiveChannelsTests : IDisposable
{
    private readonly List<PooledChannel> _made = [];

    public void Dispose() => _made.ForEach(static channel => channel.Channel.Dispose());

    [Fact]
    public void WhateverChanges_TheSectionsAreInOrder_AndThePickIsOneOfTheBest()
    {
        var random = new Random(1);
        for (var round = 0; round < 20; round++)
        {
            var active = new ActiveChannels(random);
            var model = new List<PooledChannel>();
            for (var step = 0; step < 500; step++)
            {
                Change(active, model, random);
                AssertOrder(active, model);
                AssertPick(active, model, avoid: null);
                if (model.Count > 0)
                {
                    AssertPick(active, model, avoid: model[random.Next(model.Count)]);
                }
            }
        }
    }

    [Fact]
    public void AChannelThatHasLeft_IsLeftAlone()
    {
        var (stays, leaves) = (New(), New());
        var active = new ActiveChannels(new Random(1));
        active.Add(stays);
        active.Add(leaves);
        active.Remove(leaves);
        leaves.Leases = leaves.Capacity;
        active.Update(leaves);
        Assert.Equal(-1, leaves.Index);
        Assert.Same(stays, active.Pick(avoid: null));
        AssertOrder(active, [stays]);
    }

    [Fact]
    public void TheTwoThatAreDrawn_AreDistinct()
    {
        // The fullest of three never wins against another one.
        var active = new ActiveChannels(new Random(1));
        var channels = Enumerable.Range(1, 3).Select(leases => New(leases, isAlive: true)).ToList();
        channels.ForEach(active.Add);
        var picks = Enumerable.Range(0, 3_000).Select(_ => active.Pick(avoid: null)!).GroupBy(static channel => channel.Leases).ToDictionary(static group => group.Key, static group => group.Count());
        Assert.False(picks.ContainsKey(3));
        Assert.InRange(picks[1], 1_850, 2_150); // two pairs of three
        Assert.InRange(picks[2], 850, 1_150);
    }

    [Fact]
    public void TheOneToAvoid_IsTakenOnlyWhenItIsTheOnlyOne()
    {
        var active = new ActiveChannels(new Random(1));
        var (good, doubtful) = (New(isAlive: true), New());
        active.Add(good);
        Assert.Same(good, active.Pick(avoid: good));
        active.Add(doubtful);
        Assert.Same(good, active.Pick(avoid: null));
        Assert.Same(good, active.Pick(avoid: doubtful));

        doubtful.Failed = true;
        active.Update(doubtful);
        Assert.Same(doubtful, active.Pick(avoid: good)); // rather than the one that has just failed
        Assert.Same(good, active.Pick(avoid: doubtful));

        good.Failed = true;
        active.Update(good);
        Assert.All(Enumerable.Range(0, 50), _ => Assert.Same(doubtful, active.Pick(avoid: good)));
    }

    [Fact]
    public void AFailureWeighsAsMuchAsAllCalls_AmongTheDoubtful()
    {
        var active = new ActiveChannels(new Random(1));
        var busy = New(leases: 9); // nothing has come from it yet
        var failed = New();
        failed.Failed = true;
        active.Add(failed);
        active.Add(busy);
        Assert.Equal(0, active.Good);
        Assert.All(Enumerable.Range(0, 50), _ => Assert.Same(busy, active.Pick(avoid: null)));
    }

    private void Change(ActiveChannels active, List<PooledChannel> model, Random random)
    {
        if (model.Count == 0 || (model.Count < 12 && random.Next(10) == 0))
        {
            var added = New(leases: random.Next(11), isAlive: random.Next(2) == 0);
            model.Add(added);
            active.Add(added);
            return;
        }

        var channel = model[random.Next(model.Count)];
        switch (random.Next(8))
        {
            case 0:
                model.Remove(channel);
                active.Remove(channel);
                return;
            case 1:
                channel.Failed = !channel.Failed;
                break;
            case 2:
                channel.Pulse.IsSuspect = !channel.Pulse.IsSuspect;
                break;
            case 3:
                channel.IsAlive = !channel.IsAlive;
                break;
            case 4:
                channel.FailingSince = channel.FailingSince is null ? 1 : null;
                break;
            case 5:
                channel.IsOnProbation = !channel.IsOnProbation;
                break;
            case 6:
                channel.State = channel.State == PooledChannelState.Active ? PooledChannelState.Replacing : PooledChannelState.Active;
                break;
            default:
                channel.Leases = random.Next(channel.Capacity + 1);
                break;
        }

        active.Update(channel);
    }

    private static void AssertOrder(ActiveChannels active, List<PooledChannel> model)
    {
        Assert.Equal(model.Count, active.Count);
        var channels = Enumerable.Range(0, active.Count).Select(i => active[i]).ToList();
        Assert.Equal(model.Select(static channel => channel.Id).Order(), channels.Select(static channel => channel.Id).Order());
        Assert.Equal(Enumerable.Range(0, active.Count), channels.Select(static channel => channel.Index));
        Assert.Equal(channels.Select(static channel => (int)channel.Standing).Order(), channels.Select(static channel => (int)channel.Standing));
        Assert.Equal(model.Count(static channel => channel.Standing == ChannelStanding.Good), active.Good);
        Assert.Equal(model.Exists(static channel => channel.HasRoom), active.HasRoom);
    }

    private static void AssertPick(ActiveChannels active, List<PooledChannel> model, PooledChannel? avoid)
    {
        var best = Best(model.FindAll(channel => channel != avoid)) is { Count: > 0 } others ? others : Best(model);
        var pick = active.Pick(avoid);
        if (best.Count == 0)
        {
            Assert.Null(pick);
        }
        else
        {
            Assert.Contains(pick, best);
        }
    }

    private static List<PooledChannel> Best(List<PooledChannel> channels) =>
        channels.FindAll(static channel => channel.Standing == ChannelStanding.Good) is { Count: > 0 } good
            ? good
            : channels.FindAll(static channel => channel.Standing == ChannelStanding.Doubtful);

    private PooledChannel New(int leases = 0, bool isAlive = false)
    {
        var channel = new PooledChannel(_made.Count, StubPolicy.NewChannel(), transport: null, capacity: 10, now: 0, Timeout.InfiniteTimeSpan) { Leases = leases, IsAlive = isAlive };
        _made.Add(channel);
        return channel;
    }
}

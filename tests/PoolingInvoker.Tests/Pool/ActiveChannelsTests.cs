namespace PoolingInvoker.Tests.Pool;

/// <summary>The order of the channels, and the choice among them.</summary>
public sealed class ActiveChannelsTests : IDisposable
{
    private readonly List<PooledChannel> _made = [];
    private readonly List<(PooledChannel Channel, bool IsStream, int Looks)> _leases = [];

    public void Dispose() => _made.ForEach(static channel => channel.Channel.Dispose());

    [Fact]
    public void WhateverChanges_TheSectionsAreInOrder_AndThePickIsOneOfTheBest()
    {
        var random = new Random(1);
        for (var round = 0; round < 20; round++)
        {
            var active = new ActiveChannels(random, new ChannelTarget(4));
            var model = new List<PooledChannel>();
            _leases.Clear();
            for (var step = 0; step < 500; step++)
            {
                Change(active, model, random);
                AssertOrder(active, model);
                foreach (var isStream in (bool[])[false, true])
                {
                    AssertPick(active, model, isStream, avoid: null);
                    if (model.Count > 0)
                    {
                        AssertPick(active, model, isStream, avoid: model[random.Next(model.Count)]);
                    }
                }
            }
        }
    }

    [Fact]
    public void AChannelThatHasLeft_IsLeftAlone()
    {
        var (stays, leaves) = (New(), New());
        var active = new ActiveChannels(new Random(1), new ChannelTarget(4));
        active.Add(stays);
        active.Add(leaves);
        active.Remove(leaves);
        active.Leased(leaves, isStream: false);
        Assert.Equal((1, 0), (leaves.Leases, active.Calls));
        Assert.Equal(-1, leaves.Index);
        Assert.Same(stays, active.Pick(isStream: false, avoid: null));
        AssertOrder(active, [stays]);
    }

    [Fact]
    public void TheTwoThatAreDrawn_AreDistinct()
    {
        // The fullest of three never wins against another one.
        var active = new ActiveChannels(new Random(1), new ChannelTarget(4));
        var channels = Enumerable.Range(1, 3).Select(leases => New(leases, isAlive: true)).ToList();
        channels.ForEach(active.Add);
        var picks = Enumerable.Range(0, 3_000).Select(_ => active.Pick(isStream: false, avoid: null)!).GroupBy(static channel => channel.Leases).ToDictionary(static group => group.Key, static group => group.Count());
        Assert.False(picks.ContainsKey(3));
        Assert.InRange(picks[1], 1_850, 2_150); // two pairs of three
        Assert.InRange(picks[2], 850, 1_150);
    }

    [Fact]
    public void TheOneToAvoid_IsTakenOnlyWhenItIsTheOnlyOne()
    {
        var active = new ActiveChannels(new Random(1), new ChannelTarget(4));
        var (good, doubtful) = (New(isAlive: true), New());
        active.Add(good);
        Assert.Same(good, active.Pick(isStream: false, avoid: good));
        active.Add(doubtful);
        Assert.Same(good, active.Pick(isStream: false, avoid: null));
        Assert.Same(good, active.Pick(isStream: false, avoid: doubtful));

        doubtful.Health = ChannelHealth.Broken;
        active.Update(doubtful);
        Assert.Same(doubtful, active.Pick(isStream: false, avoid: good)); // rather than the one that has just failed
        Assert.Same(good, active.Pick(isStream: false, avoid: doubtful));

        good.Health = ChannelHealth.Broken;
        active.Update(good);
        Assert.All(Enumerable.Range(0, 50), _ => Assert.Same(doubtful, active.Pick(isStream: false, avoid: good)));
    }

    [Fact]
    public void AFailureWeighsAsMuchAsAllCalls_AmongTheDoubtful()
    {
        var active = new ActiveChannels(new Random(1), new ChannelTarget(4));
        var busy = New(leases: 9); // nothing has come from it yet
        var failed = New();
        failed.Health = ChannelHealth.Broken;
        active.Add(failed);
        active.Add(busy);
        Assert.Equal(0, active.Good);
        Assert.All(Enumerable.Range(0, 50), _ => Assert.Same(busy, active.Pick(isStream: false, avoid: null)));
    }

    [Fact]
    public void CallsKeepAwayFromStreams_AndStreamsFromCalls()
    {
        var active = new ActiveChannels(new Random(1), new ChannelTarget(4));
        var channels = Enumerable.Range(0, 4).Select(_ => New(isAlive: true)).ToList();
        channels.ForEach(active.Add);
        active.Leased(channels[0], isStream: true);
        active.Leased(channels[1], isStream: false);
        active.LookAtStreams(channels[0]);
        Assert.Equal((0, 0), (active.OfStreams, active.Streams)); // it may be short
        active.LookAtStreams(channels[0]);
        Assert.Equal((1, 1), (active.OfStreams, active.Streams));
        Assert.All(Enumerable.Range(0, 50), _ => Assert.NotSame(channels[0], active.Pick(isStream: false, avoid: null)));
        Assert.All(Enumerable.Range(0, 50), _ => Assert.Same(channels[0], active.Pick(isStream: true, avoid: null)));

        for (var i = 0; i < 3; i++)
        {
            active.Leased(channels[0], isStream: true);
        }

        Assert.All(Enumerable.Range(0, 50), _ => Assert.NotSame(channels[0], active.Pick(isStream: true, avoid: null)));
    }

    [Fact]
    public void CallsAreSpreadOverNoMoreChannelsThanTheyNeed()
    {
        var active = new ActiveChannels(new Random(1), new ChannelTarget(4));
        var channels = Enumerable.Range(0, 3).Select(_ => New(isAlive: true)).ToList();
        channels.ForEach(active.Add);
        channels[1].IsSpare = channels[2].IsSpare = true;
        channels.ForEach(active.Update);
        for (var calls = 0; calls < 4; calls++)
        {
            var picked = active.Pick(isStream: false, avoid: null);
            Assert.Same(channels[0], picked);
            active.Leased(picked!, isStream: false);
        }

        Assert.True(active.Pick(isStream: false, avoid: null)!.IsSpare);
    }

    [Fact]
    public void APickCostsTheSame_HoweverManyThereAre()
    {
        // What it draws is what it looks at.
        foreach (var count in (int[])[4, 1_000])
        {
            var random = new CountingRandom();
            var active = new ActiveChannels(random, new ChannelTarget(4));
            for (var i = 0; i < count; i++)
            {
                active.Add(New(isAlive: true));
            }

            active.Pick(isStream: false, avoid: null);
            Assert.Equal(2, random.Draws);
        }
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
        switch (random.Next(11))
        {
            case 0:
                model.Remove(channel);
                active.Remove(channel);
                return;
            case >= 1 and <= 5:
                channel.Health = random.GetItems(Enum.GetValues<ChannelHealth>(), 1)[0];
                break;
            case 6:
                channel.State = channel.State == PooledChannelState.Active ? PooledChannelState.Replacing : PooledChannelState.Active;
                break;
            case 7:
                channel.IsSpare = !channel.IsSpare;
                break;
            case 8 when channel.HasRoom:
                _leases.Add((channel, random.Next(2) == 0, channel.Looks));
                active.Leased(channel, _leases[^1].IsStream);
                break;
            case 10:
                active.LookAtStreams(channel);
                break;
            case 9 when _leases.FindIndex(lease => lease.Channel == channel) is var index and >= 0:
                active.Returned(channel, _leases[index].IsStream, _leases[index].Looks);
                _leases.RemoveAt(index);
                break;
        }

        active.Update(channel);
    }

    private void AssertOrder(ActiveChannels active, List<PooledChannel> model)
    {
        Assert.Equal(model.Count, active.Count);
        var channels = active.ToList();
        Assert.Equal(model.Select(static channel => channel.Id).Order(), channels.Select(static channel => channel.Id).Order());
        Assert.All(active.ByStanding, static placed => Assert.Equal(Enumerable.Range(0, placed.Count), placed.Select(static channel => channel.Index)));
        Assert.Equal(channels.Select(static channel => (int)channel.Standing).Order(), channels.Select(static channel => (int)channel.Standing));
        Assert.Equal(model.Count(static channel => channel.Standing < ChannelStanding.Doubtful), active.Good);
        Assert.Equal(model.Count(static channel => channel.Standing == ChannelStanding.Spare), active.Spare);
        Assert.Equal(model.Count(static channel => channel.Standing == ChannelStanding.Streams), active.OfStreams);
        Assert.Equal(model.Count - active.Spare - active.OfStreams, active.OfCalls);
        Assert.All(model, channel => Assert.Equal(_leases.Count(lease => lease.Channel == channel && lease.IsStream && lease.Looks < channel.Looks - 1), channel.LongStreams));
        Assert.Equal(model.Sum(static channel => channel.LongStreams), active.Streams);
        Assert.Equal(model.Sum(static channel => channel.Leases), active.Streams + active.Calls);
        Assert.Equal(model.Exists(static channel => channel.HasRoom), active.HasRoom);
    }

    private static void AssertPick(ActiveChannels active, List<PooledChannel> model, bool isStream, PooledChannel? avoid)
    {
        var pick = active.Pick(isStream, avoid);
        if (!model.Exists(static channel => channel.HasRoom))
        {
            Assert.Null(pick);
            return;
        }

        var others = model.FindAll(channel => channel != avoid && channel.HasRoom);
        if (others.Count == 0)
        {
            Assert.Same(avoid, pick);
            return;
        }

        Assert.Contains(pick, others);
        Assert.True(pick!.Standing < ChannelStanding.Doubtful || others.TrueForAll(static channel => channel.Standing == ChannelStanding.Doubtful));
        var hasOfCalls = others.Exists(static channel => channel.Standing == ChannelStanding.Calls);
        var hasSpare = others.Exists(static channel => channel.Standing == ChannelStanding.Spare);
        if ((hasOfCalls || hasSpare) && !(isStream && pick is { Standing: ChannelStanding.Streams, Streams: < 4 }))
        {
            var widens = hasSpare && (!hasOfCalls || active.Calls >= new ChannelTarget(4).LoadOf(active.OfCalls));
            Assert.Equal(widens ? ChannelStanding.Spare : ChannelStanding.Calls, pick.Standing);
        }
    }

    private PooledChannel New(int leases = 0, bool isAlive = false)
    {
        var channel = new PooledChannel(_made.Count, StubPolicy.NewChannel(), "stub", transport: null, mostCalls: 10, now: 0, Timeout.InfiniteTimeSpan) { Leases = leases, Health = isAlive ? ChannelHealth.Healthy : ChannelHealth.New };
        _made.Add(channel);
        return channel;
    }

    private sealed class CountingRandom() : Random(1)
    {
        public int Draws { get; private set; }

        public override int Next(int minValue, int maxValue)
        {
            Draws++;
            return base.Next(minValue, maxValue);
        }
    }
}

using System.Net;
using Microsoft.AspNetCore.Http.Features;
using Microsoft.Extensions.Primitives;
using Microsoft.Extensions.ServiceDiscovery;
using PoolingInvoker.Testing;

namespace PoolingInvoker.Tests.Pool;

/// <summary>Endpoints of several priorities.</summary>
public sealed class PriorityTests(ITestOutputHelper output) : PriorityPools
{
    private const int Calls = 10_000;

    [Fact]
    public async Task WhileTheFirstIsWell_ItGetsAllCalls_AndTheOthersHaveNoChannel()
    {
        var pool = await NewPoolAsync([3, 3]);
        Assert.Equal([Calls, 0], Call(pool, Calls, atATime: 40));
        Advance(60 * Second);
        Assert.Equal([Calls, 0], Call(pool, Calls, isStream: true));
        Assert.All(Policy.Dials, static dial => Assert.Equal(0, PriorityOf(dial.Endpoint)));
        Assert.DoesNotContain(Events, static one => one.Kind == ChannelPoolEventKind.PriorityChanged);
    }

    [Theory]
    [InlineData(4, 1, 1.4, 1.0)]
    [InlineData(4, 2, 1.4, 0.7)]
    [InlineData(4, 3, 1.4, 0.35)]
    [InlineData(2, 1, 1.0, 0.5)]
    [InlineData(2, 1, 2.0, 1.0)]
    public async Task WhereSomeAreLost_TheNextGetsWhatTheyCannotTake(int endpoints, int lost, double factor, double expected)
    {
        foreach (var isStream in (bool[])[false, true])
        {
            var pool = await NewPoolAsync([endpoints, 2], options => options.OverprovisioningFactor = factor);
            Lose(pool, Enumerable.Range(1, lost).Select(static number => (0, number)));
            Advance(2 * Second);
            var had = Call(pool, Calls, atATime: isStream ? 10 : 1, isStream);
            output.WriteLine($"{string.Join(' ', had)}: {pool.GetStatistics()}");
            Assert.InRange(had[0], (expected * Calls) - 50, (expected * Calls) + 50);
            Assert.Equal(expected == 1 ? 0 : 2, ChannelsTo(pool, priority: 1));
        }
    }

    [Fact]
    public async Task WhereAllAreLost_TheNextGetsCallsAtOnce()
    {
        var pool = await NewPoolAsync([2, 2]);
        Lose(pool, [(0, 1), (0, 2)]);
        var waiting = PoolInTime.Come(pool, 20);
        var took = PassUntil(() => waiting.TrueForAll(static one => one.IsCompleted));
        output.WriteLine($"{took}");
        Assert.InRange(took, TimeSpan.Zero, Second);
        Assert.All(waiting, static one => Assert.Equal(1, PriorityOf(one.Result.Pooled)));
        waiting.ForEach(static one => one.Result.Return(LeaseOutcome.Answered));
        Assert.Equal([0, 200], Call(pool, 200));
        var told = Assert.Single(Events, static one => one.Kind == ChannelPoolEventKind.PriorityChanged && one.Message.StartsWith("calls go to priority 1 (100", StringComparison.Ordinal));
        Assert.Equal(ChannelPoolEventReason.PriorityChanged, told.Reason);
        Assert.Contains("of 2 endpoints of priority 0 0 can be reached", told.Message, StringComparison.Ordinal);
    }

    [Fact]
    public async Task OnceTheyAreWellForTheDelay_CallsGoBack_Gradually_AndTheNextHasNoChannelsAgain()
    {
        var pool = await NewPoolAsync([1, 2]);
        Lose(pool, [(0, 1)]);
        Advance(20 * Second);
        Assert.Equal([0, 100], Call(pool, 100));
        Policy.Dead.Clear();
        PassUntil(() => ChannelsTo(pool, priority: 0) == 1, atMost: 40 * Second);
        List<int> back = [];
        for (var i = 0; i < 22; i++)
        {
            back.Add(Call(pool, 1_000)[0]);
            Advance(Second);
        }

        output.WriteLine(string.Join(' ', back));
        Assert.All(back.Take(10), static calls => Assert.Equal(0, calls));
        Assert.Equal(back.Order(), back);
        Assert.InRange(back.Count(static calls => calls is > 0 and < 1_000), 4, 9); // 1.4 times one tenth more each second
        Assert.Equal(1_000, back[^1]);
        Advance(5 * Second);
        Assert.Equal((1, 0), (ChannelsTo(pool, priority: 0), ChannelsTo(pool, priority: 1)));
        Assert.Contains(Events, static one => one is { Kind: ChannelPoolEventKind.Retired, Reason: ChannelPoolEventReason.PriorityChanged });

        Assert.Equal([Calls, 0], Call(pool, Calls));
    }

    [Fact]
    public async Task OneThatIsLostAgain_StartsAnew()
    {
        var pool = await NewPoolAsync([1, 1]);
        Lose(pool, [(0, 1)]);
        Advance(5 * Second);
        Policy.Dead.Clear();
        PassUntil(() => ChannelsTo(pool, priority: 0) == 1, atMost: 40 * Second);
        Advance(8 * Second);
        Lose(pool, [(0, 1)]);
        Advance(2 * Second);
        Policy.Dead.Clear();
        PassUntil(() => ChannelsTo(pool, priority: 0) == 1, atMost: 40 * Second);
        Advance(9 * Second);
        Assert.Equal([0, 100], Call(pool, 100));
        Advance(12 * Second);
        Assert.Equal([100, 0], Call(pool, 100));
    }

    [Fact]
    public async Task WithoutADelay_CallsGoBackAtOnce()
    {
        var pool = await NewPoolAsync([1, 1], static options => options.RecoveryDelay = TimeSpan.Zero);
        Lose(pool, [(0, 1)]);
        Advance(5 * Second);
        Assert.Equal([0, 100], Call(pool, 100));
        Policy.Dead.Clear();
        PassUntil(() => ChannelsTo(pool, priority: 0) == 1, atMost: 40 * Second);
        Assert.Equal([100, 0], Call(pool, 100));
    }

    [Fact]
    public async Task WhileTheyRecover_TheyTakeOver_WhereTheNextIsLostToo()
    {
        var pool = await NewPoolAsync([1, 1]);
        Lose(pool, [(0, 1)]);
        Advance(5 * Second);
        Policy.Dead.Clear();
        PassUntil(() => ChannelsTo(pool, priority: 0) == 1, atMost: 40 * Second);
        Assert.Equal([0, 100], Call(pool, 100));
        Lose(pool, [(1, 1)]);
        Assert.Equal([100, 0], Call(pool, 100));
    }

    [Fact]
    public async Task ThoseThatStandBy_AreConnected_AndCarryNoCall_UntilTheyAreNeeded()
    {
        var pool = await NewPoolAsync([2, 3], static options => (options.MinPoolSize, options.StandbyPoolSize) = (4, 2));
        Advance(2 * Second);
        Assert.Equal((4, 2), (ChannelsTo(pool, priority: 0), ChannelsTo(pool, priority: 1)));
        Assert.Equal([Calls, 0], Call(pool, Calls, atATime: 50));
        Lose(pool, [(0, 1), (0, 2)]);
        using (var lease = PoolInTime.Take(pool))
        {
            Assert.Equal(1, PriorityOf(lease.Pooled)); // it did not wait
        }

        Advance(2 * Second);
        Assert.Equal([0, 100], Call(pool, 100));
        Assert.InRange(ChannelsTo(pool, priority: 1), 3, 7);
        Policy.Dead.Clear();
        Advance(60 * Second);
        Assert.Equal([100, 0], Call(pool, 100));
        Assert.InRange(ChannelsTo(pool, priority: 0), 4, 6);
        Assert.Equal(2, ChannelsTo(pool, priority: 1));

        // They stay, however long they are idle, and one that breaks has a new one in its place.
        Advance(3_600 * Second);
        Assert.Equal(2, ChannelsTo(pool, priority: 1));
        var standsBy = pool.State.Active.First(static channel => PriorityOf(channel) == 1);
        pool.Picker.MarkFailed(standsBy, new IOException("lost"));
        Advance(3 * Second);
        Assert.Equal(2, ChannelsTo(pool, priority: 1));
        Assert.DoesNotContain(standsBy, pool.State.Active);
    }

    [Fact]
    public async Task ACallThatIsSentAgain_GoesToThoseThatStandBy_RatherThanToTheSameChannel()
    {
        var pool = await NewPoolAsync([1, 1], static options => options.StandbyPoolSize = 1);
        Advance(2 * Second);
        var first = pool.State.Active.Single(static channel => PriorityOf(channel) == 0);
        using var retry = PoolInTime.Take(pool, avoid: first);
        Assert.Equal(1, PriorityOf(retry.Pooled));
    }

    [Fact]
    public async Task NobodyWaits_WhileThoseThatStandByHaveRoom()
    {
        var pool = await NewPoolAsync([1, 1], static options =>
            (options.StandbyPoolSize, options.MaxConcurrentCallsPerChannel, options.MaxPoolSize) = (1, 1, 2));
        Advance(2 * Second);
        var (first, second) = (PoolInTime.Take(pool), PoolInTime.Take(pool));
        Assert.Equal((0, 1), (PriorityOf(first.Pooled), PriorityOf(second.Pooled)));
        first.Return(LeaseOutcome.Answered);
        second.Return(LeaseOutcome.Answered);
        Assert.Equal([100, 0], Call(pool, 100));
    }

    [Fact]
    public async Task ASilentOne_GivesWay_AndIsBackWithItsFirstSignOfLife()
    {
        var pool = await NewPoolAsync([2, 1]);
        var silent = pool.State.Active.ToList();
        silent.ForEach(channel => Signal(pool, channel, ChannelSignal.Silent));
        PoolInTime.Take(pool).Dispose(); // where there is no other yet
        Assert.Equal([0, 100], Call(pool, 100));
        silent.ForEach(channel => Signal(pool, channel, ChannelSignal.Life));
        Assert.Equal([100, 0], Call(pool, 100));
    }

    [Fact]
    public async Task ServersThatAnswerWithUnavailable_AreNotLost()
    {
        var pool = await NewPoolAsync([2, 1]);
        for (var i = 0; i < 20; i++)
        {
            PoolInTime.Take(pool).Return(LeaseOutcome.ServerFailed);
        }

        Advance(2 * Second);
        Assert.Equal(0, ChannelsTo(pool, priority: 1));
    }

    [Fact]
    public async Task OfThree_EachIsTheNextOfTheOneBefore()
    {
        var pool = await NewPoolAsync([2, 2, 2]);
        Lose(pool, [(0, 1), (0, 2), (1, 1), (1, 2)]);
        Advance(5 * Second);
        Assert.Equal([0, 0, 1_000], Call(pool, 1_000));
        Policy.Dead.RemoveWhere(static endpoint => PriorityOf(endpoint) == 1);
        Advance(90 * Second);
        Assert.Equal([0, 1_000, 0], Call(pool, 1_000));
        Assert.Equal(0, ChannelsTo(pool, priority: 2));
        Policy.Dead.Clear();
        Advance(90 * Second);
        Assert.Equal([1_000, 0, 0], Call(pool, 1_000));
        Assert.InRange(ChannelsTo(pool, 0), 2, 4);
        Assert.Equal((0, 0), (ChannelsTo(pool, 1), ChannelsTo(pool, 2)));
    }

    [Fact]
    public async Task WhereNoneCanBeReached_AllAreTried_AndTheFirstThatAnswersHasTheCalls()
    {
        var pool = await NewPoolAsync([2, 2]);
        Lose(pool, [(0, 1), (0, 2), (1, 1), (1, 2)]);
        for (var i = 0; i < 60; i++)
        {
            PoolInTime.Take(pool).Return(LeaseOutcome.ChannelFailed);
            Advance(Second);
        }

        Assert.InRange(Events.Count(static one => one.Kind == ChannelPoolEventKind.PriorityChanged), 1, 4);
        Assert.Equal(4, Policy.Dials.Where(dial => dial.At > Time.GetUtcNow() - (59 * Second)).DistinctBy(static dial => dial.Endpoint).Count());
        Policy.Dead.RemoveWhere(static endpoint => PriorityOf(endpoint) == 1);
        PassUntil(() => pool.State.Active.Any(static channel => PriorityOf(channel) == 1 && channel.Health < ChannelHealth.Broken), atMost: 60 * Second);
        Advance(Second);
        Assert.Equal([0, 100], Call(pool, 100));
    }

    [Fact]
    public async Task APoolThatIsFull_MovesAChannelBack()
    {
        var pool = await NewPoolAsync([2, 2], static options => options.MaxPoolSize = 2);
        Lose(pool, [(0, 1), (0, 2)]);
        Advance(5 * Second);
        Assert.Equal([0, 100], Call(pool, 100));
        Assert.Equal(2, ChannelsTo(pool, priority: 1));
        Policy.Dead.Clear();
        Advance(90 * Second);
        Assert.Equal([100, 0], Call(pool, 100));
        Assert.Equal((2, 0), (ChannelsTo(pool, 0), ChannelsTo(pool, 1)));
    }

    [Fact]
    public async Task WhatIsLeftOut_WeightsHold_InEachPriority()
    {
        var pool = await NewPoolAsync([2, 2], weights: [3, 1]);
        var had = CallEach(pool, Calls);
        Assert.InRange(had[(0, 1)], 0.95 * 0.75 * Calls, 1.05 * 0.75 * Calls);
        Lose(pool, [(0, 2)]);
        Advance(2 * Second);
        had = CallEach(pool, Calls);
        output.WriteLine(string.Join(", ", had));
        Assert.InRange(had[(0, 1)], 0.95 * 0.7 * Calls, 1.05 * 0.7 * Calls);
        Assert.InRange(had[(1, 1)], 0.95 * 0.225 * Calls, 1.05 * 0.225 * Calls);
        Assert.InRange(had[(1, 2)], 0.95 * 0.075 * Calls, 1.05 * 0.075 * Calls);
    }

    [Fact]
    public async Task Keys_MoveWithTheCalls_AndNoOthersDo()
    {
        var pool = await NewPoolAsync([4, 2], static options => options.TargetConcurrentCallsPerChannel = 1_000);
        var before = Places(pool);
        Assert.All(before, static place => Assert.Equal(0, place.Priority));
        Lose(pool, [(0, 1), (0, 2)]);
        Advance(2 * Second);
        var split = Places(pool);
        var moved = before.Zip(split).Count(static pair => pair.First != pair.Second);
        var ofLost = before.Count(static place => place.Number <= 2);
        var next = split.Count(static place => place.Priority == 1);
        output.WriteLine($"{moved} of {before.Count} moved, {ofLost} were of the lost ones, {next} are of the next priority");
        Assert.InRange(next, 0.27 * before.Count, 0.33 * before.Count);
        Assert.InRange(moved, ofLost, ofLost + (0.33 * before.Count)); // those of the lost ones, and those that are of the next priority now
        Assert.Equal(split, Places(pool));
        Policy.Dead.Clear();
        Advance(90 * Second);
        Assert.Equal(before, Places(pool));
    }

    [Fact]
    public async Task AnotherPriority_CountsAtOnce()
    {
        var pool = await NewPoolAsync([1, 1]);
        var endpoints = Endpoints([1, 1], weights: null);
        pool.Balancer!.EndpointsChanged([endpoints[0] with { Priority = 1 }, endpoints[1] with { Priority = 0 }]);
        Advance(3 * Second);
        Assert.Equal([0, 100], Call(pool, 100)); // by their addresses
        Assert.Equal((0, 1), (ChannelsTo(pool, 0), ChannelsTo(pool, 1)));
        pool.Balancer.EndpointsChanged([endpoints[0]]);
        Advance(3 * Second);
        Assert.Equal([100], Call(pool, 100));
        pool.Balancer.EndpointsChanged(endpoints);
        Advance(3 * Second);
        Assert.Equal([100, 0], Call(pool, 100));
        Assert.Equal((1, 0), (ChannelsTo(pool, 0), ChannelsTo(pool, 1)));
    }

    [Fact]
    public async Task TheSnapshot_SaysThePriority()
    {
        var pool = await NewPoolAsync([1, 1], static options => options.StandbyPoolSize = 1);
        Advance(2 * Second);
        Assert.Equal([("10.0.0.1:5000", 0), ("10.0.1.1:5000", 1)], pool.GetChannels().Select(static one => (one.Endpoint, one.Priority)).Order());
    }

    [Fact]
    public async Task AChannelThatDrains_TellsItsPriorityStill()
    {
        var pool = await NewPoolAsync([1, 1]);
        Lose(pool, [(0, 1)]);
        Advance(5 * Second);
        using var lease = PoolInTime.Take(pool);
        pool.Picker.MarkFailed(lease.Pooled, new IOException("lost"));
        PassUntil(() => pool.GetStatistics().DrainingChannels == 1);
        Assert.Equal(1, pool.GetChannels().Single(static one => one.State == PooledChannelState.Draining).Priority);
    }

    [Fact]
    public async Task OptionsThatChange_Count()
    {
        var pool = await NewPoolAsync([2, 1]);
        Lose(pool, [(0, 1)]);
        Advance(2 * Second);
        Assert.InRange(Call(pool, 1_000)[0], 690, 710);
        pool.UpdateOptions(new ChannelPoolOptions { OverprovisioningFactor = 2 });
        Advance(2 * Second);
        Assert.Equal([1_000, 0], Call(pool, 1_000));
        Assert.Equal(0, ChannelsTo(pool, 1));
        pool.UpdateOptions(new ChannelPoolOptions { OverprovisioningFactor = 2, StandbyPoolSize = 1 });
        Advance(2 * Second);
        Assert.Equal(1, ChannelsTo(pool, 1));
        pool.UpdateOptions(new ChannelPoolOptions { OverprovisioningFactor = 2 });
        Advance(2 * Second);
        Assert.Equal(0, ChannelsTo(pool, 1));
    }

    [Fact]
    public async Task ServiceDiscovery_HandsPrioritiesThrough()
    {
        var (priority, changes) = (1, new CancellationTokenSource());
        var pool = New(new EndpointList([], new Uri("http://users"), _ => ValueTask.FromResult(Source(Volatile.Read(ref changes)))), options =>
            options.EndpointPriority = endpoint => endpoint.EndPoint is IPEndPoint { Address: var address } && address.GetAddressBytes()[2] == 0 ? 0 : priority);
        await pool.ConnectAsync().Soon();
        Assert.Equal([100, 0], Call(pool, 100));

        // What is out of range leaves the list as it is, and then a new priority alone is a new list.
        foreach (var (next, expected) in ((int, int[])[])[(129, [100, 0]), (0, [50, 50])])
        {
            priority = next;
            Time.Advance(TimeSpan.FromMinutes(5));
            await Interlocked.Exchange(ref changes, new CancellationTokenSource()).CancelAsync();
            await Waiting.Until(() =>
            {
                Time.Advance(Second);
                return Call(pool, 100).Zip(expected).All(static pair => Math.Abs(pair.First - pair.Second) < 25);
            });
        }

        static ServiceEndpointSource Source(CancellationTokenSource changes) =>
            new([.. Endpoints([1, 1], weights: null).Select(static endpoint => ServiceEndpoint.Create(endpoint.EndPoint))], new CancellationChangeToken(changes.Token), new FeatureCollection());
    }

    [Theory]
    [InlineData(-1)]
    [InlineData(129)]
    public void APriorityThatIsOutOfRange_IsRefused(int priority) => Assert.Equal(
        $"The address 'http://a' has the priority {priority}. It must be from 0 to 128. (Parameter 'addresses')",
        Assert.Throws<ArgumentException>(() => ChannelPool.ForAddresses([new ChannelAddress("http://a") { Priority = priority }])).Message);

    // Whatever is lost and comes back, nobody waits for ever, the laws hold (the pool checks them), and in the end all is as in the beginning.
    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(3)]
    [InlineData(4)]
    public async Task AfterAnyDisturbance_TheFirstHasAllCallsAgain(int seed)
    {
        var random = new Random(seed);
        var pool = await NewPoolAsync([3, 2, 2], options => (options.StandbyPoolSize, options.MaxPoolSize) = (random.Next(3), random.Next(6, 12)));
        var all = Endpoints([3, 2, 2], weights: null);
        var waiting = new List<Task<ChannelLease>>();
        for (var step = 0; step < 400; step++)
        {
            switch (random.Next(6))
            {
                case 0:
                    var lost = all[random.Next(all.Count)];
                    Lose(pool, [(PriorityOf(lost), NumberOf(lost))]);
                    break;
                case 1:
                    Policy.Dead.Remove(all[random.Next(all.Count)]);
                    break;
                case 2:
                    pool.Balancer!.EndpointsChanged([.. all.Where(_ => random.Next(5) > 0).DefaultIfEmpty(all[0])]);
                    break;
                case 3:
                    waiting.AddRange(PoolInTime.Come(pool, random.Next(30), isStream: random.Next(2) == 0, key: random.Next(2) == 0 ? $"{step}" : null));
                    break;
                default:
                    Advance(random.Next(1, 15) * Second);
                    break;
            }

            await ReturnAsync(waiting, random.Next(20), random);
        }

        Policy.Dead.Clear();
        pool.Balancer!.EndpointsChanged(all);
        for (var i = 0; i < 90; i++)
        {
            Advance(Second);
            await ReturnAsync(waiting);
        }

        Assert.All(waiting, static one => Assert.True(one.IsFaulted, "Somebody waits for ever.")); // who could be given no channel
        Assert.Equal([1_000, 0, 0], Call(pool, 1_000));
        Assert.Equal(0, pool.GetStatistics().CallsInFlight);
        Assert.InRange(ChannelsTo(pool, 0), 3, 12);
        Advance(1_800 * Second); // what the first had too many has closed
        var (standby, places) = (pool.State.Options.StandbyPoolSize, pool.State.Options.MaxPoolSize - 3);
        Assert.Equal((standby, Math.Min(standby, places - standby)), (ChannelsTo(pool, 1), ChannelsTo(pool, 2)));
    }
}

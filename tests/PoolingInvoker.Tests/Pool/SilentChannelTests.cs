using Grpc.Core;
using PoolingInvoker.Testing;

namespace PoolingInvoker.Tests.Pool;

/// <summary>Channels from which nothing comes.</summary>
public sealed class SilentChannelTests : ProbedPools
{
    [Fact]
    public async Task AfterProbeDelay_AChannelIsSuspect_AndNotChosen()
    {
        var pool = NewPool(channels: 2);
        var (silent, good) = await LeaseSilentAsync(pool);
        Pass(TimeSpan.FromSeconds(0.75));
        await AnswerAsync(pool, good);
        Assert.False(silent.Pooled.Pulse.IsSuspect);
        Assert.Empty(AllAsked);

        Pass(Tick);
        Assert.True(silent.Pooled.Pulse.IsSuspect);
        Assert.Same(silent.CallInvoker, Assert.Single(AllAsked).Invoker);
        var leases = await LeaseAsync(pool, 50);
        Assert.All(leases, lease => Assert.Same(good, lease.Pooled));
        ReturnAll([.. leases, silent]);
    }

    [Fact]
    public async Task WithNoOther_ASuspectIsChosenAllTheSame()
    {
        var pool = NewPool(channels: 1);
        var silent = await CallAsync(pool);
        Pass(TimeSpan.FromSeconds(1));
        Assert.True(silent.Pooled.Pulse.IsSuspect);
        var lease = await CallAsync(pool);
        Assert.Same(silent.Pooled, lease.Pooled);
        lease.Return(LeaseOutcome.Answered);
        Assert.False(silent.Pooled.Pulse.IsSuspect); // it was slow
        silent.Dispose();
    }

    [Fact]
    public async Task OneThatAnswers_IsGoodAgain_AndAskedAgainAfterFourTimesAsLong()
    {
        var pool = NewPool(channels: 2);
        var (silent, _) = await LeaseSilentAsync(pool);
        var patience = TimeSpan.FromSeconds(1);
        for (var probes = 1; probes <= 5; probes++)
        {
            Pass(patience - Tick);
            Assert.Equal(probes - 1, AllAsked.Count);
            Pass(Tick);
            Assert.Equal(probes, AllAsked.Count);
            Assert.True(silent.Pooled.Pulse.IsSuspect);
            AllAsked[^1].Answer.SetResult();
            await Waiting.Until(() => silent.Pooled.Standing == ChannelStanding.Calls);
            patience = probes < 4 ? patience * 4 : patience; // 1, 4, 16, 64, 64 s
        }

        Assert.Equal(0, pool.GetStatistics().ChannelsGivenUp);
        silent.Dispose();
    }

    [Fact]
    public async Task AnAnsweredCall_EndsTheSilence()
    {
        var pool = NewPool(channels: 1);
        var silent = await CallAsync(pool);
        Pass(TimeSpan.FromSeconds(1));
        AllAsked[0].Answer.SetResult();
        await Waiting.Until(() => !silent.Pooled.Pulse.IsSuspect);

        await AnswerAsync(pool, silent.Pooled);
        Pass(Tick); // seen
        Pass(TimeSpan.FromSeconds(0.75));
        Assert.Single(AllAsked);
        Pass(Tick);
        Assert.Equal(2, AllAsked.Count);
        silent.Dispose();
    }

    [Theory]
    [InlineData("RpcException of the server", true)]
    [InlineData("RpcException of the transport", false)]
    [InlineData("FormatException", false)]
    public async Task WhatTheProbeThrows_CountsIfAServerSaidIt(string what, bool answers)
    {
        var pool = NewPool(channels: 2);
        var (silent, good) = await LeaseSilentAsync(pool);
        Pass(TimeSpan.FromSeconds(0.5));
        await AnswerAsync(pool, good);
        Pass(TimeSpan.FromSeconds(0.5));
        AllAsked[0].Answer.SetException(what switch
        {
            "FormatException" => new FormatException(),
            "RpcException of the server" => new RpcException(new Status(StatusCode.Unimplemented, "")),
            _ => new RpcException(new Status(StatusCode.Unavailable, "", new IOException())),
        });
        await Waiting.Until(() => !silent.Pooled.Pulse.IsProbed);

        // Nothing has shown life since it was asked: fresh ones are, too.
        await Waiting.Until(() => answers ? silent.Pooled.Standing == ChannelStanding.Calls : AllAsked.Count == 4);
        Assert.Equal(0, pool.GetStatistics().ChannelsGivenUp);
        silent.Dispose();
    }

    [Fact]
    public async Task OneThatDoesNotAnswer_IsGivenUp_WhileOthersLive_AndReplacedByOneThatShowsLife()
    {
        var pool = NewPool(channels: 2);
        var (silent, good) = await LeaseSilentAsync(pool);
        Pass(TimeSpan.FromSeconds(0.5));
        await AnswerAsync(pool, good);
        Pass(TimeSpan.FromSeconds(0.5));
        Assert.Single(AllAsked);
        Pass(TimeSpan.FromSeconds(0.5));
        await AnswerAsync(pool, good); // while it is asked
        Pass(Tick);
        Assert.Equal(0, pool.GetStatistics().ChannelsGivenUp);
        Pass(Tick);
        await UntilLastWordAsync();
        Pass(LastWord);
        await Waiting.Until(() => pool.GetStatistics().ChannelsGivenUp == 1);
        var statistics = pool.GetStatistics();
        Assert.Equal((2, 0, 1, 0L), (statistics.Channels, statistics.DrainingChannels, statistics.CallsInFlight, statistics.ChannelsReplaced));

        // The new one is asked, and does not join before it has answered. The silent one takes no calls.
        await Waiting.Until(() => AllAsked.Count == 3);
        var leases = await LeaseAsync(pool, 20);
        Assert.All(leases, lease => Assert.Same(good, lease.Pooled));
        AllAsked[2].Answer.SetResult();
        await Waiting.Until(() => Chooses(pool, AllAsked[2].Invoker));
        Assert.Equal((2, 1, 1L), (pool.GetStatistics().Channels, pool.GetStatistics().DrainingChannels, pool.GetStatistics().ChannelsReplaced));
        ReturnAll(leases);
        silent.Dispose();
        Assert.Equal(0, pool.GetStatistics().DrainingChannels);
    }

    [Fact]
    public async Task ANewOneOnWhichNoServerAnswers_DoesNotJoin_AndTheNextOneIsMade()
    {
        var pool = NewPool(channels: 2);
        var silent = await GiveOneUpAsync(pool);
        for (var asked = 3; asked <= 6; asked++)
        {
            await UntilPassing(() => AllAsked.Count >= asked);
            Assert.Equal(2, pool.GetStatistics().Channels);
        }

        var last = AllAsked[^1];
        Assert.Equal(5, AllAsked.Select(static asked => asked.Invoker).Distinct().Count());
        last.Answer.SetResult();
        await Waiting.Until(() => Chooses(pool, last.Invoker));
        silent.Dispose();
        Assert.Equal(1, pool.GetStatistics().ChannelsGivenUp);
        Assert.Equal(2, Policy.Created.Count(static channel => !StubPolicy.IsDisposed(channel)));
    }

    [Fact]
    public async Task WhenNobodyLives_NothingIsGivenUp_UntilAServerAnswersOnAFreshChannel()
    {
        var pool = NewPool(channels: 1);
        var silent = await CallAsync(pool);
        Pass(TimeSpan.FromSeconds(2));
        await Waiting.Until(() => AllAsked.Count == 4); // the silent one, and three fresh ones
        Assert.Equal((1, 0L), (pool.GetStatistics().Channels, pool.GetStatistics().ChannelsGivenUp));
        await UntilPassing(() => Fresh(silent).Count == 6);
        Assert.Equal((1, 0L), (pool.GetStatistics().Channels, pool.GetStatistics().ChannelsGivenUp));
        await Waiting.Until(() => Policy.Created.Count(static channel => !StubPolicy.IsDisposed(channel)) == 4);

        var asked = AllAsked.Count(one => one.Invoker == silent.CallInvoker);
        var answering = Fresh(silent)[^2];
        answering.Answer.SetResult();
        await Waiting.Until(() => AllAsked.Count(one => one.Invoker == silent.CallInvoker) > asked); // the last word: no time has passed since
        await UntilPassing(() => pool.GetStatistics() is { ChannelsGivenUp: 1, Channels: 1, DrainingChannels: 1 });
        var lease = await CallAsync(pool);
        Assert.Same(answering.Invoker, lease.CallInvoker);
        ReturnAll([lease, silent]);
        await UntilPassing(() => Policy.Created.Count(static channel => !StubPolicy.IsDisposed(channel)) == 1);
    }

    [Fact]
    public async Task ASignOfLife_EndsTheSearchForAnother()
    {
        var pool = NewPool(channels: 1);
        var silent = await CallAsync(pool);
        Pass(TimeSpan.FromSeconds(2));
        await Waiting.Until(() => AllAsked.Count == 4);
        silent.Return(LeaseOutcome.Answered);
        await UntilPassing(() => Policy.Created.Count(static channel => !StubPolicy.IsDisposed(channel)) == 1);
        Pass(TimeSpan.FromMinutes(1));
        Assert.Equal(4, AllAsked.Count);
        Assert.Equal((1, 0L), (pool.GetStatistics().Channels, pool.GetStatistics().ChannelsGivenUp));
    }

    [Fact]
    public async Task WhenMostOfThePoolIsSilent_AFreshChannelIsAskedFirst_ThoughOneLives()
    {
        var pool = NewPool(channels: 8);
        var leases = await LeaseAsync(pool, 8);
        var good = leases[7].Pooled;
        leases[7].Return(LeaseOutcome.Answered);
        Pass(TimeSpan.FromSeconds(1));
        Assert.Equal(7, AllAsked.Count);
        await AnswerAsync(pool, good);
        Pass(Tick);
        Pass(TimeSpan.FromSeconds(1));
        await Waiting.Until(() => AllAsked.Count == 10);
        Assert.Equal(0, pool.GetStatistics().ChannelsGivenUp);
        AllAsked[^1].Answer.SetResult();
        await UntilLastWordAsync(suspects: 7);
        await UntilPassing(() => pool.GetStatistics().ChannelsGivenUp == 7); // it is not the network
        Assert.Equal(8, pool.GetStatistics().Channels);
        ReturnAll(leases[..7]);
    }

    [Theory]
    [InlineData("probing", 1)]
    [InlineData("probing", 2)]
    [InlineData("last word", 2)]
    [InlineData("trying out", 2)]
    [InlineData("between tries", 2)]
    [InlineData("asking fresh ones", 1)]
    public async Task ThePool_CanBeDisposedInAnyPhase(string phase, int channels)
    {
        var pool = NewPool(channels);
        var silent = await CallAsync(pool);
        if (channels == 2)
        {
            var other = await CallAsync(pool);
            Pass(TimeSpan.FromSeconds(0.5));
            other.Return(LeaseOutcome.Answered);
            Pass(TimeSpan.FromSeconds(0.5));
        }
        else
        {
            Pass(TimeSpan.FromSeconds(1));
        }

        Assert.Single(AllAsked);
        if (phase != "probing")
        {
            Pass(TimeSpan.FromSeconds(0.5));
            if (channels == 2)
            {
                (await CallAsync(pool)).Return(LeaseOutcome.Answered);
            }

            Pass(TimeSpan.FromSeconds(0.5));
            if (channels == 2)
            {
                await UntilLastWordAsync();
                Pass(phase == "last word" ? TimeSpan.Zero : LastWord);
            }

            await Waiting.Until(() => AllAsked.Count == (phase == "last word" ? 2 : channels == 2 ? 3 : 4));
        }

        if (phase.StartsWith("between", StringComparison.Ordinal))
        {
            Pass(TimeSpan.FromSeconds(1));
            await Waiting.Until(() => Time.Dues.Any(static due => due >= TimeSpan.FromSeconds(0.08) && due <= TimeSpan.FromSeconds(0.12)));
        }

        silent.Dispose();
        var asked = AllAsked.Count;
        var disposing = pool.DisposeAsync().AsTask();
        var since = Time.GetTimestamp();
        await UntilPassing(() => disposing.IsCompleted);
        await disposing.Soon();
        Assert.InRange(Time.GetElapsedTime(since), TimeSpan.Zero, TimeSpan.FromSeconds(2));
        await UntilPassing(() => Time.Armed == 0);
        Assert.All(Policy.Created, static channel => Assert.True(StubPolicy.IsDisposed(channel)));
        Assert.Equal(asked, AllAsked.Count);
    }

    [Fact]
    public async Task AChannelWhoseServerFails_IsSparedForASecond()
    {
        var pool = NewPool(channels: 2);
        var (first, second) = (await CallAsync(pool), await CallAsync(pool));
        var (failing, good) = (first.Pooled, second.Pooled);
        second.Return(LeaseOutcome.Answered);
        first.Return(LeaseOutcome.ServerFailed);

        Pass(TimeSpan.FromSeconds(0.75));
        var leases = await LeaseAsync(pool, 20);
        Assert.All(leases, lease => Assert.Same(good, lease.Pooled));
        ReturnAll(leases);
        Pass(Tick);
        Assert.Equal(ChannelStanding.Calls, failing.Standing);
        Assert.True(Chooses(pool, failing.CallInvoker));
        Assert.Equal(0, pool.GetStatistics().ChannelsReplaced); // it answers
        Assert.Empty(AllAsked);
    }

    [Fact]
    public async Task AnotherFailure_SparesItForAnotherSecond()
    {
        var pool = NewPool(channels: 1, probeDelay: Timeout.InfiniteTimeSpan);
        var lease = await CallAsync(pool);
        var channel = lease.Pooled;
        lease.Return(LeaseOutcome.ServerFailed);
        Pass(TimeSpan.FromSeconds(0.75));
        (await CallAsync(pool)).Return(LeaseOutcome.ServerFailed);
        Pass(TimeSpan.FromSeconds(0.75));
        Assert.Equal(ChannelHealth.Penalized, channel.Health);
        (await CallAsync(pool)).Return(LeaseOutcome.Answered); // one answer does not clear it
        Assert.Equal(ChannelHealth.Penalized, channel.Health);
        Pass(Tick);
        Assert.NotEqual(ChannelHealth.Penalized, channel.Health);
    }

    [Theory]
    [InlineData(false, true)]
    [InlineData(true, false)]
    public async Task WithoutProbes_NobodyIsSuspect(bool isOff, bool hasProbe)
    {
        var pool = NewPool(channels: 1, probeDelay: isOff ? Timeout.InfiniteTimeSpan : null, hasProbe: !hasProbe);
        var silent = await CallAsync(pool);
        Pass(TimeSpan.FromMinutes(1));
        Assert.False(silent.Pooled.Pulse.IsSuspect);
        Assert.Empty(AllAsked);
        silent.Dispose();
    }

    [Fact]
    public async Task TheWatch_StopsWhenNothingWaits_AndGoesOnWithTheNextCall()
    {
        var pool = NewPool(channels: 1);
        Assert.Equal(0, Time.Armed);
        for (var i = 0; i < 3; i++)
        {
            var lease = await CallAsync(pool);
            Assert.Equal(1, Time.Armed);
            Pass(Tick);
            Assert.Equal(1, Time.Armed);
            if (i == 0)
            {
                lease.Answered(); // a stream that has begun may be silent, for minutes
                Pass(TimeSpan.FromMinutes(1));
                Assert.Equal(1, Time.Armed);
            }

            lease.Return(LeaseOutcome.Answered);
            Pass(Tick);
            Assert.Equal(0, Time.Armed);
        }

        Pass(TimeSpan.FromMinutes(1));
        Assert.Empty(AllAsked);
    }

    [Fact]
    public async Task WhenTheCallsOfASilentChannelAreOver_NobodyIsAskedAnyMore()
    {
        var pool = NewPool(channels: 1);
        var silent = await CallAsync(pool);
        Pass(TimeSpan.FromSeconds(2));
        await Waiting.Until(() => AllAsked.Count == 4);
        silent.Dispose(); // its caller has ended it
        for (var i = 0; i < 40; i++)
        {
            Pass(Tick);
            await Task.Yield();
        }

        await UntilPassing(() => Time.Armed == 0 || AllAsked.Count > 40);
        Assert.InRange(AllAsked.Count, 4, 40);
    }

    [Fact]
    public async Task AfterAnIdleTime_TheFirstCallMayWaitForProbeDelayToo()
    {
        var pool = NewPool(channels: 1);
        (await CallAsync(pool)).Return(LeaseOutcome.Answered);
        Pass(TimeSpan.FromMinutes(1));
        var lease = await CallAsync(pool);
        Pass(TimeSpan.FromSeconds(0.75));
        Assert.Empty(AllAsked);
        Pass(Tick);
        Assert.Single(AllAsked);
        lease.Dispose();
    }

    [Fact]
    public async Task AChannelIsGivenUpOnce_HoweverLongItsCallsGoOn()
    {
        var pool = NewPool(channels: 2);
        var silent = await GiveOneUpAsync(pool);
        await Waiting.Until(() => AllAsked.Count == 3);
        AllAsked[2].Answer.SetResult();
        for (var i = 0; i < 30; i++)
        {
            Pass(TimeSpan.FromSeconds(1));
            (await CallAsync(pool)).Return(LeaseOutcome.Answered);
            await Task.Yield();
        }

        Assert.Equal(1, pool.GetStatistics().ChannelsGivenUp);
        silent.Dispose();
    }

    // Two channels on which a server has answered; on one of them a call waits from now on.
    private async Task<(ChannelLease Silent, PooledChannel Good)> LeaseSilentAsync(ChannelPool pool)
    {
        var leases = await LeaseAsync(pool, 2);
        var channels = leases.Select(static lease => lease.Pooled).ToList();
        Array.ForEach(leases, static lease => lease.Return(LeaseOutcome.Answered));
        Pass(Tick); // seen
        var silent = await CallAsync(pool);
        return (silent, channels.Single(channel => channel != silent.Pooled));
    }

    // A call waits on one of two channels, which is asked in vain, while the other one lives.
    private async Task<ChannelLease> GiveOneUpAsync(ChannelPool pool)
    {
        var (silent, good) = await LeaseSilentAsync(pool);
        Pass(TimeSpan.FromSeconds(0.5));
        await AnswerAsync(pool, good);
        Pass(TimeSpan.FromSeconds(1));
        await AnswerAsync(pool, good);
        Pass(TimeSpan.FromSeconds(0.5));
        await UntilLastWordAsync();
        Pass(LastWord);
        return silent;
    }

    private List<Asked> Fresh(ChannelLease silent) => [.. AllAsked.Where(asked => asked.Invoker != silent.CallInvoker)];

    private static async Task<ChannelLease[]> LeaseAsync(ChannelPool pool, int count)
    {
        var leases = new ChannelLease[count];
        for (var i = 0; i < count; i++)
        {
            leases[i] = await CallAsync(pool);
        }

        return leases;
    }

    private static void ReturnAll(ChannelLease[] leases) => Array.ForEach(leases, static lease => lease.Dispose());

    private static bool Chooses(ChannelPool pool, CallInvoker invoker)
    {
        var leases = new List<ChannelLease>();
        while (leases.Count < 20 && pool.TryAcquire(out var lease))
        {
            leases.Add(lease);
        }

        var chooses = leases.Exists(lease => lease.CallInvoker == invoker);
        leases.ForEach(static lease => lease.Dispose());
        return chooses;
    }
}

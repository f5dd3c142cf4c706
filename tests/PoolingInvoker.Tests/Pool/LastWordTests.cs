using PoolingInvoker.Testing;

namespace PoolingInvoker.Tests.Pool;

/// <summary>
/// A server that stands still and goes on shows life on all channels within a moment, in any order; one that hangs does not.
/// </summary>
public sealed class LastWordTests : ProbedPools
{
    private ChannelPool? _pool;

    [Theory]
    [InlineData(1)]
    [InlineData(4)]
    [InlineData(8)]
    public async Task TheSuspectsAnswerCalls_AMomentAfterTheFreshOne(int channels)
    {
        var silent = await StandStillAsync(channels);
        AllAsked[^1].Answer.SetResult();
        await UntilLastWordAsync(channels);
        Pass(LastWord / 2);
        Assert.All(silent, static lease => Assert.Equal(PooledChannelState.Active, lease.Pooled.State));
        silent.ForEach(static lease => lease.Answered());
        await AssertKeptAsync(silent);
    }

    [Theory]
    [InlineData(1)]
    [InlineData(4)]
    [InlineData(8)]
    public async Task TheSuspectsAnswerCalls_AMomentBeforeTheFreshOne_SinceNobodyHasLooked(int channels)
    {
        var silent = await StandStillAsync(channels);
        silent.ForEach(static lease => lease.Answered());
        AllAsked[^1].Answer.SetResult();
        await AssertKeptAsync(silent);
    }

    [Theory]
    [InlineData(1)]
    [InlineData(4)]
    [InlineData(8)]
    public async Task TheSuspectsAnswerASecondProbe(int channels)
    {
        var silent = await StandStillAsync(channels);
        AllAsked[^1].Answer.SetResult();
        await UntilLastWordAsync(channels);
        AllAsked.TakeLast(channels).ToList().ForEach(static asked => asked.Answer.SetResult());
        await Waiting.Until(() => silent.TrueForAll(static lease => !lease.Pooled.Pulse.IsSuspect));
        await AssertKeptAsync(silent);
    }

    [Theory]
    [InlineData(1)]
    [InlineData(4)]
    [InlineData(8)]
    public async Task TheyHaveAsLongAsTheFreshOneTook_AndThenAreGivenUp(int channels)
    {
        var silent = await StandStillAsync(channels);
        var took = TimeSpan.FromMilliseconds(700);
        Pass(took);
        AllAsked[^1].Answer.SetResult();
        await UntilLastWordAsync(channels);
        Pass(took - TimeSpan.FromMilliseconds(1));
        Assert.Equal(0, _pool!.GetStatistics().ChannelsGivenUp);
        Pass(TimeSpan.FromMilliseconds(1));
        await Waiting.Until(() => _pool.GetStatistics().ChannelsGivenUp == channels);
        silent.ForEach(static lease => lease.Dispose());
    }

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public async Task WhileOthersLive_ASuspectHasTheLastWord(bool answers)
    {
        _pool = NewPool(channels: 2);
        var leases = new[] { await CallAsync(_pool), await CallAsync(_pool) };
        var (silent, good) = (leases[0], leases[1].Pooled);
        leases[1].Return(LeaseOutcome.Answered);
        Pass(TimeSpan.FromSeconds(1.5));
        await AnswerAsync(_pool, good); // while the other one is asked
        Pass(TimeSpan.FromSeconds(0.5));
        await UntilLastWordAsync(suspects: 1);
        Assert.Equal(0, _pool.GetStatistics().ChannelsGivenUp);
        if (answers)
        {
            AllAsked[^1].Answer.SetResult();
            await Waiting.Until(() => !silent.Pooled.Pulse.IsSuspect);
            await AssertKeptAsync([silent]);
        }
        else
        {
            Pass(LastWord);
            await Waiting.Until(() => _pool.GetStatistics().ChannelsGivenUp == 1);
            silent.Dispose();
        }
    }

    [Fact]
    public async Task OneThatCannotBeReplaced_TakesNoCalls_AndIsReplacedWhenOneCanBeMade()
    {
        _pool = NewPool(channels: 2);
        var leases = new[] { await CallAsync(_pool), await CallAsync(_pool) };
        var (silent, good) = (leases[0], leases[1].Pooled);
        leases[1].Return(LeaseOutcome.Answered);
        Pass(TimeSpan.FromSeconds(1.5));
        await AnswerAsync(_pool, good);
        Pass(TimeSpan.FromSeconds(0.5));
        await UntilLastWordAsync(suspects: 1);
        Policy.OnCreate = static () => throw new TimeoutException("no dial tone");
        Pass(LastWord);
        await Waiting.Until(() => _pool.GetStatistics().ChannelsGivenUp == 1);
        for (var i = 0; i < 20; i++)
        {
            Time.Advance(Tick);
            await AnswerAsync(_pool, good);
        }

        var asked = AllAsked.Count;
        Policy.OnCreate = StubPolicy.NewChannel;
        await UntilPassing(() => AllAsked.Count > asked);
        AllAsked[^1].Answer.SetResult();
        await UntilPassing(() => _pool.GetStatistics().ChannelsReplaced == 1);
        Assert.Equal((1L, PooledChannelState.Draining), (_pool.GetStatistics().ChannelsGivenUp, silent.Pooled.State));
        silent.Dispose();
    }

    // A call waits on each channel, all have been asked in vain, and fresh ones are asked.
    private async Task<List<ChannelLease>> StandStillAsync(int channels)
    {
        _pool = NewPool(channels);
        var silent = new List<ChannelLease>();
        while (silent.Count < channels)
        {
            silent.Add(await CallAsync(_pool));
        }

        Assert.Equal(channels, silent.DistinctBy(static lease => lease.Pooled).Count());
        Pass(TimeSpan.FromSeconds(2));
        await Waiting.Until(() => AllAsked.Count == channels + 3);
        return silent;
    }

    // They live, and nothing is left of the fresh ones.
    private async Task AssertKeptAsync(List<ChannelLease> silent)
    {
        await UntilPassing(() => Policy.Created.Count(static channel => !StubPolicy.IsDisposed(channel)) == _pool!.GetStatistics().Channels);
        Pass(TimeSpan.FromSeconds(1));
        Assert.All(silent, static lease => Assert.Equal(PooledChannelState.Active, lease.Pooled.State));
        Assert.Equal((0L, 0L), (_pool!.GetStatistics().ChannelsGivenUp, _pool.GetStatistics().ChannelsReplaced));
        silent.ForEach(static lease => lease.Dispose());
    }
}

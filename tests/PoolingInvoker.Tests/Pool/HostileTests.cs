using System.Collections.Concurrent;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.Tests.Pool;

/// <summary>Orders of events in which a silent channel would stay, a good one would be cut, or an endpoint be dialled for ever.</summary>
public sealed class HostileTests : ProbedPools
{
    [Fact]
    public async Task ADrainingChannelThatIsSilent_DoesNotEndTheSearchForAFreshOne()
    {
        var pool = NewPool(channels: 1);
        var leases = new[] { await CallAsync(pool), await CallAsync(pool) };
        leases[1].Return(LeaseOutcome.ChannelFailed);
        Assert.Equal(1, pool.GetStatistics().DrainingChannels);
        await UntilPassing(() => leases[0].Pooled.Pulse.AskedInVainAt is not null);

        var silent = await CallAsync(pool);
        Assert.NotSame(leases[0].Pooled, silent.Pooled);
        await UntilPassing(() => silent.Pooled.Pulse.AskedInVainAt is not null);
        await UntilPassing(() =>
        {
            Fresh().ToList().ForEach(static asked => asked.Answer.TrySetResult()); // the time of one may be over before it is answered
            return pool.GetStatistics().ChannelsGivenUp == 2;
        });
        leases[0].Dispose();
        silent.Dispose();

        IEnumerable<Asked> Fresh() => AllAsked.Where(asked => asked.Invoker != leases[0].CallInvoker && asked.Invoker != silent.CallInvoker);
    }

    [Fact]
    public async Task AChannelThatIsGivenUp_IsReplacedWhenThereAreCallsAgain_IfNoServerAnsweredBefore()
    {
        var pool = NewPool(channels: 2);
        var silent = await GiveOneUpAsync(pool);
        var old = silent.CallInvoker;
        await UntilPassing(() => AskedOfNew().Count == 1);
        silent.Dispose();
        await UntilPassing(() => Time.Armed == 0); // it was asked in vain, and there are no calls
        Assert.Single(AskedOfNew());
        Assert.Equal((2, 0L), (pool.GetStatistics().Channels, pool.GetStatistics().ChannelsReplaced));

        var lease = await CallAsync(pool);
        Assert.NotSame(old, lease.CallInvoker);
        await UntilPassing(() =>
        {
            AskedOfNew().Skip(1).ToList().ForEach(static asked => asked.Answer.TrySetResult()); // the good one may be asked, too
            return pool.GetStatistics().ChannelsReplaced == 1;
        });
        lease.Return(LeaseOutcome.Answered);

        List<Asked> AskedOfNew() => [.. AllAsked.Where(asked => asked.Invoker != old)];
    }

    [Fact]
    public async Task WhereCallsHaveNoOther_AChannelThatIsGivenUp_TakesThem_WhenNoServerAnsweredOnTheFirstNewOne()
    {
        var pool = NewPool(channels: 2, mostCalls: 1, mostChannels: 2);
        var silent = await GiveOneUpAsync(pool);
        var old = silent.CallInvoker;
        silent.Return(LeaseOutcome.ChannelFailed);
        var busy = await CallAsync(pool);
        var waiting = CallAsync(pool);
        Assert.Equal(1, pool.GetStatistics().CallsWaiting);
        await UntilPassing(() => waiting.IsCompleted);
        var lease = await waiting;
        Assert.Same(old, lease.CallInvoker);
        busy.Dispose();
        lease.Dispose();
    }

    [Fact]
    public async Task WhereThereIsPlaceForOneChannel_AnEndpointThatSwallowsDials_IsLeftForTheOther()
    {
        var dialled = new ConcurrentQueue<string>();
        using var pool = ChannelPool.ForAddresses(["http://one:5000", "http://two:5000"], new ChannelPoolOptions
        {
            MaxPoolSize = 1,
            TimeProvider = Time,
            ConfigureHandler = handler => handler.ConnectCallback = async (context, token) =>
            {
                dialled.Enqueue(context.DnsEndPoint.Host);
                await Task.Delay(Timeout.InfiniteTimeSpan, TimeProvider.System, token);
                throw new InvalidOperationException();
            },
        });
        var client = new User.UserClient(new PoolingCallInvoker(pool));
        var calling = Task.CompletedTask;
        await Waiting.Until(() =>
        {
            if (calling.IsCompleted)
            {
                calling = client.GetNameAsync(new GetNameRequest()).ResponseAsync;
                calling.Observe();
            }

            Time.Advance(Tick);
            return dialled.Distinct().Count() == 2;
        });
    }

    // A call waits on one of two channels, which is asked in vain, while the other one lives.
    private async Task<ChannelLease> GiveOneUpAsync(ChannelPool pool)
    {
        var silent = await CallAsync(pool);
        await UntilPassing(() =>
        {
            CallElsewhere(pool, silent.Pooled).Return(LeaseOutcome.Answered);
            return pool.GetStatistics().ChannelsGivenUp == 1;
        });
        return silent;
    }

    private static ChannelLease CallElsewhere(ChannelPool pool, PooledChannel otherThan)
    {
        var acquiring = pool.Queue.AcquireAsync(Timeout.InfiniteTimeSpan, new LeaseRequest(LeaseKind.Call, otherThan), CancellationToken.None).AsTask();
        Assert.True(acquiring.IsCompletedSuccessfully);
        return acquiring.Result;
    }
}

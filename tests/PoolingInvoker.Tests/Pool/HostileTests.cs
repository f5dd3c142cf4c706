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
        await UntilPassing(() => Fresh().Any());
        Fresh().First().Answer.SetResult();
        await UntilPassing(() => pool.GetStatistics().ChannelsGivenUp == 2);
        leases[0].Dispose();
        silent.Dispose();

        IEnumerable<Asked> Fresh() => AllAsked.Where(asked => asked.Invoker != leases[0].CallInvoker && asked.Invoker != silent.CallInvoker);
    }

    [Fact]
    public async Task ANewOneThatHasAnswered_IsNotTriedOutAnyMore_AlthoughItIsSuspectByThen()
    {
        var pool = NewPool(channels: 2, probeDelay: TimeSpan.FromSeconds(0.5));
        var silent = await CallAsync(pool);
        var good = (await CallAsync(pool)).Pooled;
        await UntilPassing(() =>
        {
            CallElsewhere(pool, silent.Pooled).Return(LeaseOutcome.Answered);
            return pool.GetStatistics().ChannelsGivenUp == 1;
        });
        await UntilPassing(() => AllAsked.Any(asked => asked.Invoker != silent.CallInvoker));
        var answered = CallElsewhere(pool, good);
        var created = answered.Pooled;
        Assert.Equal(ChannelHealth.Quarantined, created.Health);
        answered.Return(LeaseOutcome.Answered);
        var waiting = CallElsewhere(pool, good);
        Assert.Same(created, waiting.Pooled);

        // It is tried out for a second and a pause, and is suspect after half a second.
        await UntilPassing(() => created.Pulse.IsSuspect);
        await UntilPassing(() => created.Pulse.AskedInVainAt is not null || created.State != PooledChannelState.Active);
        Assert.Equal((PooledChannelState.Active, 1L), (created.State, pool.GetStatistics().ChannelsReplaced));
        silent.Dispose();
        waiting.Dispose();
    }

    [Fact]
    public async Task ANewOneOnWhichNoServerAnswered_IsTriedOutAgain_WhenThereAreCallsAgain()
    {
        var pool = NewPool(channels: 2);
        var silent = await CallAsync(pool);
        var old = silent.CallInvoker;
        await UntilPassing(() =>
        {
            CallElsewhere(pool, silent.Pooled).Return(LeaseOutcome.Answered);
            return pool.GetStatistics().ChannelsGivenUp == 1;
        });
        await UntilPassing(() => AskedOfNew().Count == 1);
        silent.Dispose();
        await UntilPassing(() => Time.Armed == 0); // it was tried out in vain, and there are no calls
        Assert.Single(AskedOfNew());

        var lease = await CallAsync(pool);
        Assert.NotSame(AskedOfNew()[0].Invoker, lease.CallInvoker);
        await UntilPassing(() => AskedOfNew().Count == 2);
        AskedOfNew()[1].Answer.SetResult();
        await UntilPassing(() => CallElsewhere(pool, lease.Pooled) is var other && Returned(other));
        lease.Return(LeaseOutcome.Answered);

        List<Asked> AskedOfNew() => [.. AllAsked.Where(asked => asked.Invoker != old)];

        static bool Returned(ChannelLease other)
        {
            var isHealthy = other.Pooled.Health == ChannelHealth.Healthy;
            other.Dispose();
            return isHealthy;
        }
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

    private static ChannelLease CallElsewhere(ChannelPool pool, PooledChannel otherThan)
    {
        var acquiring = pool.Picker.AcquireAsync(Timeout.InfiniteTimeSpan, isStream: false, otherThan, playsSafe: false, CancellationToken.None).AsTask();
        Assert.True(acquiring.IsCompletedSuccessfully);
        return acquiring.Result;
    }
}

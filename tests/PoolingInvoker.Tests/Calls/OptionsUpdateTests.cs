using Grpc.Core;
using Grpc.Net.Client.Configuration;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.Tests.Calls;

/// <summary>What is said of calls changes for those that begin after it.</summary>
public sealed class OptionsUpdateTests : ScriptedCalls
{
    [Fact]
    public async Task Retries_AreThoseOfNow()
    {
        var invoker = NewInvoker(static options => options.Retry.MaxRetryAttempts = 0);
        Assert.Equal(1, await AttemptsAsync(invoker));
        invoker.UpdateOptions(New(static options => options.Retry.MaxRetryAttempts = 2));
        Assert.Equal(3, await AttemptsAsync(invoker));
        invoker.UpdateOptions(New(static options => options.MethodConfigs.Add(new PooledMethodConfig
        {
            Names = { new MethodName { Service = "user.v1.User", Method = "GetName" } },
            Retry = new ChannelRetryStrategyOptions { MaxRetryAttempts = 1 },
        })));
        Assert.Equal(2, await AttemptsAsync(invoker));
    }

    [Fact]
    public async Task ACallThatHasBegun_GoesOnWithWhatItBeganWith()
    {
        var invoker = NewInvoker(static options => options.Retry.MaxRetryAttempts = 3);
        Server.ThenRefuse().ThenRefuse().ThenName("anna");
        var calling = new User.UserClient(invoker).GetNameAsync(new GetNameRequest()).ResponseAsync;
        await Waiting.Until(() => Server.Requests.Count >= 1);
        invoker.UpdateOptions(New(static options => options.Retry.MaxRetryAttempts = 0));
        await Elapse(calling);
        Assert.Equal("anna", (await calling.Soon()).Name);
    }

    [Fact]
    public async Task TheBudget_StaysWhereItHasNotChanged_AndIsNewWhereItHas_ForAllInvokersOverThePool()
    {
        var invoker = NewInvoker(static options => options.Pool.RetryThrottling = Budget(4));
        await using var another = new PoolingCallInvoker(invoker.Pool);
        Assert.Equal(2, await AttemptsAsync(invoker)); // 4 tokens: the first failure leaves 3, the second 2
        Update(static options => (options.RetryThrottling, options.MaxPoolSize) = (Budget(4), 50));
        Assert.Equal(1, await AttemptsAsync(another));
        Update(static options => options.RetryThrottling = Budget(100));
        Assert.Equal(4, await AttemptsAsync(invoker));
        Update(static options => options.RetryThrottling = null);
        Assert.Equal(4, await AttemptsAsync(another));
        Update(static options => options.RetryThrottling = Budget(1));
        Assert.Equal(1, await AttemptsAsync(invoker));

        static RetryThrottlingPolicy Budget(int tokens) => new() { MaxTokens = tokens, TokenRatio = 1 };
        void Update(Action<ChannelPoolOptions> change)
        {
            var options = new ChannelPoolOptions { AcquireTimeout = Timeout.InfiniteTimeSpan, PooledChannelLifetime = Timeout.InfiniteTimeSpan, ProbeDelay = Timeout.InfiniteTimeSpan };
            change(options);
            invoker.Pool.UpdateOptions(options);
        }
    }

    [Fact]
    public async Task TheSpaceForRequests_IsThatOfThePoolNow()
    {
        await using var invoker = PoolingCallInvoker.ForAddress("http://localhost");
        var environment = new CallEnvironment(invoker.Pool, new PoolingCallInvokerOptions());
        var space = environment.ReplaySpace;
        Assert.True(space.TryTake(1_000));
        invoker.UpdateOptions(New(static options => options.Retry.MaxRetryAttempts = 1));
        Assert.Same(space, environment.ReplaySpace);
        invoker.UpdateOptions(New(static options => options.Pool.MaxRetryBufferSize = 500));
        Assert.False(environment.ReplaySpace.TryTake(1_000));
        space.GiveBack(1_000);
    }

    [Fact]
    public async Task OfAPoolOfAnothers_TheSizesAreItsOwn()
    {
        var told = new List<ChannelPoolEvent>();
        var invoker = NewInvoker(options => options.Pool.OnEvent = told.Add);
        Assert.StartsWith("Pool is set, but the pool exists already", Assert.Throws<ArgumentException>(() => invoker.UpdateOptions(New(static options => options.Pool.MaxPoolSize = 3))).Message, StringComparison.Ordinal);
        invoker.UpdateOptions(New(static options => options.Retry.MaxRetryAttempts = 5));
        Assert.Equal((ChannelPoolEventReason.OptionsChanged, "Retry.MaxRetryAttempts 3 → 5"), (Assert.Single(told).Reason, told[0].Message));

        await using var owner = PoolingCallInvoker.ForAddress("http://localhost");
        owner.UpdateOptions(New(static options => options.Pool.MaxPoolSize = 3));
        Assert.Equal(3, owner.Pool.State.Options.MaxPoolSize);
    }

    public static TheoryData<Action<PoolingCallInvokerOptions>, string> Mistakes => new()
    {
        { static options => options.Retry.MaxRetryAttempts = -1, "Retry.MaxRetryAttempts is -1. It must be at least 0, which turns the retry off." },
        { static options => options.Retry.Delay = TimeSpan.FromDays(2), "Retry.Delay is 2.00:00:00. It must be from 0 to 1 day." },
        { static options => options.Retry.MaxDelay = TimeSpan.FromSeconds(-1), "Retry.MaxDelay is -00:00:01. It must be from 0 to 1 day, or null for no bound." },
        { static options => options.MethodConfigs.Add(new PooledMethodConfig { Names = { MethodName.Default }, Hedging = new ChannelHedgingStrategyOptions { MaxHedgedAttempts = 11 } }), "Hedging.MaxHedgedAttempts is 11. It must be from 1 to 10." },
        { static options => options.Pool.MaxPoolSize = 0, "MaxPoolSize is 0. It must be at least 1." },
    };

    [Theory]
    [MemberData(nameof(Mistakes))]
    public async Task AMistake_IsNamed_AndChangesNothing(Action<PoolingCallInvokerOptions> mistake, string message)
    {
        Assert.Contains(message, Assert.Throws<ArgumentException>(() => PoolingCallInvoker.ForAddress("http://localhost", New(mistake))).Message, StringComparison.Ordinal);
        var told = new List<ChannelPoolEvent>();
        await using var invoker = PoolingCallInvoker.ForAddress("http://localhost", New(options => options.Pool.OnEvent = told.Add));
        Assert.Contains(message, Assert.Throws<ArgumentException>(() => invoker.UpdateOptions(New(mistake))).Message, StringComparison.Ordinal);
        Assert.Empty(told);
    }

    private static PoolingCallInvokerOptions New(Action<PoolingCallInvokerOptions> configure)
    {
        var options = new PoolingCallInvokerOptions();
        configure(options);
        return options;
    }

    // How often a call is made that fails each time. Its server answers: it is idempotent, and each failure costs a token.
    private async Task<int> AttemptsAsync(PoolingCallInvoker invoker)
    {
        var before = Server.Requests.Count;
        Enumerable.Range(0, 5).ToList().ForEach(_ => Server.ThenStatus(StatusCode.Unavailable));
        var calling = new User.UserClient(invoker).GetNameAsync(new GetNameRequest()).ResponseAsync;
        await Elapse(calling);
        await Assert.ThrowsAsync<RpcException>(() => calling.Soon());
        return Server.Requests.Count - before;
    }
}

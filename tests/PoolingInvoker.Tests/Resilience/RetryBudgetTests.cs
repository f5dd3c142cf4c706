using Grpc.Core;
using Grpc.Net.Client.Configuration;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;
using PoolingInvoker.Tests.Calls;

namespace PoolingInvoker.Tests.Resilience;

/// <summary>The tokens, and what they cost the calls.</summary>
public sealed class RetryBudgetTests : ScriptedCalls
{
    [Fact]
    public void ARatioBeyondAllBounds_FillsTheBudget()
    {
        var budget = new RetryBudget(maxTokens: 10, tokenRatio: double.MaxValue);
        Enumerable.Range(0, 8).ToList().ForEach(_ => budget.Failed());
        Assert.False(budget.AllowsRetry);
        budget.Succeeded();
        Assert.True(budget.AllowsRetry);
    }

    [Fact]
    public void AtHalf_NoMoreIsSent_AndASuccessBringsItBack()
    {
        var budget = new RetryBudget(maxTokens: 10, tokenRatio: 0.5);
        Repeat(4, budget.Failed);
        Assert.True(budget.AllowsRetry);
        budget.Failed();
        Assert.False(budget.AllowsRetry);
        budget.Succeeded();
        Assert.True(budget.AllowsRetry);
    }

    [Fact]
    public void TheTokens_AreNeverBelowZero()
    {
        var budget = new RetryBudget(maxTokens: 10, tokenRatio: 1);
        Repeat(25, budget.Failed);
        Repeat(5, budget.Succeeded);
        Assert.False(budget.AllowsRetry);
        budget.Succeeded();
        Assert.True(budget.AllowsRetry);
    }

    [Fact]
    public void TheTokens_AreNeverMoreThanTheMaximum()
    {
        var budget = new RetryBudget(maxTokens: 10, tokenRatio: 3);
        budget.Failed();
        Repeat(100, budget.Succeeded);
        Repeat(4, budget.Failed);
        Assert.True(budget.AllowsRetry);
        budget.Failed();
        Assert.False(budget.AllowsRetry);
    }

    [Fact]
    public void TheRatio_CountsInThousandths()
    {
        var budget = new RetryBudget(maxTokens: 2, tokenRatio: 0.001);
        budget.Failed();
        Assert.False(budget.AllowsRetry);
        budget.Succeeded();
        Assert.True(budget.AllowsRetry);
        budget.Failed();
        Repeat(999, budget.Succeeded);
        Assert.False(budget.AllowsRetry);
        Repeat(2, budget.Succeeded);
        Assert.True(budget.AllowsRetry);
    }

    [Theory]
    [InlineData(1)]
    [InlineData(3)]
    public void HalfOfAnOddNumber_IsNotRounded(int maxTokens)
    {
        var budget = new RetryBudget(maxTokens, tokenRatio: 0.001);
        Repeat(maxTokens / 2, budget.Failed);
        Assert.True(budget.AllowsRetry); // 1 of 1, 2 of 3
        budget.Failed();
        Assert.False(budget.AllowsRetry);
    }

    [Fact]
    public async Task ManyThreads_LoseNothing()
    {
        var budget = new RetryBudget(maxTokens: 100_000, tokenRatio: 1);
        await OnFourThreads(() => Repeat(15_000, budget.Failed)); // 40,000 are left
        await OnFourThreads(() => Repeat(5_000, () =>
        {
            budget.Failed();
            budget.Succeeded();
        }));
        await OnFourThreads(() => Repeat(2_500, budget.Succeeded));
        Assert.False(budget.AllowsRetry);
        budget.Succeeded();
        Assert.True(budget.AllowsRetry);

        static Task OnFourThreads(Action action) => Task.WhenAll(Enumerable.Range(0, 4).Select(_ => Task.Run(action))).Soon();
    }

    [Fact]
    public async Task ABurstOfFailures_StopsTheRetries_AndSuccessesBringThemBack()
    {
        var (client, _) = NewClient(static options => options.Pool.RetryThrottling = new RetryThrottlingPolicy { MaxTokens = 4, TokenRatio = 1 });

        // 4 tokens: the first failure leaves 3 and is tried again, the second leaves 2.
        Assert.Equal(2, await FailAsync(client, attempts: 2));
        Assert.Equal(1, await FailAsync(client, attempts: 1));
        Assert.Equal(1, await FailAsync(client, attempts: 1)); // none is left

        for (var i = 0; i < 4; i++)
        {
            Server.ThenName("anna");
            await client.GetNameAsync(new GetNameRequest()).ResponseAsync.Soon();
        }

        Server.ThenStatus(StatusCode.Unavailable).ThenName("anna");
        var calling = client.GetNameAsync(new GetNameRequest()).ResponseAsync;
        await Elapse(calling);
        Assert.Equal("anna", (await calling.Soon()).Name);
    }

    [Fact]
    public async Task AnEmptyBudget_StopsAPipelineOfTheUsersToo()
    {
        var (client, _) = NewClient(static options =>
        {
            options.Pool.RetryThrottling = new RetryThrottlingPolicy { MaxTokens = 1, TokenRatio = 1 };
            options.ConfigurePipeline = static pipeline => Polly.RetryResiliencePipelineBuilderExtensions.AddRetry(pipeline, new Polly.Retry.RetryStrategyOptions { Delay = TimeSpan.Zero });
        });
        Assert.Equal(1, await FailAsync(client, attempts: 1));
    }

    [Theory]
    [InlineData(StatusCode.Unavailable, null, true, true)]
    [InlineData(StatusCode.Unavailable, null, false, false)] // no attempt could follow
    [InlineData(StatusCode.InvalidArgument, null, true, false)]
    [InlineData(StatusCode.InvalidArgument, "-1", true, true)] // gRFC A6: who is asked to stay away is throttled
    [InlineData(StatusCode.InvalidArgument, "10", true, false)]
    public async Task WhatCostsAToken(StatusCode status, string? pushback, bool isIdempotent, bool costs)
    {
        var (client, pool) = NewClient(static options => options.Pool.RetryThrottling = new RetryThrottlingPolicy { MaxTokens = 4, TokenRatio = 1 });
        var withoutRetries = new User.UserClient(new PoolingCallInvoker(pool, new PoolingCallInvokerOptions { Retry = { MaxRetryAttempts = 0 } }));
        for (var i = 0; i < 2; i++)
        {
            (string, string)[] trailers = pushback is null ? [] : [("grpc-retry-pushback-ms", pushback)];
            Server.ThenStatus(status, trailers);
            await Assert.ThrowsAsync<RpcException>(() => isIdempotent
                ? withoutRetries.GetNameAsync(new GetNameRequest()).ResponseAsync.Soon()
                : withoutRetries.RenameAsync(new RenameRequest()).ResponseAsync.Soon());
        }

        // One more leaves 1 or 3 tokens.
        Assert.Equal(costs ? 1 : 2, await FailAsync(client, attempts: costs ? 1 : 2));
    }

    [Fact]
    public async Task WhatNeverLeft_CostsNothing_AndIsTriedAgainOnAnEmptyBudget()
    {
        var (client, pool) = NewClient(static options => options.Pool.RetryThrottling = new RetryThrottlingPolicy { MaxTokens = 2, TokenRatio = 1 });
        for (var i = 0; i < 5; i++)
        {
            Server.ThenRefuse();
        }

        Server.ThenName("anna");
        for (var i = 0; i < 2; i++)
        {
            var refused = client.GetNameAsync(new GetNameRequest()).ResponseAsync; // of four attempts, then of two
            await Elapse(refused);
            if (i == 0)
            {
                await Assert.ThrowsAsync<RpcException>(() => refused.Soon());
            }
            else
            {
                Assert.Equal("anna", (await refused.Soon()).Name);
            }
        }

        Assert.Equal(4, pool.GetStatistics().Retries);
        Assert.Equal(1, await FailAsync(client, attempts: 1)); // leaves 1 of 2

        Server.ThenRefuse().ThenName("anna");
        var calling = client.RenameAsync(new RenameRequest()).ResponseAsync;
        await Elapse(calling);
        await calling.Soon();
    }

    [Fact]
    public async Task InvokersOverOnePool_ShareItsBudget()
    {
        var (first, pool) = NewClient(static options => options.Pool.RetryThrottling = new RetryThrottlingPolicy { MaxTokens = 2, TokenRatio = 1 });
        var second = new User.UserClient(new PoolingCallInvoker(pool));
        Assert.Equal(1, await FailAsync(first, attempts: 1));
        Assert.Equal(1, await FailAsync(second, attempts: 1));
        var another = NewClient().Client; // over a pool of its own
        Assert.Equal(4, await FailAsync(another, attempts: 4));
    }

    [Fact]
    public async Task Null_TurnsItOff()
    {
        var (client, _) = NewClient(static options => options.Pool.RetryThrottling = null);
        for (var i = 0; i < 20; i++)
        {
            Assert.Equal(4, await FailAsync(client, attempts: 4));
        }
    }

    [Theory]
    [InlineData(0, 0.1)]
    [InlineData(-1, 0.1)]
    [InlineData(10, 0)]
    [InlineData(10, -0.5)]
    [InlineData(10, 0.0005)]
    [InlineData(10, double.NaN)]
    public void BadValues_AreSaidSo(int maxTokens, double tokenRatio)
    {
        var options = new ChannelPoolOptions { RetryThrottling = new RetryThrottlingPolicy { MaxTokens = maxTokens, TokenRatio = tokenRatio } };
        var exception = Assert.Throws<ArgumentException>(() => new ChannelPool(new StubPolicy(), options));
        Assert.Equal(
            $"RetryThrottling has MaxTokens {maxTokens} and TokenRatio {tokenRatio}. MaxTokens must be at least 1 and TokenRatio at least 0.001; set RetryThrottling to null to turn it off.",
            exception.Message);
    }

    private static void Repeat(int times, Action action)
    {
        for (var i = 0; i < times; i++)
        {
            action();
        }
    }

    // Makes a call that the server fails as often as it comes, and says how often it came.
    private async Task<int> FailAsync(User.UserClient client, int attempts)
    {
        for (var i = 0; i < attempts; i++)
        {
            Server.ThenStatus(StatusCode.Unavailable);
        }

        var before = Server.Requests.Count;
        var calling = client.GetNameAsync(new GetNameRequest()).ResponseAsync;
        await Elapse(calling);
        await Assert.ThrowsAsync<RpcException>(() => calling.Soon());
        return Server.Requests.Count - before;
    }
}

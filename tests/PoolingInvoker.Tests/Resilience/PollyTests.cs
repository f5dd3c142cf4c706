using System.Net.Sockets;
using Grpc.Core;
using Microsoft.Extensions.Diagnostics.Metrics.Testing;
using Microsoft.Extensions.Logging.Abstractions;
using Polly;
using Polly.CircuitBreaker;
using Polly.RateLimiting;
using Polly.Registry;
using Polly.Simmy;
using Polly.Simmy.Fault;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;
using PoolingInvoker.Tests.Calls;

namespace PoolingInvoker.Tests.Resilience;

/// <summary>Strategies of Polly in a pipeline of the user's, and Polly's own ways of changing and watching one.</summary>
public sealed class PollyTests : ScriptedCalls
{
    [Fact]
    public async Task ARateLimiter_IsResourceExhausted_AndSendsNothing()
    {
        Server.ThenHang();
        var (client, pool) = NewClient(static options => options.ConfigurePipeline = static pipeline => pipeline.AddConcurrencyLimiter(permitLimit: 1, queueLimit: 0));
        using var first = client.GetNameAsync(new GetNameRequest());
        await Waiting.Until(() => Server.Requests.Count == 1);

        var exception = await Assert.ThrowsAsync<RpcException>(() => client.GetNameAsync(new GetNameRequest()).ResponseAsync.Soon());
        Assert.Equal(StatusCode.ResourceExhausted, exception.StatusCode);
        Assert.IsType<RateLimiterRejectedException>(exception.Status.DebugException);
        Assert.Equal((1, 1), (Server.Requests.Count, pool.GetStatistics().CallsInFlight));
    }

    [Fact]
    public async Task ACircuit_ClosesAgainWhenACallSucceeds()
    {
        Server.ThenBreak().ThenBreak().ThenName("anna").ThenName("otto");
        var (client, _) = NewClient(static options => options.ConfigurePipeline = static pipeline => pipeline.AddCircuitBreaker(new CircuitBreakerStrategyOptions
        {
            MinimumThroughput = 2,
            FailureRatio = 1,
            BreakDuration = TimeSpan.FromSeconds(5),
        }));
        for (var i = 0; i < 3; i++)
        {
            var exception = await Assert.ThrowsAsync<RpcException>(() => client.GetNameAsync(new GetNameRequest()).ResponseAsync.Soon());
            Assert.Equal((StatusCode.Unavailable, i == 2), (exception.StatusCode, exception.Status.DebugException is BrokenCircuitException));
        }

        Time.Advance(TimeSpan.FromSeconds(5));
        Assert.Equal("anna", (await client.GetNameAsync(new GetNameRequest()).ResponseAsync.Soon()).Name);
        Assert.Equal("otto", (await client.GetNameAsync(new GetNameRequest()).ResponseAsync.Soon()).Name);
        Assert.Equal(4, Server.Requests.Count);
    }

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public async Task ATimeoutBelowThePresetRetry_IsRetriedWhereThatIsSafe(bool isIdempotent)
    {
        Server.ThenHang().ThenName("anna");
        var (client, _) = NewClient(options =>
        {
            options.IsIdempotent = _ => isIdempotent;
            options.ConfigurePipeline = static pipeline => pipeline.AddRetry(new ChannelRetryStrategyOptions()).AddTimeout(TimeSpan.FromHours(1));
        });
        var calling = client.GetNameAsync(new GetNameRequest()).ResponseAsync;
        await Waiting.Until(() => Server.Requests.Count == 1);
        Time.Advance(TimeSpan.FromHours(1));
        await Elapse(() => calling.IsCompleted || Server.Requests.Count == 2); // much less than the time-out of the second attempt
        await Waiting.Until(() => calling.IsCompleted);
        Assert.Equal((isIdempotent, isIdempotent ? 2 : 1), (calling.IsCompletedSuccessfully, Server.Requests.Count));
        Assert.Equal(isIdempotent ? null : StatusCode.DeadlineExceeded, (calling.Exception?.InnerException as RpcException)?.StatusCode);
    }

    [Fact]
    public async Task ChaosBelowTheRetry_IsJudgedAsAnAttemptIs()
    {
        Server.ThenName("anna");
        var injected = 0;
        var (client, _) = NewClient(options => options.ConfigurePipeline = pipeline => pipeline
            .AddRetry(new ChannelRetryStrategyOptions { Delay = TimeSpan.Zero })
            .AddChaosFault(new ChaosFaultStrategyOptions
            {
                InjectionRate = 1,
                EnabledGenerator = _ => ValueTask.FromResult(injected < 2),
                FaultGenerator = _ =>
                {
                    injected++;
                    return ValueTask.FromResult<Exception?>(new RpcException(new Status(StatusCode.Unavailable, "", new SocketException((int)SocketError.ConnectionRefused))));
                },
            }));
        Assert.Equal("anna", (await client.GetNameAsync(new GetNameRequest()).ResponseAsync.Soon()).Name);
        Assert.Equal((2, 1), (injected, Server.Requests.Count));
    }

    [Fact]
    public async Task ChaosThatTakesTime_TakesItOfTheCall()
    {
        Server.ThenName("anna");
        var (client, _) = NewClient(static options => options.ConfigurePipeline = static pipeline => pipeline.AddChaosLatency(1, TimeSpan.FromSeconds(7)));
        var call = client.GetNameAsync(new GetNameRequest());
        Time.Advance(TimeSpan.FromSeconds(6));
        Assert.Empty(Server.Requests);
        Time.Advance(TimeSpan.FromSeconds(1));
        Assert.Equal("anna", (await call.ResponseAsync.Soon()).Name);
    }

    [Fact]
    public async Task APipelineOfARegistry_IsReloadedUnderTheInvoker()
    {
        var retries = 1;
        using var reload = new CancellationTokenSource();
        await using var registry = new ResiliencePipelineRegistry<string>();
        registry.TryAddBuilder("users", (builder, context) =>
        {
            context.AddReloadToken(reload.Token);
            builder.AddRetry(new ChannelRetryStrategyOptions { MaxRetryAttempts = retries, Delay = TimeSpan.Zero });
        });
        Server.ThenBreak().ThenBreak().ThenBreak().ThenBreak().ThenName("anna");
        var (client, _) = NewClient(options => options.ConfigurePipeline = pipeline => pipeline.AddPipeline(registry.GetPipeline("users")));
        await Assert.ThrowsAsync<RpcException>(() => client.GetNameAsync(new GetNameRequest()).ResponseAsync.Soon());
        Assert.Equal(2, Server.Requests.Count);

        retries = 2;
        await reload.CancelAsync();
        Assert.Equal("anna", (await client.GetNameAsync(new GetNameRequest()).ResponseAsync.Soon()).Name);
        Assert.Equal(5, Server.Requests.Count);
    }

    [Fact]
    public async Task TheTelemetryOfPolly_TellsOfThePresetRetry()
    {
        using var events = new MetricCollector<int>(meterScope: null, "Polly", "resilience.polly.strategy.events");
        Server.ThenBreak().ThenName("anna");
        var (client, _) = NewClient(static options =>
        {
            options.Pool.Name = "users";
            options.ConfigureTelemetry = static pipeline => pipeline.ConfigureTelemetry(NullLoggerFactory.Instance);
        });
        var call = client.GetNameAsync(new GetNameRequest());
        await Elapse(call.ResponseAsync);

        var retry = Assert.Single(events.GetMeasurementSnapshot(), static measured => Equals(measured.Tags["event.name"], "OnRetry"));
        Assert.Equal(
            ("PoolingInvoker", "users", "ChannelRetry", "/user.v1.User/GetName"),
            (retry.Tags["pipeline.name"], retry.Tags["pipeline.instance"], retry.Tags["strategy.name"], retry.Tags["operation.key"]));
    }
}

using Grpc.Core;
using Microsoft.Extensions.DependencyInjection;
using Microsoft.Extensions.Http.Resilience;
using Microsoft.Extensions.Logging;
using Microsoft.Extensions.Time.Testing;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.DependencyInjectionTests;

/// <summary>The standard resilience handler, as a default of all HTTP clients: over the pool it does what it does without.</summary>
public sealed class ResilienceTests
{
    private static readonly TimeSpan AttemptTimeout = TimeSpan.FromMilliseconds(100);

    public static TheoryData<bool> WithAndWithout => ClientApp.WithAndWithout;

    [Theory]
    [MemberData(nameof(WithAndWithout))]
    public async Task CallsOfEachKind_AndAWarning(bool pool)
    {
        await using var server = await UserServer.StartAsync();
        await using var app = new ClientApp(services => services
            .ConfigureHttpClientDefaults(static http => http.AddStandardResilienceHandler())
            .AddGrpcClient<User.UserClient>(options => options.Address = server.Address)
            .With(pool));
        foreach (var (method, callAsync) in ClientApp.OfEachKind())
        {
            await callAsync(app.Client);
            Assert.EndsWith(method, server.LastCall.Method, StringComparison.Ordinal);
        }

        app.AssertWent(pool);
        Assert.Equal(pool ? 1 : 0, Warnings(app).Count(static message => message.Contains("'UserClient' has a resilience handler", StringComparison.Ordinal)));
    }

    [Theory]
    [MemberData(nameof(WithAndWithout))]
    public async Task AStreamThatIsSilentFromItsStart_EndsByTheTimeoutOfAnAttempt_AndOneThatHasHeadersLives(bool pool)
    {
        await using var server = await UserServer.StartAsync();
        await using var app = new ClientApp(services => services
            .ConfigureHttpClientDefaults(static http => http.AddStandardResilienceHandler(static options =>
            {
                options.AttemptTimeout.Timeout = AttemptTimeout;
                options.Retry.DisableFor(HttpMethod.Post);
            }))
            .AddGrpcClient<User.UserClient>(options => options.Address = server.Address)
            .With(pool));
        RpcException? silent = null;
        while (silent is null)
        {
            using var lives = app.Client.Chat();
            try
            {
                await lives.RequestStream.WriteAsync(new ChatMessage()).Soon();
                Assert.True(await lives.ResponseStream.MoveNext().Soon());
            }
            catch (RpcException exception) when (exception.StatusCode is StatusCode.Internal or StatusCode.Unavailable or StatusCode.Cancelled)
            {
                continue; // a busy machine has not brought its headers in time
            }

            using var dies = app.Client.Chat();
            silent = await Assert.ThrowsAsync<RpcException>(() => dies.ResponseStream.MoveNext().Soon());

            await lives.RequestStream.WriteAsync(new ChatMessage()).Soon();
            Assert.True(await lives.ResponseStream.MoveNext().Soon());
        }

        Assert.Contains("TimeoutRejectedException", $"{silent.Status.DebugException}", StringComparison.Ordinal);
        Assert.Equal(StatusCode.Internal, silent.StatusCode);
        app.AssertWent(pool);
    }

    /// <summary>With the times that the handler has by default, on a clock that the test sets.</summary>
    [Theory]
    [InlineData(false, true)]
    [InlineData(true, true)]
    [InlineData(false, false)]
    [InlineData(true, false)]
    public async Task ADuplexCallThatIsSilentFor11Seconds_DiesByTheHandlerAlone(bool pool, bool hasHandler)
    {
        await using var server = await UserServer.StartAsync();
        var time = new FakeTimeProvider();
        await using var app = new ClientApp(services =>
        {
            services.AddSingleton<TimeProvider>(time);
            if (hasHandler)
            {
                services.ConfigureHttpClientDefaults(static http => http.AddStandardResilienceHandler(static options => options.Retry.DisableFor(HttpMethod.Post)));
            }

            services.AddGrpcClient<User.UserClient>(options => options.Address = server.Address).With(pool);
        });
        using var hasHeaders = app.Client.Chat();
        await hasHeaders.RequestStream.WriteAsync(new ChatMessage()).Soon();
        Assert.True(await hasHeaders.ResponseStream.MoveNext().Soon());
        using var silent = app.Client.Chat();
        await silent.RequestStream.WriteAsync(new ChatMessage { Text = "wait" }).Soon();
        var reading = silent.ResponseStream.MoveNext();
        await Waiting.Until(() => server.Calls.Count == 2);

        time.Advance(TimeSpan.FromSeconds(9.9));
        await hasHeaders.RequestStream.WriteAsync(new ChatMessage()).Soon(); // whatever the timer does is done
        Assert.True(await hasHeaders.ResponseStream.MoveNext().Soon());
        Assert.False(reading.IsCompleted);

        time.Advance(TimeSpan.FromSeconds(1.1));
        if (hasHandler)
        {
            var exception = await Assert.ThrowsAsync<RpcException>(() => reading.Soon());
            Assert.Equal(StatusCode.Internal, exception.StatusCode);
            Assert.Contains("00:00:10", $"{exception.Status.DebugException}", StringComparison.Ordinal);
        }
        else
        {
            server.Gate.SetResult();
            Assert.True(await reading.Soon());
        }

        await hasHeaders.RequestStream.WriteAsync(new ChatMessage()).Soon();
        Assert.True(await hasHeaders.ResponseStream.MoveNext().Soon());
        app.AssertWent(pool);
    }

    [Fact]
    public async Task WithoutTheHandler_ThereIsNoWarning()
    {
        await using var server = await UserServer.StartAsync();
#pragma warning disable EXTEXP0001 // RemoveAllResilienceHandlers is experimental.
        await using var app = new ClientApp(services => services
            .ConfigureHttpClientDefaults(static http => http.AddStandardResilienceHandler())
            .AddGrpcClient<User.UserClient>(options => options.Address = server.Address)
            .RemoveAllResilienceHandlers()
            .With(pool: true));
#pragma warning restore EXTEXP0001
        await app.CallAsync(overPool: true);
        Assert.Empty(Warnings(app));
    }

    private static IEnumerable<string> Warnings(ClientApp app) =>
        app.Logs.GetSnapshot().Where(static record => record.Level == LogLevel.Warning && record.Category == "PoolingInvoker.ClientPools").Select(static record => record.Message);
}

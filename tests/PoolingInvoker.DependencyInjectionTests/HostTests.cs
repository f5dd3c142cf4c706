using System.Collections.Concurrent;
using Grpc.Core;
using Grpc.Net.ClientFactory;
using Microsoft.Extensions.Configuration;
using Microsoft.Extensions.DependencyInjection;
using Microsoft.Extensions.Hosting;
using Microsoft.Extensions.Http.Logging;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.DependencyInjectionTests;

/// <summary>Clients in an app that serves calls, and that stops.</summary>
public sealed class HostTests
{
    public static TheoryData<bool> WithAndWithout => ClientApp.WithAndWithout;

    [Theory]
    [MemberData(nameof(WithAndWithout))]
    public async Task TheContextOfACall_IsPropagated(bool pool)
    {
        await using var back = await UserServer.StartAsync();
        await using var front = await UserServer.StartAsync(services: services =>
        {
            services.AddGrpcClient<User.UserClient>(options => options.Address = back.Address).With(pool).EnableCallContextPropagation();
            services.AddSingleton<Func<ServerCallContext, IServiceProvider, Task>>(static async (context, provider) =>
            {
                var client = provider.GetRequiredService<User.UserClient>();
                await client.GetNameAsync(new GetNameRequest());
                await client.RenameAsync(new RenameRequest());
            });
        });
        await using var app = new ClientApp(services => services.AddGrpcClient<User.UserClient>(options => options.Address = front.Address));
        var deadline = TimeProvider.System.GetUtcNow().AddHours(1).UtcDateTime;
        using var cancelled = new CancellationTokenSource();
        var call = app.Client.GetNameAsync(new GetNameRequest(), deadline: deadline, cancellationToken: cancelled.Token);
        await Waiting.Until(() => back.Calls.Count == 2);
        Assert.All(back.Calls, seen => Assert.InRange(seen.Deadline, deadline.AddMinutes(-1), deadline.AddSeconds(1)));

        await cancelled.CancelAsync();
        Assert.Equal(StatusCode.Cancelled, (await Assert.ThrowsAsync<RpcException>(() => call.ResponseAsync.Soon())).StatusCode);
        await Waiting.Until(() => back.Cancelled == 1);
        Assert.Equal(pool, front.Services.GetKeyedService<PoolingCallInvoker>(nameof(User.UserClient)) is not null);
    }

    [Fact]
    public async Task AHostThatStops_DrainsThePools()
    {
        await using var server = await UserServer.StartAsync();
        var builder = Host.CreateEmptyApplicationBuilder(new HostApplicationBuilderSettings());
        foreach (var name in new[] { "blue", "green" })
        {
            builder.Services.AddGrpcClient<User.UserClient>(name, options => options.Address = server.Address).AddChannelPool(static options => options.Pool.DrainTimeout = Timeout.InfiniteTimeSpan);
        }

        var host = builder.Build();
        await host.StartAsync();
        var factory = host.Services.GetRequiredService<GrpcClientFactory>();
        var clients = new[] { "blue", "green" }.Select(factory.CreateClient<User.UserClient>).ToList();
        var calls = clients.Select(static client => client.RenameAsync(new RenameRequest()).ResponseAsync).ToList();
        await Waiting.Until(() => server.Calls.Count == 2);

        await host.StopAsync();
        var disposing = ((IAsyncDisposable)host).DisposeAsync().AsTask();
        foreach (var client in clients)
        {
            // Both have begun to drain, side by side.
            await Waiting.Until(() => Throws(() => client.GetName(new GetNameRequest())));
        }

        Assert.False(disposing.IsCompleted);
        Assert.All(calls, static call => Assert.False(call.IsCompleted));
        server.Gate.SetResult();
        await Task.WhenAll(calls).Soon();
        await disposing.Soon();
    }

    [Fact]
    public async Task AContainerThatIsDisposedAtOnce_DoesNotWait()
    {
        await using var server = await UserServer.StartAsync();
        var services = new ServiceCollection();
        services.AddGrpcClient<User.UserClient>(options => options.Address = server.Address).AddChannelPool();
        var provider = services.BuildServiceProvider();
        var call = provider.GetRequiredService<User.UserClient>().RenameAsync(new RenameRequest()).ResponseAsync;
        await Waiting.Until(() => server.Calls.Count == 1);
        provider.Dispose();
        await Assert.ThrowsAsync<RpcException>(() => call.Soon());
    }

    [Theory]
    [MemberData(nameof(WithAndWithout))]
    public async Task AnApp_WithAllOfIt(bool pool)
    {
        using var certificate = TestCertificate.New("localhost");
        await using var server = await UserServer.StartAsync(certificate);
        var trace = new Trace();
        var log = new ConcurrentQueue<string>();
        await using var app = new ClientApp(services =>
        {
            services.AddSingleton<IConfiguration>(new ConfigurationBuilder()
                .AddInMemoryCollection([KeyValuePair.Create("services:users:https:0", (string?)$"https://localhost:{server.Address.Port}")])
                .Build());
            services.AddServiceDiscovery();
            services.ConfigureHttpClientDefaults(static http =>
            {
                http.AddStandardResilienceHandler();
                http.AddServiceDiscovery();
            });
            services.AddTransient(_ => new TracingHandler(trace, "handler"));
            services.AddGrpcClient<User.UserClient>("users", static options => options.Address = new Uri("https://users"))
                .With(pool)
                .ConfigureChannel(static channel => channel.MaxReceiveMessageSize = 1_000)
                .AddInterceptor(InterceptorScope.Client, () => new TracingInterceptor(trace, "client"))
                .AddInterceptor(() => new TracingInterceptor(trace, "channel"))
                .EnableCallContextPropagation(static options => options.SuppressContextNotFoundErrors = true)
                .AddCallCredentials((context, headers) =>
                {
                    trace.Add($"credentials for {context.ServiceUrl}");
                    headers.Add("authorization", "Bearer secret");
                    return Task.CompletedTask;
                })
                .ConfigureHttpClient(static client => client.DefaultRequestHeaders.Add("X-Tenant", "blue"))
                .AddHttpMessageHandler<TracingHandler>()
                .AddLogger(_ => new StartLog(log))
                .ConfigurePrimaryHttpMessageHandler(() => new SocketsHttpHandler
                {
                    SslOptions = { RemoteCertificateValidationCallback = (_, seen, _, _) => certificate.Equals(seen) },
                })
                .ConfigureGrpcClientCreator(invoker =>
                {
                    trace.Add("created");
                    return new User.UserClient(invoker);
                });
            services.AddKeyedTransient("users", static (provider, key) => provider.GetRequiredService<GrpcClientFactory>().CreateClient<User.UserClient>((string)key!));
        });
        var client = app.Services.GetRequiredKeyedService<User.UserClient>("users");
        Assert.Equal(["created"], trace.Take());
        foreach (var (_, callAsync) in ClientApp.OfEachKind())
        {
            await callAsync(client);
            Assert.Equal(["client", "channel", "credentials for https://users/user.v1.User", "handler"], trace.Take());
            Assert.Equal(("Bearer secret", "blue", "client, channel", "handler"), (server.LastCall["authorization"], server.LastCall["x-tenant"], server.LastCall["x-interceptor"], server.LastCall["x-handler"]));
            Assert.Equal($"localhost:{server.Address.Port}", server.LastCall.Authority);
        }

        Assert.Equal(5, log.Count);
        var exception = await Assert.ThrowsAsync<RpcException>(() => client.GetProfileAsync(new GetProfileRequest { PictureBytes = 2_000 }).ResponseAsync.Soon());
        Assert.Equal(StatusCode.ResourceExhausted, exception.StatusCode);
        app.AssertWent(pool, "users");
    }

    private static bool Throws(Action call)
    {
        try
        {
            call();
            return false;
        }
        catch (Exception exception) when (exception is RpcException or ObjectDisposedException)
        {
            return true;
        }
    }

    private sealed class StartLog(ConcurrentQueue<string> log) : IHttpClientLogger
    {
        public object? LogRequestStart(HttpRequestMessage request)
        {
            log.Enqueue(request.RequestUri!.AbsolutePath);
            return null;
        }

        public void LogRequestStop(object? context, HttpRequestMessage request, HttpResponseMessage response, TimeSpan elapsed)
        {
        }

        public void LogRequestFailed(object? context, HttpRequestMessage request, HttpResponseMessage? response, Exception exception, TimeSpan elapsed)
        {
        }
    }
}

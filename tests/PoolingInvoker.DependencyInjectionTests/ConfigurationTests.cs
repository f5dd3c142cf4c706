using Grpc.Core;
using Grpc.Net.ClientFactory;
using Microsoft.Extensions.DependencyInjection;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.DependencyInjectionTests;

/// <summary>What is configured for a client of the gRPC client factory holds over the pool as it does without: of gRPC itself.</summary>
public sealed class ConfigurationTests
{
    public static TheoryData<bool> WithAndWithout => ClientApp.WithAndWithout;

    [Theory]
    [MemberData(nameof(WithAndWithout))]
    public async Task AnAddress(bool pool)
    {
        await using var server = await UserServer.StartAsync();
        await using var app = new ClientApp(services => services.AddGrpcClient<User.UserClient>(options => options.Address = server.Address).With(pool));
        await app.CallAsync(pool);
        Assert.Equal(server.Address.Authority, server.LastCall.Authority);
    }

    [Theory]
    [MemberData(nameof(WithAndWithout))]
    public async Task TheAddressOfTheHttpClient_AndItsHeaders(bool pool)
    {
        await using var server = await UserServer.StartAsync();
        await using var app = new ClientApp(services => services.AddGrpcClient<User.UserClient>().With(pool).ConfigureHttpClient(client =>
        {
            client.BaseAddress = server.Address;
            client.DefaultRequestHeaders.Add("X-Tenant", "blue");
        }));
        await app.CallAsync(pool);
        Assert.Equal("blue", server.LastCall["x-tenant"]);
    }

    [Theory]
    [MemberData(nameof(WithAndWithout))]
    public async Task AnAddressOfDns(bool pool)
    {
        await using var server = await UserServer.StartAsync();
        await using var app = new ClientApp(services => services
            .AddGrpcClient<User.UserClient>(options => options.Address = new Uri($"dns:///127.0.0.1:{server.Address.Port}"))
            .With(pool)
            .ConfigureChannel(static channel => channel.Credentials = ChannelCredentials.Insecure));
        await app.CallAsync(pool);
        Assert.Equal($"127.0.0.1:{server.Address.Port}", server.LastCall.Authority);
    }

    [Theory]
    [MemberData(nameof(WithAndWithout))]
    public async Task NoAddress_IsSaidAlike(bool pool)
    {
        await using var app = new ClientApp(services => services.AddGrpcClient<User.UserClient>().With(pool));
        var exception = Assert.Throws<InvalidOperationException>(() => app.Client);
        Assert.StartsWith("Could not resolve the address for gRPC client 'UserClient'", exception.Message, StringComparison.Ordinal);
    }

    [Theory]
    [MemberData(nameof(WithAndWithout))]
    public async Task ChannelOptions(bool pool)
    {
        await using var server = await UserServer.StartAsync();
        await using var app = new ClientApp(services => services
            .AddSingleton(new Limit(1_000))
            .AddGrpcClient<User.UserClient>(options => options.Address = server.Address)
            .With(pool)
            .ConfigureChannel(static channel => channel.MaxReceiveMessageSize = 1)
            .ConfigureChannel(static (provider, channel) => channel.MaxReceiveMessageSize = provider.GetRequiredService<Limit>().Bytes));
        await app.CallAsync(pool);
        var exception = await Assert.ThrowsAsync<RpcException>(() => app.Client.GetProfileAsync(new GetProfileRequest { PictureBytes = 2_000 }).ResponseAsync.Soon());
        Assert.Equal(StatusCode.ResourceExhausted, exception.StatusCode);
    }

    [Theory]
    [MemberData(nameof(WithAndWithout))]
    public async Task CallCredentialsOfEachKind(bool pool)
    {
        await using var server = await UserServer.StartAsync();
        var credentials = CallCredentials.FromInterceptor(static (_, headers) =>
        {
            headers.Add("x-third", "3");
            return Task.CompletedTask;
        });
        string? url = null;
        await using var app = new ClientApp(services => services
            .AddScoped<Token>()
            .AddGrpcClient<User.UserClient>(options => options.Address = server.Address)
            .With(pool)
            .ConfigureChannel(static channel => channel.UnsafeUseInsecureChannelCallCredentials = true)
            .AddCallCredentials((context, headers) =>
            {
                url = context.ServiceUrl;
                headers.Add("x-first", "1");
                return Task.CompletedTask;
            })
            .AddCallCredentials(static async (_, headers, provider) =>
            {
                await Task.Yield();
                headers.Add("x-second", provider.GetRequiredService<Token>().Text);
            })
            .AddCallCredentials(credentials));
        await using var scope = app.Services.CreateAsyncScope();
        scope.ServiceProvider.GetRequiredService<Token>().Text = "of the scope";
        var client = scope.ServiceProvider.GetRequiredService<User.UserClient>();
        foreach (var (method, callAsync) in ClientApp.OfEachKind())
        {
            await callAsync(client);
            Assert.Equal(("1", "of the scope", "3"), (server.LastCall["x-first"], server.LastCall["x-second"], server.LastCall["x-third"]));
            Assert.EndsWith(method, server.LastCall.Method, StringComparison.Ordinal);
        }

        Assert.Equal($"http://{server.Address.Authority}/user.v1.User", url);
        app.AssertWent(pool);
    }

    [Theory]
    [MemberData(nameof(WithAndWithout))]
    public async Task CallCredentialsWithoutTls_AreRefusedAlike(bool pool)
    {
        await using var app = new ClientApp(services => services
            .AddGrpcClient<User.UserClient>(static options => options.Address = new Uri("http://localhost"))
            .With(pool)
            .AddCallCredentials(static (_, _) => Task.CompletedTask));
        var exception = Assert.Throws<InvalidOperationException>(() => app.Client);
        Assert.StartsWith("Call credential configured for gRPC client 'UserClient' requires TLS", exception.Message, StringComparison.Ordinal);
    }

    [Theory]
    [MemberData(nameof(WithAndWithout))]
    public async Task InterceptorsOfBothScopes_InTheirOrder_AboveCredentialsAndHandlers(bool pool)
    {
        await using var server = await UserServer.StartAsync();
        var trace = new Trace();
        await using var app = new ClientApp(services => services
            .AddSingleton(trace)
            .AddTransient(_ => new TracingInterceptor(trace, "own"))
            .AddGrpcClient<User.UserClient>(options =>
            {
                options.Address = server.Address;
                options.InterceptorRegistrations.Add(new InterceptorRegistration(InterceptorScope.Channel, _ => new TracingInterceptor(trace, "channel 1")));
            })
            .With(pool)
            .ConfigureChannel(static channel => channel.UnsafeUseInsecureChannelCallCredentials = true)
            .AddInterceptor(() => new TracingInterceptor(trace, "channel 2"))
            .AddInterceptor(InterceptorScope.Client, () => new TracingInterceptor(trace, "client 1"))
            .AddHttpMessageHandler(() => new TracingHandler(trace, "handler 1"))
            .AddCallCredentials((_, _) =>
            {
                trace.Add("credentials");
                return Task.CompletedTask;
            })
            .AddInterceptor(InterceptorScope.Client, _ => new TracingInterceptor(trace, "client 2"))
            .AddHttpMessageHandler(_ => new TracingHandler(trace, "handler 2"))
            .AddInterceptor<TracingInterceptor>());
        foreach (var (_, callAsync) in ClientApp.OfEachKind())
        {
            await callAsync(app.Client);
            Assert.Equal(["client 1", "client 2", "channel 1", "channel 2", "own", "credentials", "handler 1", "handler 2"], trace.Take());
            Assert.Equal("client 1, client 2, channel 1, channel 2, own", server.LastCall["x-interceptor"]);
            Assert.Equal("handler 1, handler 2", server.LastCall["x-handler"]);
        }

        app.AssertWent(pool);
    }

    [Theory]
    [MemberData(nameof(WithAndWithout))]
    public async Task ACreatorOfClients(bool pool)
    {
        await using var server = await UserServer.StartAsync();
        await using var app = new ClientApp(services => services
            .AddSingleton(new Limit(1))
            .AddGrpcClient<User.UserClient>(options => options.Address = server.Address)
            .With(pool)
            .AddInterceptor(static () => new TracingInterceptor(new Trace(), "below"))
            .ConfigureGrpcClientCreator(static (provider, invoker) => new OwnClient(invoker, provider.GetRequiredService<Limit>())));
        var client = Assert.IsType<OwnClient>(app.Client);
        Assert.Equal(1, client.Limit.Bytes);
        await app.CallAsync(pool, client, nameof(User.UserClient));
        Assert.Equal("below", server.LastCall["x-interceptor"]);
    }

    [Theory]
    [MemberData(nameof(WithAndWithout))]
    public async Task NamedAndKeyedClients(bool pool)
    {
        await using var blue = await UserServer.StartAsync();
        await using var green = await UserServer.StartAsync();
        await using var app = new ClientApp(services =>
        {
            foreach (var (name, server) in new[] { ("blue", blue), ("green", green) })
            {
                services.AddGrpcClient<User.UserClient>(name, options => options.Address = server.Address)
                    .With(pool)
                    .ConfigureHttpClient(client => client.DefaultRequestHeaders.Add("X-Color", name));
                services.AddKeyedTransient(name, static (provider, key) => provider.GetRequiredService<GrpcClientFactory>().CreateClient<User.UserClient>((string)key!));
            }
        });
        var factory = app.Services.GetRequiredService<GrpcClientFactory>();
        foreach (var (name, server) in new[] { ("blue", blue), ("green", green) })
        {
            await app.CallAsync(pool, factory.CreateClient<User.UserClient>(name), name);
            await app.CallAsync(pool, app.Services.GetRequiredKeyedService<User.UserClient>(name), name);
            Assert.NotEmpty(server.Calls);
            Assert.All(server.Calls, call => Assert.Equal(name, call["x-color"]));
        }
    }

#if NET9_0_OR_GREATER // AddAsKeyed came with Microsoft.Extensions.Http 9.
    [Theory]
    [MemberData(nameof(WithAndWithout))]
    public async Task AddAsKeyed_GivesTheHttpClientOfTheName_BesideTheGrpcClient(bool pool)
    {
        await using var server = await UserServer.StartAsync();
        await using var app = new ClientApp(services => services.AddGrpcClient<User.UserClient>("users", options => options.Address = server.Address)
            .With(pool)
            .ConfigureHttpClient(static client => client.DefaultRequestHeaders.Add("X-Tenant", "blue"))
            .AddAsKeyed());
        await using var scope = app.Services.CreateAsyncScope();
        var http = scope.ServiceProvider.GetRequiredKeyedService<HttpClient>("users");
        Assert.Equal(["blue"], http.DefaultRequestHeaders.GetValues("X-Tenant"));
        var client = app.Services.GetRequiredService<GrpcClientFactory>().CreateClient<User.UserClient>("users");
        await app.CallAsync(pool, client, "users");
        Assert.Equal("blue", server.LastCall["x-tenant"]);

        // It is of use by itself: a gRPC call without the client.
        using var request = new HttpRequestMessage(HttpMethod.Post, new Uri(server.Address, "user.v1.User/GetName"))
        {
            Version = System.Net.HttpVersion.Version20,
            VersionPolicy = HttpVersionPolicy.RequestVersionExact,
            Content = new ByteArrayContent([0, 0, 0, 0, 0]) { Headers = { ContentType = new("application/grpc") } },
        };
        using var response = await http.SendAsync(request).Soon();
        Assert.Equal(System.Net.HttpStatusCode.OK, response.StatusCode);
        Assert.Equal(2, server.Calls.Count);
        Assert.NotNull(scope.ServiceProvider.GetKeyedService<HttpMessageHandler>("users"));
    }
#endif

    [Theory]
    [MemberData(nameof(WithAndWithout))]
    public async Task ClientsThatAreMadeAtTheSameTime_ShareOnePool(bool pool)
    {
        await using var server = await UserServer.StartAsync();
        var made = 0;
        await using var app = new ClientApp(services => services.AddGrpcClient<User.UserClient>(options => options.Address = server.Address).With(pool, _ => Interlocked.Increment(ref made)));
        using var start = new Barrier(8);
        await Task.WhenAll(Enumerable.Range(0, 8).Select(_ => Task.Factory.StartNew(
            () =>
            {
                start.SignalAndWait();
                return app.CallAsync(pool);
            },
            CancellationToken.None,
            TaskCreationOptions.LongRunning,
            TaskScheduler.Default).Unwrap())).Soon();
        Assert.Equal(pool ? 1 : 0, made);
    }

    private sealed record Limit(int Bytes);

    private sealed class Token
    {
        public string Text { get; set; } = "";
    }

    private sealed class OwnClient(CallInvoker invoker, Limit limit) : User.UserClient(invoker)
    {
        public Limit Limit => limit;
    }
}

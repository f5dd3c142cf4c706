using System.Collections.Concurrent;
using System.Net.Sockets;
using Grpc.Core;
using Microsoft.Extensions.DependencyInjection;
using Microsoft.Extensions.Http;
using Microsoft.Extensions.Options;
using Microsoft.Extensions.Time.Testing;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.DependencyInjectionTests;

/// <summary>The channels of a client's pool: each has handlers and a scope of its own, and both go with it.</summary>
public sealed class ChannelTests
{
    [Theory]
    [InlineData(1, 2)]
    [InlineData(2, 3)]
    public async Task TheChannelOfTheFactory_IsMadeAndNeverConnects(int mostChannels, int configured)
    {
        await using var server = await UserServer.StartAsync();
        var (channels, handlers) = (0, 0);
        var connected = new ConcurrentQueue<int>();
        await using var app = new ClientApp(services => services
            .AddGrpcClient<User.UserClient>(options => options.Address = server.Address)
            .With(pool: true, options => options.Pool.MaxPoolSize = mostChannels)
            .ConfigureChannel(_ => channels++)
            .ConfigurePrimaryHttpMessageHandler(() =>
            {
                var number = handlers++;
                return new SocketsHttpHandler { ConnectCallback = ConnectAsync };

                async ValueTask<Stream> ConnectAsync(SocketsHttpConnectionContext context, CancellationToken cancellationToken)
                {
                    connected.Enqueue(number);
                    var socket = new Socket(SocketType.Stream, ProtocolType.Tcp);
                    await socket.ConnectAsync(context.DnsEndPoint, cancellationToken);
                    return new NetworkStream(socket, ownsSocket: true);
                }
            }));
        Assert.NotNull(app.Client);
        Assert.Equal((configured, configured), (channels, handlers)); // that of the factory, and the first two of the pool
        await app.CallAsync(overPool: true);
        Assert.NotEmpty(connected);
        Assert.DoesNotContain(0, connected);
    }

    [Fact]
    public async Task EachChannel_HasHandlersAndAScopeOfItsOwn_UntilItGoes()
    {
        await using var server = await UserServer.StartAsync();
        var scopes = new Scopes();
        await using (var app = new ClientApp(services => services
            .AddSingleton(scopes)
            .AddScoped<Scoped>()
            .AddTransient<ScopedHandler>()
            .AddGrpcClient<User.UserClient>(options => options.Address = server.Address)
            .AddHttpMessageHandler<ScopedHandler>()
            .ConfigureChannel(static channel => ArgumentNullException.ThrowIfNull(channel.ServiceProvider!.GetRequiredService<Scoped>()))
            .With(pool: true, static options =>
            {
                options.Pool.MaxConcurrentCallsPerChannel = 1;
                options.Pool.MaxPoolSize = 8;
            })))
        {
            var calls = Enumerable.Range(0, 8).Select(_ => app.Client.RenameAsync(new RenameRequest()).ResponseAsync).ToList();
            await Waiting.Until(() => server.Calls.Count == 8);
            Assert.Equal(8, server.Calls.Select(static call => call["x-scope"]).Distinct().Count());
            server.Gate.SetResult();
            await Task.WhenAll(calls).Soon();
        }

        await Waiting.Until(() => scopes.Freed == scopes.Made - 2); // those of the client factory are never freed, as without the pool
    }

    [Fact]
    public async Task AChannelThatIsReplaced_FreesItsScope()
    {
        await using var server = await UserServer.StartAsync();
        var (scopes, time) = (new Scopes(), new FakeTimeProvider());
        await using var app = new ClientApp(services => services
            .AddSingleton(scopes)
            .AddScoped<Scoped>()
            .AddTransient<ScopedHandler>()
            .AddGrpcClient<User.UserClient>(options => options.Address = server.Address)
            .AddHttpMessageHandler<ScopedHandler>()
            .With(pool: true, options => options.Pool.TimeProvider = time));
        await app.CallAsync(overPool: true);
        var freed = scopes.Freed;
        await Waiting.Until(() =>
        {
            time.Advance(TimeSpan.FromMinutes(31));
            return scopes.Freed > freed;
        });
        await app.CallAsync(overPool: true);
    }

    [Fact]
    public async Task ALotOfCalls_AllOfWhichHaveAll()
    {
        const int Calls = 200;
        await using var server = await UserServer.StartAsync(streams: 10);
        await using var app = new ClientApp(services => services
            .AddGrpcClient<User.UserClient>(options => options.Address = server.Address)
            .With(pool: true)
            .ConfigureChannel(static channel => channel.UnsafeUseInsecureChannelCallCredentials = true)
            .AddInterceptor(static () => new TracingInterceptor(new Trace(), "channel"))
            .AddInterceptor(Grpc.Net.ClientFactory.InterceptorScope.Client, static () => new TracingInterceptor(new Trace(), "client"))
            .AddHttpMessageHandler(static () => new TracingHandler(new Trace(), "handler"))
            .AddCallCredentials(static (_, headers) =>
            {
                headers.Add("x-token", "secret");
                return Task.CompletedTask;
            }));
        await app.Services.GetRequiredKeyedService<PoolingCallInvoker>(nameof(User.UserClient)).ConnectAsync().Soon();
        await Waiting.Until(() => app.Pool.GetChannels()[0].ConnectivityState == ConnectivityState.Ready); // a slow machine has it join before
        var calls = Enumerable.Range(0, Calls).Select(_ => app.Client.RenameAsync(new RenameRequest()).ResponseAsync).ToList();
        await Waiting.Until(() => server.Calls.Count == Calls);
        server.Gate.SetResult();
        await Task.WhenAll(calls).Soon();
        Assert.All(server.Calls, static call => Assert.Equal(("client, channel", "handler", "secret"), (call["x-interceptor"], call["x-handler"], call["x-token"])));
        Assert.True(server.Connections >= Calls / 10);
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public async Task ARetry_GoesThroughTheHandlersOfItsChannel_AndNotThroughTheInterceptors(bool pool)
    {
        await using var server = await UserServer.StartAsync();
        var trace = new Trace();
        server.Failures = 1;
        await using var app = new ClientApp(services => services
            .AddGrpcClient<User.UserClient>(options => options.Address = server.Address)
            .With(pool)
            .AddInterceptor(() => new TracingInterceptor(trace, "channel"))
            .AddHttpMessageHandler(() => new TracingHandler(trace, "handler")));
        var call = app.Client.GetNameAsync(new GetNameRequest()).ResponseAsync.Soon();
        if (pool)
        {
            await call;
        }
        else
        {
            Assert.Equal(StatusCode.Unavailable, (await Assert.ThrowsAsync<RpcException>(() => call)).StatusCode);
        }

        Assert.Equal(pool ? ["channel", "handler", "handler"] : ["channel", "handler"], trace.Take());
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public async Task AnHttpClientInPlaceOfTheHandlers(bool pool)
    {
        await using var server = await UserServer.StartAsync();
        var scopes = new Scopes();
        await using var app = new ClientApp(services => services
            .AddSingleton(scopes)
            .AddScoped<Scoped>()
            .AddTransient<ScopedHandler>()
            .AddGrpcClient<User.UserClient>(options => options.Address = server.Address)
            .With(pool)
            .AddHttpMessageHandler<ScopedHandler>()
            .ConfigureChannel(static channel => (channel.HttpHandler, channel.HttpClient) = (null, new HttpClient())));
        await app.CallAsync(pool);
        Assert.Null(server.LastCall["x-scope"]);
        await Waiting.Until(() => scopes.Freed == scopes.Made - 1); // that of the client factory, which has another for its channel
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public async Task HandlersWithoutAScope(bool pool)
    {
        await using var server = await UserServer.StartAsync();
        await using var app = new ClientApp(services =>
        {
            services.AddTransient(static _ => new TracingHandler(new Trace(), "handler"));
            services.AddGrpcClient<User.UserClient>(options => options.Address = server.Address).With(pool).AddHttpMessageHandler<TracingHandler>();
            services.Configure<HttpClientFactoryOptions>(nameof(User.UserClient), static options =>
            {
                options.SuppressHandlerScope = true;
                options.HttpMessageHandlerBuilderActions.Add(static builder => Assert.Same(builder.Services.GetRequiredService<Root>().Services, builder.Services));
            });
            services.AddSingleton<Root>();
        });
        await app.CallAsync(pool);
        Assert.Equal("handler", server.LastCall["x-handler"]);
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public async Task AnHttpClientOfTheSameName_StaysAsItIs(bool pool)
    {
        await using var server = await UserServer.StartAsync();
        var trace = new Trace();
        await using var app = new ClientApp(services => services
            .AddGrpcClient<User.UserClient>(options => options.Address = server.Address)
            .With(pool)
            .AddHttpMessageHandler(() => new TracingHandler(trace, "handler")));
        if (!pool)
        {
            await app.CallAsync(pool); // the client of gRPC has taken over its connections, and there must be one
            Assert.Equal(["handler"], trace.Take());
        }

        Assert.NotNull(app.Client);
        using var client = app.Services.GetRequiredService<IHttpClientFactory>().CreateClient(nameof(User.UserClient));
        using var request = new HttpRequestMessage(HttpMethod.Get, server.Address) { Version = new Version(2, 0), VersionPolicy = HttpVersionPolicy.RequestVersionExact };
        using var response = await client.SendAsync(request).Soon();
        Assert.Equal(["handler"], trace.Take());
    }

    [Fact]
    public async Task WhatFailsTheFirstTime_MayWorkTheNext()
    {
        await using var server = await UserServer.StartAsync();
        var calls = 0;
        await using var app = new ClientApp(services => services
            .AddGrpcClient<User.UserClient>(options => options.Address = server.Address)
            .AddChannelPool(options => options.Pool.ConfigureChannel = _ =>
            {
                if (calls++ == 0)
                {
                    throw new InvalidDataException("not yet");
                }
            }));
        Assert.Throws<InvalidDataException>(() => app.Client);
        await app.CallAsync(overPool: true);
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public async Task APrimaryHandlerThatIsShared_IsRefused(bool pool)
    {
        await using var server = await UserServer.StartAsync();
        using var shared = new SocketsHttpHandler();
        await using var app = new ClientApp(services => services
            .AddGrpcClient<User.UserClient>(options => options.Address = server.Address)
            .With(pool)
            .ConfigurePrimaryHttpMessageHandler(() => shared));
        if (!pool)
        {
            await app.CallAsync(overPool: false);
            return;
        }

        var exception = Assert.Throws<InvalidOperationException>(() => app.Client);
        Assert.StartsWith("ConfigurePrimaryHttpMessageHandler of the gRPC client 'UserClient' gives the same SocketsHttpHandler each time.", exception.Message, StringComparison.Ordinal);
    }

    public static TheoryData<string, Action<IHttpClientBuilder>, TimeSpan> Lifetimes => new()
    {
        { "nothing", static _ => { }, TimeSpan.FromMinutes(30) },
        { "the handlers'", static builder => builder.SetHandlerLifetime(TimeSpan.FromMinutes(7)), TimeSpan.FromMinutes(7) },
        { "no end", static builder => builder.SetHandlerLifetime(Timeout.InfiniteTimeSpan), Timeout.InfiniteTimeSpan },
        { "a handler of one's own", static builder => builder.ConfigurePrimaryHttpMessageHandler(static () => new SocketsHttpHandler()), TimeSpan.FromMinutes(30) },
        { "that of its connections", static builder => builder.ConfigurePrimaryHttpMessageHandler(static () => new SocketsHttpHandler { PooledConnectionLifetime = TimeSpan.FromMinutes(7) }), TimeSpan.FromMinutes(7) },
        { "both", static builder => builder.SetHandlerLifetime(TimeSpan.FromMinutes(7)).ConfigurePrimaryHttpMessageHandler(static () => new SocketsHttpHandler()), TimeSpan.FromMinutes(30) },
        { "another type", static builder => builder.SetHandlerLifetime(TimeSpan.FromMinutes(7)).ConfigurePrimaryHttpMessageHandler(static () => new HttpClientHandler()), TimeSpan.FromMinutes(30) },
        { "the pool's", static builder => builder.SetHandlerLifetime(TimeSpan.FromMinutes(7)).AddChannelPool(static options => options.Pool.PooledChannelLifetime = TimeSpan.FromMinutes(8)), TimeSpan.FromMinutes(8) },
    };

    [Theory]
    [MemberData(nameof(Lifetimes), DisableDiscoveryEnumeration = true)]
    public async Task ALifetimeThatWasSet_IsThatOfTheChannels(string what, Action<IHttpClientBuilder> set, TimeSpan lifetime)
    {
        List<SocketsHttpHandler> handlers = [];
        await using var app = new ClientApp(services => set(services
            .AddGrpcClient<User.UserClient>(static options => options.Address = new Uri("http://localhost"))
            .AddChannelPool(options => options.Pool.ConfigureHandler = what == "another type" ? null : handlers.Add)));
        Assert.Equal(lifetime, app.Services.GetRequiredService<IOptionsFactory<PoolingCallInvokerOptions>>().Create(nameof(User.UserClient)).Pool.PooledChannelLifetime);

        Assert.NotNull(app.Client);
        Assert.Equal(what == "another type" ? 0 : 2, handlers.Count);
        Assert.All(handlers, static handler => Assert.Equal((false, Timeout.InfiniteTimeSpan), (handler.EnableMultipleHttp2Connections, handler.PooledConnectionLifetime)));
    }

    private sealed record Root(IServiceProvider Services);

    private sealed class Scopes
    {
        private int _made;
        private int _freed;

        public int Made => Volatile.Read(ref _made);
        public int Freed => Volatile.Read(ref _freed);

        public int Add() => Interlocked.Increment(ref _made);
        public void Free() => Interlocked.Increment(ref _freed);
    }

    private sealed class Scoped(Scopes scopes) : IAsyncDisposable
    {
        public int Number { get; } = scopes.Add();

        public ValueTask DisposeAsync()
        {
            scopes.Free();
            return ValueTask.CompletedTask;
        }
    }

    private sealed class ScopedHandler(Scoped scoped) : DelegatingHandler
    {
        protected override Task<HttpResponseMessage> SendAsync(HttpRequestMessage request, CancellationToken cancellationToken)
        {
            request.Headers.Add("x-scope", $"{scoped.Number}");
            return base.SendAsync(request, cancellationToken);
        }
    }
}

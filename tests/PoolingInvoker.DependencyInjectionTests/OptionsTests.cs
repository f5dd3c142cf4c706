using System.Diagnostics.Metrics;
using System.Reflection;
using Grpc.Core.Interceptors;
using Grpc.Net.Client.Configuration;
using Grpc.Net.ClientFactory;
using Microsoft.Extensions.DependencyInjection;
using Microsoft.Extensions.Http;
using Microsoft.Extensions.Logging.Abstractions;
using Microsoft.Extensions.Options;
using Microsoft.Extensions.ServiceDiscovery;
using Microsoft.Extensions.Time.Testing;
using PoolingInvoker.Protos;

namespace PoolingInvoker.DependencyInjectionTests;

/// <summary>The line itself: where its options come from, and what it refuses.</summary>
public sealed class OptionsTests
{
    private static readonly Uri Nowhere = new("http://localhost");

    [Fact]
    public async Task Options_ComeFromAll_AndTheLastHasTheWord()
    {
        await using var app = new ClientApp(services =>
        {
            services.AddSingleton("a name").Configure<PoolingCallInvokerOptions>(nameof(User.UserClient), static options => (options.Pool.MinPoolSize, options.Pool.MaxPoolSize) = (1, 1));
            services.AddGrpcClient<User.UserClient>(static options => options.Address = Nowhere)
                .AddChannelPool(static options => options.Pool.MaxPoolSize = 2)
                .AddChannelPool((provider, options) => options.Pool.MinPoolSize = provider.GetRequiredService<string>().Length)
                .AddChannelPool();
            services.Configure<PoolingCallInvokerOptions>(nameof(User.UserClient), static options => options.Pool.MaxPoolSize *= 10);
            services.Configure<PoolingCallInvokerOptions>("another", static options => options.Pool.MaxPoolSize = 1_000);
        });
        var options = app.Services.GetRequiredService<IOptionsFactory<PoolingCallInvokerOptions>>().Create(nameof(User.UserClient)).Pool;
        Assert.Equal((6, 20), (options.MinPoolSize, options.MaxPoolSize));
        Assert.NotNull(options.LoggerFactory);
        Assert.Same(app.Services.GetRequiredService<IMeterFactory>(), options.MeterFactory);
        Assert.Single(app.Services.GetRequiredService<IOptionsMonitor<GrpcClientFactoryOptions>>().Get(nameof(User.UserClient)).InterceptorRegistrations);
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public async Task APooledClient_IsAClientWithThePool(bool hasOptions)
    {
        await using var server = await UserServer.StartAsync();
        await using var app = new ClientApp(services =>
        {
            var builder = hasOptions
                ? services.AddPooledGrpcClient<User.UserClient>($"{server.Address}", static options => options.Pool.MaxPoolSize = 2)
                : services.AddPooledGrpcClient<User.UserClient>($"{server.Address}");
            builder.AddHttpMessageHandler(static () => new TracingHandler(new Trace(), "handler"));
        });
        await app.CallAsync(overPool: true);
        Assert.Equal("handler", server.LastCall["x-handler"]);
        Assert.Equal(hasOptions ? 2 : 100, app.Services.GetRequiredService<IOptionsFactory<PoolingCallInvokerOptions>>().Create(nameof(User.UserClient)).Pool.MaxPoolSize);
    }

    [Fact]
    public async Task OptionsThatSeveralClientsShare_AreLeftAsTheyAre()
    {
        await using var blue = await UserServer.StartAsync();
        await using var green = await UserServer.StartAsync();
        var configured = 0;
        var shared = new ChannelPoolOptions { ConfigureChannel = _ => configured++, MaxPoolSize = 1 };
        await using var app = new ClientApp(services =>
        {
            services.AddGrpcClient<User.UserClient>("blue", options => options.Address = blue.Address).AddChannelPool(options => options.Pool = shared);
            services.AddGrpcClient<User.UserClient>("green", options => options.Address = green.Address).AddChannelPool(options => options.Pool = shared);
        });
        var factory = app.Services.GetRequiredService<GrpcClientFactory>();
        var (first, second) = (factory.CreateClient<User.UserClient>("blue"), factory.CreateClient<User.UserClient>("green"));
        Assert.Equal(2, configured);
        await app.CallAsync(overPool: true, first, "blue");
        await app.CallAsync(overPool: true, second, "green");
        Assert.NotEmpty(blue.Calls);
        Assert.NotEmpty(green.Calls);
    }

    [Fact]
    public async Task EveryOptionOfAPool_ReachesIt()
    {
        await using var app = new ClientApp(static services => services.AddGrpcClient<User.UserClient>(static options => options.Address = Nowhere).AddChannelPool());
        var given = new ChannelPoolOptions();
        foreach (var property in typeof(ChannelPoolOptions).GetProperties())
        {
            property.SetValue(given, Another(property.PropertyType));
        }

        Assert.Equal(nameof(User.UserClient), app.Services.GetRequiredKeyedService<PoolingCallInvoker>(nameof(User.UserClient)).Pool.Name);
        var channels = new ClientChannels(new GrpcClientFactoryOptions(), app.Services.GetRequiredService<HandlerRecipes>().Of(nameof(User.UserClient)), app.Services);
        var copy = channels.Over(given);
        foreach (var property in typeof(ChannelPoolOptions).GetProperties().Where(static property => property.Name is not ("ConfigureChannel" or "ConfigureHandler")))
        {
            Assert.True(property.GetValue(given)!.Equals(property.GetValue(copy)), $"{property.Name} is not taken over.");
        }

        static object Another(Type type) =>
            type == typeof(int) || type == typeof(int?) ? 77
            : type == typeof(long) ? 77L
            : type == typeof(double) ? 77.0
            : type == typeof(Func<ServiceEndpoint, int>) ? (Func<ServiceEndpoint, int>)(static _ => 77)
            : type == typeof(string) ? "seventy-seven"
            : type == typeof(RetryThrottlingPolicy) ? new RetryThrottlingPolicy()
            : type == typeof(TimeSpan) ? TimeSpan.FromSeconds(77)
            : type == typeof(TimeProvider) ? new FakeTimeProvider()
            : type == typeof(IMeterFactory) ? new Meters()
            : type.IsAssignableFrom(typeof(NullLoggerFactory)) ? NullLoggerFactory.Instance
            : Delegate.CreateDelegate(type, typeof(OptionsTests).GetMethod(type.GetMethod("Invoke")!.ReturnType == typeof(void) ? nameof(Nothing) : nameof(Done), BindingFlags.NonPublic | BindingFlags.Static)!
                .MakeGenericMethod([.. type.GetMethod("Invoke")!.GetParameters().Select(static parameter => parameter.ParameterType).Concat([typeof(object), typeof(object)]).Take(2)]));
    }

    [Fact]
    public async Task ConfigureHandler_ChangesThePrimaryHandler()
    {
        await using var server = await UserServer.StartAsync();
        List<SocketsHttpHandler> primary = [];
        List<SocketsHttpHandler> changed = [];
        await using var app = new ClientApp(services => services
            .AddGrpcClient<User.UserClient>(options => options.Address = server.Address)
            .ConfigurePrimaryHttpMessageHandler(() =>
            {
                primary.Add(new SocketsHttpHandler());
                return primary[^1];
            })
            .AddChannelPool(options => options.Pool.ConfigureHandler = changed.Add));
        Assert.NotNull(app.Client);
        Assert.Equal(primary[1..], changed);
        await app.CallAsync(overPool: true);
    }

    [Fact]
    public async Task ConfigureHandler_NeedsAHandlerOfSockets()
    {
        await using var app = new ClientApp(static services => services
            .AddGrpcClient<User.UserClient>(static options => options.Address = Nowhere)
            .ConfigurePrimaryHttpMessageHandler(static () => new HttpClientHandler())
            .AddChannelPool(static options => options.Pool.ConfigureHandler = static _ => { }));
        var exception = Assert.Throws<InvalidOperationException>(() => app.Client);
        Assert.Equal(
            "The channel pool of the gRPC client 'UserClient' cannot be made: Pool.ConfigureHandler changes a SocketsHttpHandler, and the primary handler is a HttpClientHandler. "
            + "Change it where it is made, in ConfigurePrimaryHttpMessageHandler.",
            exception.Message);
    }

    public static TheoryData<string, Action<IHttpClientBuilder>> Refused => new()
    {
        { "MaxPoolSize is 0. It must be at least 1.", static builder => builder.AddChannelPool(static options => options.Pool.MaxPoolSize = 0) },
        { "'unix:/run/users.sock'", static builder => builder.AddChannelPool().Services.Configure<GrpcClientFactoryOptions>(builder.Name, static options => options.Address = new Uri("unix:/run/users.sock")) },
        { "ConfigureChannel gave two channels the same SocketsHttpHandler", static builder => Shared(builder.AddChannelPool()) },
    };

    [Theory]
    [MemberData(nameof(Refused), DisableDiscoveryEnumeration = true)]
    public async Task WhatThePoolRefuses_IsSaidOfTheClient(string message, Action<IHttpClientBuilder> configure)
    {
        await using var app = new ClientApp(services => configure(services.AddGrpcClient<User.UserClient>(static options => options.Address = Nowhere)));
        var exception = Assert.Throws<InvalidOperationException>(() => app.Services.GetRequiredKeyedService<PoolingCallInvoker>(nameof(User.UserClient)));
        Assert.StartsWith("The channel pool of the gRPC client 'UserClient' cannot be made:", exception.Message, StringComparison.Ordinal);
        Assert.Contains(message, exception.Message, StringComparison.Ordinal);
    }

    [Fact]
    public async Task AnInterceptorThatIsAddedBelowThePool_IsRefused()
    {
        await using var app = new ClientApp(static services =>
        {
            services.AddGrpcClient<User.UserClient>(static options => options.Address = Nowhere).AddChannelPool();
            services.PostConfigure<GrpcClientFactoryOptions>(nameof(User.UserClient), static options => options.InterceptorRegistrations.Add(new(InterceptorScope.Channel, static _ => new Passing())));
        });
        var exception = Assert.Throws<InvalidOperationException>(() => app.Client);
        Assert.StartsWith("An interceptor was added to the gRPC client 'UserClient' below its channel pool", exception.Message, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData(InterceptorScope.Channel, true)]
    [InlineData(InterceptorScope.Client, false)]
    public async Task AnInterceptorThatIsAddedAboveThePool_IsNot(InterceptorScope scope, bool isBefore)
    {
        await using var server = await UserServer.StartAsync();
        await using var app = new ClientApp(services =>
        {
            var builder = services.AddGrpcClient<User.UserClient>(options => options.Address = server.Address);
            if (isBefore)
            {
                Add(services);
            }

            builder.AddChannelPool();
            if (!isBefore)
            {
                Add(services);
            }

            void Add(IServiceCollection services) => services.PostConfigure<GrpcClientFactoryOptions>(
                nameof(User.UserClient), options => options.InterceptorRegistrations.Add(new(scope, static _ => new TracingInterceptor(new Trace(), "added"))));
        });
        await app.CallAsync(overPool: true);
        Assert.Equal("added", server.LastCall["x-interceptor"]);
    }

    [Fact]
    public async Task AFilterThatIsPutBeforeThePools_IsRefused_AndAfterItIsNot()
    {
        await using var app = new ClientApp(static services =>
        {
            services.AddGrpcClient<User.UserClient>(static options => options.Address = Nowhere).AddChannelPool();
            services.Insert(0, ServiceDescriptor.Singleton<IHttpMessageHandlerBuilderFilter, Filter>());
        });
        var exception = Assert.Throws<InvalidOperationException>(() => app.Client);
        Assert.StartsWith("The filter Filter was put before that of the channel pool of the gRPC client 'UserClient'", exception.Message, StringComparison.Ordinal);

        await using var after = new ClientApp(static services =>
        {
            services.AddGrpcClient<User.UserClient>("first", static options => options.Address = Nowhere).AddChannelPool();
            services.Insert(0, ServiceDescriptor.Singleton<IHttpMessageHandlerBuilderFilter, Filter>());
            services.AddGrpcClient<User.UserClient>(static options => options.Address = Nowhere).AddChannelPool();
        });
        Assert.NotNull(after.Client);
    }

    [Fact]
    public void WhatIsNoGrpcClient_IsRefused()
    {
        var services = new ServiceCollection();
        var exception = Assert.Throws<InvalidOperationException>(() => services.AddHttpClient("users").AddChannelPool());
        Assert.EndsWith("'users' is another HTTP client.", exception.Message, StringComparison.Ordinal);
        exception = Assert.Throws<InvalidOperationException>(() => services.ConfigureHttpClientDefaults(static http => http.AddChannelPool()));
        Assert.EndsWith("It cannot be a default of all HTTP clients.", exception.Message, StringComparison.Ordinal);

        var builder = services.AddGrpcClient<User.UserClient>();
        Assert.Throws<ArgumentNullException>(() => builder.AddChannelPool((Action<PoolingCallInvokerOptions>)null!));
        Assert.Throws<ArgumentNullException>(() => builder.AddChannelPool((Action<IServiceProvider, PoolingCallInvokerOptions>)null!));
        Assert.Throws<ArgumentNullException>(() => ((IHttpClientBuilder)null!).AddChannelPool());
    }

    private static void Shared(IHttpClientBuilder builder)
    {
        var shared = new SocketsHttpHandler();
        builder.ConfigureChannel(channel => channel.HttpHandler = shared);
    }

    private static void Nothing<T1, T2>(T1 first)
    {
    }

    private static Task Done<T1, T2>(T1 first, T2 second) => Task.CompletedTask;

    private sealed class Passing : Interceptor;

    private sealed class Filter : IHttpMessageHandlerBuilderFilter
    {
        public Action<HttpMessageHandlerBuilder> Configure(Action<HttpMessageHandlerBuilder> next) => next;
    }

    private sealed class Meters : IMeterFactory
    {
        public Meter Create(MeterOptions options) => new(options);

        public void Dispose()
        {
            // Nobody is given a meter.
        }
    }
}

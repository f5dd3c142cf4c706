using System.Net.Security;
using System.Security.Cryptography.X509Certificates;
using Grpc.Net.ClientFactory;
using Microsoft.Extensions.Compliance.Redaction;
using Microsoft.Extensions.DependencyInjection;
using Microsoft.Extensions.Http;
using Microsoft.Extensions.Http.Logging;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.DependencyInjectionTests;

/// <summary>What is configured for a client of the gRPC client factory holds over the pool as it does without: of its HTTP handlers.</summary>
public sealed class HandlerTests
{
    private static readonly AsyncLocal<string?> Caller = new();

    public static TheoryData<bool> WithAndWithout => ClientApp.WithAndWithout;

    public static TheoryData<string, bool> Primaries
    {
        get
        {
            TheoryData<string, bool> data = [];
            foreach (var name in PrimaryHandlers.Keys)
            {
                data.Add(name, false);
                data.Add(name, true);
            }

            return data;
        }
    }

    private static Dictionary<string, Func<IHttpClientBuilder, X509Certificate2, IHttpClientBuilder>> PrimaryHandlers { get; } = new()
    {
        ["of sockets"] = static (builder, trusted) => builder.ConfigurePrimaryHttpMessageHandler(() => OfSockets(trusted)),
        ["of a provider"] = static (builder, trusted) => builder.ConfigurePrimaryHttpMessageHandler(_ => OfSockets(trusted)),
        ["changed where it is"] = static (builder, trusted) => builder.ConfigurePrimaryHttpMessageHandler((handler, _) => Trust((SocketsHttpHandler)handler, trusted)),
        ["UseSocketsHttpHandler"] = static (builder, trusted) => builder.UseSocketsHttpHandler((handler, _) => Trust(handler, trusted)),
        ["a transient type"] = static (builder, trusted) =>
        {
            builder.Services.AddTransient(_ => OfSockets(trusted));
            return builder.ConfigurePrimaryHttpMessageHandler<SocketsHttpHandler>();
        },
        ["HttpClientHandler"] = static (builder, trusted) => builder.ConfigurePrimaryHttpMessageHandler(() => new HttpClientHandler
        {
            ServerCertificateCustomValidationCallback = (_, seen, _, _) => seen!.Equals(trusted),
        }),
        ["of another type"] = static (builder, trusted) => builder.ConfigurePrimaryHttpMessageHandler(() => new OpaqueHandler(OfSockets(trusted))),
        ["a chain"] = static (builder, trusted) => builder.ConfigurePrimaryHttpMessageHandler(() => new TracingHandler(new Trace(), "inner") { InnerHandler = OfSockets(trusted) }),
        ["a default"] = static (builder, trusted) =>
        {
            builder.Services.ConfigureHttpClientDefaults(http => http.ConfigurePrimaryHttpMessageHandler(() => OfSockets(trusted)));
            return builder;
        },
        ["of the channel"] = static (builder, trusted) => builder.ConfigureChannel(channel => channel.HttpHandler = OfSockets(trusted)),
        ["around that of the channel"] = static (builder, trusted) => builder
            .ConfigurePrimaryHttpMessageHandler(() => OfSockets(trusted))
            .ConfigureChannel(channel => channel.HttpHandler = new TracingHandler(new Trace(), "outer") { InnerHandler = channel.HttpHandler! }),
    };

    [Theory]
    [MemberData(nameof(Primaries))]
    public async Task APrimaryHandler(string what, bool pool)
    {
        using var certificate = TestCertificate.New("localhost");
        await using var server = await UserServer.StartAsync(certificate);
        await using var app = new ClientApp(services => PrimaryHandlers[what](services.AddGrpcClient<User.UserClient>(options => options.Address = server.Address).With(pool), certificate));
        foreach (var (_, callAsync) in ClientApp.OfEachKind())
        {
            await callAsync(app.Client);
        }

        await app.CallAsync(pool);
        if (pool)
        {
            // What the pool sees of a connection.
            var isSeen = what is not ("HttpClientHandler" or "of another type");
            Assert.All(app.Pool.GetChannels(), channel => Assert.Equal(isSeen, channel.ConnectivityState is not null));
        }
    }

    [Theory]
    [MemberData(nameof(WithAndWithout))]
    public async Task HandlersWithServices_AndTheContextOfTheCaller(bool pool)
    {
        await using var server = await UserServer.StartAsync();
        await using var app = new ClientApp(services => services
            .AddTransient<ContextHandler>()
            .AddScoped<Scoped>()
            .AddGrpcClient<User.UserClient>(options => options.Address = server.Address)
            .With(pool)
            .AddHttpMessageHandler<ContextHandler>()
            .ConfigureAdditionalHttpMessageHandlers(static (handlers, _) => handlers.Insert(0, new TracingHandler(new Trace(), "first"))));
        foreach (var (_, callAsync) in ClientApp.OfEachKind())
        {
            Caller.Value = $"{Guid.NewGuid()}";
            await callAsync(app.Client);
            Assert.Equal((Caller.Value, "first"), (server.LastCall["x-caller"], server.LastCall["x-handler"]));
        }

        app.AssertWent(pool);
    }

    [Theory]
    [MemberData(nameof(WithAndWithout))]
    public async Task LoggersOfHttp(bool pool)
    {
        await using var server = await UserServer.StartAsync();
        var log = new RequestLog();
        await using var app = new ClientApp(services =>
        {
            services.AddGrpcClient<User.UserClient>(options => options.Address = server.Address).With(pool).AddLogger(_ => log, wrapHandlersPipeline: true);
            services.AddGrpcClient<User.UserClient>("own", options => options.Address = server.Address).With(pool).RemoveAllLoggers().AddLogger(_ => log);
            services.AddGrpcClient<User.UserClient>("extended", options => options.Address = server.Address).With(pool).AddExtendedHttpClientLogging();
            services.AddSingleton<IRedactorProvider>(NullRedactorProvider.Instance);
        });
        var factory = app.Services.GetRequiredService<GrpcClientFactory>();
        foreach (var name in new[] { nameof(User.UserClient), "own", "extended" })
        {
            await app.CallAsync(pool, factory.CreateClient<User.UserClient>(name), name);
        }

        Assert.Equal(2, log.Started);
        await Waiting.Until(() => log.Ended == 2);
        foreach (var (name, isLogged) in new[] { (nameof(User.UserClient), true), ("own", false) })
        {
            var categories = app.Logs.GetSnapshot().Select(static record => record.Category!).Where(category => category.StartsWith($"System.Net.Http.HttpClient.{name}.", StringComparison.Ordinal));
            Assert.Equal(isLogged ? ["ClientHandler", "LogicalHandler"] : [], categories.Select(static category => category.Split('.')[^1]).Distinct().Order());
        }
    }

    [Theory]
    [MemberData(nameof(WithAndWithout))]
    public async Task AFilterOfTheFactory(bool pool)
    {
        await using var server = await UserServer.StartAsync();
        await using var app = new ClientApp(services => services
            .AddSingleton<IHttpMessageHandlerBuilderFilter, OwnFilter>()
            .AddGrpcClient<User.UserClient>(options => options.Address = server.Address)
            .With(pool));
        await app.CallAsync(pool);
        Assert.Equal("filter", server.LastCall["x-handler"]);
    }

    private static SocketsHttpHandler OfSockets(X509Certificate2 trusted)
    {
        var handler = new SocketsHttpHandler { EnableMultipleHttp2Connections = true };
        Trust(handler, trusted);
        return handler;
    }

    private static void Trust(SocketsHttpHandler handler, X509Certificate2 trusted) =>
        handler.SslOptions.RemoteCertificateValidationCallback = (_, seen, _, errors) => trusted.Equals(seen) && !errors.HasFlag(SslPolicyErrors.RemoteCertificateNameMismatch);

    private sealed class Scoped;

    private sealed class ContextHandler(Scoped scoped) : DelegatingHandler
    {
        protected override Task<HttpResponseMessage> SendAsync(HttpRequestMessage request, CancellationToken cancellationToken)
        {
            ArgumentNullException.ThrowIfNull(scoped);
            request.Headers.Add("x-caller", Caller.Value);
            return base.SendAsync(request, cancellationToken);
        }
    }

    private sealed class OwnFilter : IHttpMessageHandlerBuilderFilter
    {
        public Action<HttpMessageHandlerBuilder> Configure(Action<HttpMessageHandlerBuilder> next) => builder =>
        {
            next(builder);
            builder.AdditionalHandlers.Add(new TracingHandler(new Trace(), "filter"));
        };
    }

    private sealed class RequestLog : IHttpClientLogger
    {
        private int _started;
        private int _ended;

        public int Started => Volatile.Read(ref _started);
        public int Ended => Volatile.Read(ref _ended);

        public object? LogRequestStart(HttpRequestMessage request)
        {
            Interlocked.Increment(ref _started);
            return null;
        }

        public void LogRequestStop(object? context, HttpRequestMessage request, HttpResponseMessage response, TimeSpan elapsed) => Interlocked.Increment(ref _ended);
        public void LogRequestFailed(object? context, HttpRequestMessage request, HttpResponseMessage? response, Exception exception, TimeSpan elapsed) => Interlocked.Increment(ref _ended);
    }
}

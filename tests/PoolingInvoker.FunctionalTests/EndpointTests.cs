using System.Net;
using System.Net.Sockets;
using System.Security.Authentication;
using System.Security.Cryptography.X509Certificates;
using Grpc.Core;
using Grpc.Net.Client;
using Microsoft.Extensions.Configuration;
using Microsoft.Extensions.DependencyInjection;
using Microsoft.Extensions.Logging;
using Microsoft.Extensions.Logging.Abstractions;
using Microsoft.Extensions.Primitives;
using Microsoft.Extensions.ServiceDiscovery;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.FunctionalTests;

/// <summary>Channels that go to one endpoint each, and what finds the endpoints, over real sockets.</summary>
public sealed class EndpointTests
{
    [Fact]
    public async Task AChannel_ReachesItsEndpoint_ByTheName()
    {
        var servers = await EndpointServer.StartSeveralAsync(3);
        var port = servers[0].EndPoint.Port;
        using var policy = new AddressChannelPolicy(new Uri($"dns:///users.test:{port}"), Options());
        Assert.Equal($"users.test:{port}", policy.Target);
        foreach (var server in servers)
        {
            var (made, transport) = policy.Create(new ChannelEndpoint(server.EndPoint));
            using var channel = made;
            Assert.Equal($"users.test:{port}", channel.Target);
            for (var i = 0; i < 3; i++)
            {
                Assert.Equal(server.Journal.ServerName, await WhoAnswersAsync(channel));
            }

            Assert.Equal(Enumerable.Repeat($"users.test:{port}", 3), server.Authorities);
            Assert.Equal(1, server.Journal.PeakConnections);
            Assert.Equal(1, transport!.ConnectionsMade);
            Assert.True(transport.SignsOfLife > 0);
        }

        await DisposeAsync(servers);
    }

    [Theory]
    [InlineData("dns:///users.test", "users.test")]
    [InlineData("dns:///users.test:80", "users.test")]
    [InlineData("dns:///users.test:443", "users.test:443")]
    [InlineData("dns:///[fd00::1]:5000", "[fd00::1]:5000")]
    [InlineData("dns:///[fd00::1]", "[fd00::1]")]
    [InlineData("http://users.test", "users.test")]
    [InlineData("http://users.test:8080", "users.test:8080")]
    public async Task TheDefaultPort_IsNotPartOfTheAuthority(string address, string authority)
    {
        await using var server = await EndpointServer.StartAsync("127.0.0.2");
        using var policy = new AddressChannelPolicy(new Uri(address), Options(), pins: true);
        using var channel = policy.Create(new ChannelEndpoint(server.EndPoint)).Channel;
        Assert.Equal("127.0.0.2", await WhoAnswersAsync(channel));
        Assert.Equal(authority, Assert.Single(server.Authorities));
    }

    [Fact]
    public async Task AnEndpointThatIsTheName_IsReachedAsByABareChannel()
    {
        await using var server = await EndpointServer.StartAsync("127.0.0.1");
        var name = new Uri($"http://localhost:{server.EndPoint.Port}");
        using var policy = new AddressChannelPolicy(name, Options(), pins: true);
        using var channel = policy.Create(ChannelEndpoint.From(new DnsEndPoint("localhost", server.EndPoint.Port), name)).Channel;
        Assert.Equal("127.0.0.1", await WhoAnswersAsync(channel));
        Assert.Equal(name.Authority, Assert.Single(server.Authorities));
    }

    [Fact]
    public async Task WithTls_TheCertificateIsThatOfTheName_AndSoIsTheServerName()
    {
        using var certificate = TestCertificate.New("users.test");
        var servers = await EndpointServer.StartSeveralAsync(2, certificate);
        var port = servers[0].EndPoint.Port;
        using var policy = new AddressChannelPolicy(new Uri($"dns:///users.test:{port}"), Options(Trusting(certificate), static options => options.Credentials = ChannelCredentials.SecureSsl));
        Assert.Equal(new Uri($"https://users.test:{port}"), policy.Address);
        foreach (var server in servers)
        {
            using var channel = policy.Create(new ChannelEndpoint(server.EndPoint)).Channel;
            Assert.Equal(server.Journal.ServerName, await WhoAnswersAsync(channel));
            Assert.Equal([$"users.test:{port}"], server.Authorities);
            Assert.Equal(["users.test"], server.ServerNames);
        }

        await DisposeAsync(servers);
    }

    [Fact]
    public async Task WithTls_ACertificateForAnotherName_IsRefused()
    {
        using var certificate = TestCertificate.New("others.test");
        await using var server = await EndpointServer.StartAsync("127.0.0.3", certificate: certificate);
        using var policy = new AddressChannelPolicy(new Uri("https://users.test"), Options(Trusting(certificate)), pins: true);
        using var channel = policy.Create(new ChannelEndpoint(server.EndPoint)).Channel;
        var exception = await FailAsync(channel);
        Assert.Equal(StatusCode.Internal, exception.StatusCode); // as on a bare channel
        Assert.Contains("RemoteCertificateNameMismatch", Assert.IsType<AuthenticationException>(exception.Status.DebugException!.InnerException).Message, StringComparison.Ordinal);
        Assert.Empty(server.Authorities);
    }

    [Theory]
    [InlineData("dns:///users.test", "https://users.test:443/", true)]
    [InlineData("dns:///users.test", "http://users.test:80/", false)]
    [InlineData("dns:///users.test:443", "https://users.test:443/", true)]
    public void WithoutAPort_ItIsTheOneOfTheCredentials(string address, string name, bool isSecure)
    {
        ChannelCredentials[] insecure = [ChannelCredentials.Insecure, ChannelCredentials.Create(ChannelCredentials.Insecure, Token())];
        ChannelCredentials[] secure = [ChannelCredentials.SecureSsl, new SslCredentials(), ChannelCredentials.Create(ChannelCredentials.SecureSsl, Token())];
        foreach (var credentials in isSecure ? secure : insecure)
        {
            using var policy = new AddressChannelPolicy(
                new Uri(address), Options(null, options => (options.Credentials, options.UnsafeUseInsecureChannelCallCredentials) = (credentials, !isSecure)));
            Assert.Equal(new Uri(name), policy.Address);
        }

        static CallCredentials Token() => CallCredentials.FromInterceptor(static (_, _) => Task.CompletedTask);
    }

    [Fact]
    public async Task CallCredentials_AreAskedForTheService_AsByABareChannel()
    {
        using var certificate = TestCertificate.New("users.test");
        await using var server = await EndpointServer.StartAsync("127.0.0.2", certificate: certificate);
        List<string> urls = [];
        var credentials = ChannelCredentials.Create(ChannelCredentials.SecureSsl, CallCredentials.FromInterceptor((context, _) =>
        {
            urls.Add(context.ServiceUrl);
            return Task.CompletedTask;
        }));
        using var policy = new AddressChannelPolicy(new Uri("dns:///users.test"), Options(Trusting(certificate), options => options.Credentials = credentials));
        using var channel = policy.Create(new ChannelEndpoint(server.EndPoint)).Channel;
        await WhoAnswersAsync(channel);
        Assert.Equal(["https://users.test/user.v1.User"], urls);
    }

    [Fact]
    public async Task EachAddressOfAList_KeepsItsAuthority()
    {
        await using var one = await EndpointServer.StartAsync("127.0.0.2");
        await using var two = await EndpointServer.StartAsync("127.0.0.1");
        var list = ChannelEndpoint.ParseList([$"http://{one.EndPoint}", $"http://localhost:{two.EndPoint.Port}"]);
        using var policy = new AddressChannelPolicy(list, Options());
        Assert.Equal($"{one.EndPoint},localhost:{two.EndPoint.Port}", policy.Target);
        foreach (var (endpoint, server) in list.Zip([one, two]))
        {
            using var channel = policy.Create(endpoint).Channel;
            Assert.Equal(server.Journal.ServerName, await WhoAnswersAsync(channel));
            Assert.Equal([endpoint.ToString()], server.Authorities);
        }
    }

    [Fact]
    public async Task TheState_IsThatOfTheEndpoint()
    {
        var server = await EndpointServer.StartAsync("127.0.0.2");
        using var policy = new AddressChannelPolicy(new Uri("dns:///users.test"), Options());
        var (made, itsTransport) = policy.Create(new ChannelEndpoint(server.EndPoint));
        using var channel = made;
        using var transport = itsTransport!;
        Assert.Equal(ConnectivityState.Idle, transport.State);
        await transport.ConnectAsync(CancellationToken.None).Soon();
        Assert.Equal(ConnectivityState.Ready, transport.State);
        await WhoAnswersAsync(channel);
        await server.DisposeAsync();
        await Waiting.Until(() => transport.State == ConnectivityState.Idle);
        await FailAsync(channel);
        Assert.Equal(ConnectivityState.TransientFailure, transport.State);

        await using var again = await EndpointServer.StartAsync("127.0.0.2", server.EndPoint.Port);
        await transport.ConnectAsync(CancellationToken.None).Soon();
        Assert.Equal("127.0.0.2", await WhoAnswersAsync(channel));
    }

    [Fact]
    public async Task AnEndpointThatIsAway_FailsAsTheAddressOfABareChannel()
    {
        var gone = await EndpointServer.StartAsync("127.0.0.4");
        await gone.DisposeAsync();
        using var policy = new AddressChannelPolicy(new Uri("dns:///users.test"), Options());
        var (made, transport) = policy.Create(new ChannelEndpoint(gone.EndPoint));
        using var channel = made;
        using var bare = GrpcChannel.ForAddress($"http://{gone.EndPoint}");
        var pinned = await FailAsync(channel);
        Assert.Equal((await FailAsync(bare)).StatusCode, pinned.StatusCode);
        var wrapped = Assert.IsType<HttpRequestException>(pinned.Status.DebugException);
        Assert.Equal(SocketError.ConnectionRefused, Assert.IsType<SocketException>(wrapped.InnerException).SocketErrorCode);
        Assert.Equal(ConnectivityState.TransientFailure, transport!.State);
    }

    [Fact]
    public async Task TheServicesOfTheUser_StayInForce()
    {
        await using var server = await EndpointServer.StartAsync("127.0.0.2");
        var services = new RecordingServices();
        using var policy = new AddressChannelPolicy(new Uri("dns:///users.test"), Options(null, options => options.ServiceProvider = services));
        using var channel = policy.Create(new ChannelEndpoint(server.EndPoint)).Channel;
        Assert.Equal("127.0.0.2", await WhoAnswersAsync(channel));
        Assert.Equal("users.test", Assert.Single(server.Authorities));
        Assert.Equal(1, server.Journal.PeakConnections);
        Assert.True(services.Logs > 0);
    }

    public static TheoryData<string, Action<SocketsHttpHandler>?, Action<GrpcChannelOptions>?> OwnTransports => new()
    {
        { "a handler of type HttpClientHandler", null, static options => options.HttpHandler = new HttpClientHandler() },
        { "a handler of type HttpClientHandler", null, static options => options.HttpHandler = new Wrapping(new HttpClientHandler()) },
        { "an HttpClient", null, static options => options.HttpClient = new HttpClient() },
    };

    [Theory]
    [MemberData(nameof(OwnTransports), DisableDiscoveryEnumeration = true)]
    public void ATransportThatCannotBeDirected_IsRefusedWhenThePoolIsMade(string message, Action<SocketsHttpHandler>? handler, Action<GrpcChannelOptions>? channel)
    {
        foreach (var address in new[] { "dns:///users.test", "http://users.test" })
        {
            var exception = Assert.Throws<ArgumentException>(() => new AddressChannelPolicy(new Uri(address), Options(handler, channel), pins: true));
            Assert.StartsWith("A pool over several endpoints needs a SocketsHttpHandler", exception.Message, StringComparison.Ordinal);
            Assert.Contains(message, exception.Message, StringComparison.Ordinal);
        }

        // The addresses of a list are those of bare channels.
        using var list = new AddressChannelPolicy(ChannelEndpoint.ParseList(["http://users.test"]), Options(handler, channel));
        using var one = new AddressChannelPolicy(new Uri("http://users.test"), Options(handler, channel));
    }

    [Fact]
    public async Task AHandlerAroundThePools_OrASocketsHttpHandlerOfTheUsersOwn_IsTaken()
    {
        await using var server = await EndpointServer.StartAsync("127.0.0.2");
        List<SocketsHttpHandler> handlers = [];
        Action<GrpcChannelOptions>[] transports =
        [
            static options => options.HttpHandler = new Wrapping(options.HttpHandler!),
            options => options.HttpHandler = NewHandler(),
            options => options.HttpHandler = new Wrapping(NewHandler()),
        ];
        foreach (var transport in transports)
        {
            using var policy = new AddressChannelPolicy(new Uri("dns:///users.test"), Options(null, transport));
            using var channel = policy.Create(new ChannelEndpoint(server.EndPoint)).Channel;
            Assert.Equal("127.0.0.2", await WhoAnswersAsync(channel));
        }

        Assert.Equal(4, handlers.Count);

        SocketsHttpHandler NewHandler()
        {
            handlers.Add(new SocketsHttpHandler());
            return handlers[^1];
        }
    }

    [Fact]
    public async Task ANameOfDns_IsFound_AndFollowed()
    {
        var servers = await EndpointServer.StartSeveralAsync(3);
        using var policy = new AddressChannelPolicy(new Uri($"dns:///users.test:{servers[0].EndPoint.Port}"), Options());
        var answer = servers[..2];
        var dns = new DnsEndpoints(policy.Address, TimeProvider.System, (host, _) =>
        {
            Assert.Equal("users.test", host);
            return Task.FromResult(Volatile.Read(ref answer).Select(static server => server.EndPoint.Address).ToArray());
        });
        using var watcher = Watch(policy, dns.ResolveAsync);
        Assert.Equal(["127.0.0.2", "127.0.0.3"], await WhoAnswerAsync(policy, await watcher.FirstAsync(CancellationToken.None).Soon()));

        Volatile.Write(ref answer, servers[1..]);
        await Waiting.Until(() =>
        {
            watcher.RefreshSoon();
            return Current(watcher).Any(endpoint => endpoint.EndPoint.Equals(servers[2].EndPoint));
        });
        Assert.Equal(["127.0.0.3", "127.0.0.4"], await WhoAnswerAsync(policy, Current(watcher)));
        await DisposeAsync(servers);
    }

    [Fact]
    public async Task AHostThatDoesNotExist_IsToldToWhoWaits()
    {
        var dns = new DnsEndpoints(new Uri("http://users.invalid"), TimeProvider.System, static (_, _) => Task.FromException<IPAddress[]>(new SocketException((int)SocketError.HostNotFound)));
        using var watcher = new EndpointWatcher(new Uri("http://users.invalid"), dns.ResolveAsync, TimeProvider.System, Random.Shared, Pool);
        var exception = await Assert.ThrowsAsync<HttpRequestException>(() => watcher.FirstAsync(CancellationToken.None).Soon());
        Assert.Contains("users.invalid:80", exception.Message, StringComparison.Ordinal);
    }

    [Fact]
    public async Task AServiceOfTheConfiguration_IsFound_AndFollowed()
    {
        var servers = await Task.WhenAll(EndpointServer.StartAsync("127.0.0.2"), EndpointServer.StartAsync("127.0.0.3"), EndpointServer.StartAsync("127.0.0.4"));
        var configuration = new ConfigurationBuilder().AddInMemoryCollection(new Dictionary<string, string?>
        {
            ["services:users:http:0"] = $"{servers[0].EndPoint}",
            ["services:users:http:1"] = $"http://{servers[1].EndPoint}",
        }).Build();
        await using var services = new ServiceCollection().AddSingleton<IConfiguration>(configuration).AddServiceDiscovery().BuildServiceProvider();
        var resolver = services.GetRequiredService<ServiceEndpointResolver>();
        using var policy = new AddressChannelPolicy(new Uri("http://users"), Options(), pins: true);
        using var watcher = Watch(policy, token => resolver.GetEndpointsAsync("http://users", token));
        Assert.Equal(["127.0.0.2", "127.0.0.3"], await WhoAnswerAsync(policy, await watcher.FirstAsync(CancellationToken.None).Soon()));

        configuration["services:users:http:0"] = $"http://{servers[2].EndPoint}";
        configuration.Reload();
        await Waiting.Until(() => Current(watcher).Any(endpoint => endpoint.EndPoint.Equals(servers[2].EndPoint)));
        Assert.Equal(["127.0.0.4", "127.0.0.3"], await WhoAnswerAsync(policy, Current(watcher)));
        Assert.All(servers.SelectMany(static server => server.Authorities), static authority => Assert.Equal("users", authority));
        await DisposeAsync(servers);
    }

    [Fact]
    public async Task AServiceThatTheConfigurationDoesNotHave_IsANameOfDns()
    {
        await using var server = await EndpointServer.StartAsync("127.0.0.1");
        await using var services = new ServiceCollection().AddSingleton<IConfiguration>(new ConfigurationBuilder().Build()).AddServiceDiscovery().BuildServiceProvider();
        var resolver = services.GetRequiredService<ServiceEndpointResolver>();
        var address = $"http://localhost:{server.EndPoint.Port}";
        using var policy = new AddressChannelPolicy(new Uri(address), Options(), pins: true);
        using var watcher = Watch(policy, token => resolver.GetEndpointsAsync(address, token));
        Assert.Equal(["127.0.0.1"], await WhoAnswerAsync(policy, await watcher.FirstAsync(CancellationToken.None).Soon()));
    }

    [Fact]
    public async Task AServiceWithTls_IsFound()
    {
        using var certificate = TestCertificate.New("users");
        await using var server = await EndpointServer.StartAsync("127.0.0.3", certificate: certificate);
        var configuration = new ConfigurationBuilder().AddInMemoryCollection(new Dictionary<string, string?> { ["services:users:https:0"] = $"https://{server.EndPoint}" }).Build();
        await using var services = new ServiceCollection().AddSingleton<IConfiguration>(configuration).AddServiceDiscovery().BuildServiceProvider();
        var resolver = services.GetRequiredService<ServiceEndpointResolver>();
        using var policy = new AddressChannelPolicy(new Uri("https://users"), Options(Trusting(certificate)), pins: true);
        using var watcher = Watch(policy, token => resolver.GetEndpointsAsync("https://users", token));
        Assert.Equal(["127.0.0.3"], await WhoAnswerAsync(policy, await watcher.FirstAsync(CancellationToken.None).Soon()));
        Assert.Equal(["users"], server.Authorities);
        Assert.Equal(["users"], server.ServerNames);
    }

    [Fact]
    public async Task RecordsOfDnsSrv_WithAPortEach_AreFound_AndFollowed()
    {
        var servers = await Task.WhenAll(EndpointServer.StartAsync("127.0.0.2"), EndpointServer.StartAsync("127.0.0.1"), EndpointServer.StartAsync("127.0.0.4"));
        var records = new SrvRecords([servers[0].EndPoint, new DnsEndPoint("localhost", servers[1].EndPoint.Port)]);
        await using var services = new ServiceCollection().AddServiceDiscoveryCore().AddSingleton<IServiceEndpointProviderFactory>(records).BuildServiceProvider();
        var resolver = services.GetRequiredService<ServiceEndpointResolver>();
        using var policy = new AddressChannelPolicy(new Uri("http://users"), Options(), pins: true);
        using var watcher = Watch(policy, token => resolver.GetEndpointsAsync("http://_grpc.users", token));
        Assert.Equal(["127.0.0.2", "127.0.0.1"], await WhoAnswerAsync(policy, await watcher.FirstAsync(CancellationToken.None).Soon()));
        Assert.Equal("_grpc.users", $"_{records.Query!.EndpointName}.{records.Query.ServiceName}");

        await records.ChangeAsync([servers[2].EndPoint]);
        await Waiting.Until(() => Current(watcher).Count == 1);
        Assert.Equal(["127.0.0.4"], await WhoAnswerAsync(policy, Current(watcher)));
        Assert.All(servers.SelectMany(static server => server.Authorities), static authority => Assert.Equal("users", authority));
        await DisposeAsync(servers);
    }

    private static ChannelPoolOptions Options(Action<SocketsHttpHandler>? handler = null, Action<GrpcChannelOptions>? channel = null) =>
        new ChannelPoolOptions { ConfigureHandler = handler, ConfigureChannel = channel }.ValidatedCopy();

    private static Action<SocketsHttpHandler> Trusting(X509Certificate2 certificate) => handler => handler.SslOptions.CertificateChainPolicy = new X509ChainPolicy
    {
        TrustMode = X509ChainTrustMode.CustomRootTrust,
        CustomTrustStore = { certificate },
        RevocationMode = X509RevocationMode.NoCheck,
    };

    private static EndpointWatcher Watch(AddressChannelPolicy policy, Func<CancellationToken, ValueTask<ServiceEndpointSource>> resolve) =>
        new(policy.Address, resolve, TimeProvider.System, Random.Shared, Pool);

    private static IReadOnlyList<ChannelEndpoint> Current(EndpointWatcher watcher) => watcher.FirstAsync(CancellationToken.None) is { IsCompleted: true, Result: var list } ? list : [];

    private static async Task<string> WhoAnswersAsync(GrpcChannel channel) =>
        (await new User.UserClient(channel).GetNameAsync(new GetNameRequest()).ResponseAsync.Soon()).Origin.Server;

    private static async Task<List<string>> WhoAnswerAsync(AddressChannelPolicy policy, IReadOnlyList<ChannelEndpoint> endpoints)
    {
        List<string> names = [];
        foreach (var endpoint in endpoints)
        {
            using var channel = policy.Create(endpoint).Channel;
            names.Add(await WhoAnswersAsync(channel));
        }

        return names;
    }

    private static Task<RpcException> FailAsync(GrpcChannel channel) =>
        Assert.ThrowsAsync<RpcException>(() => new User.UserClient(channel).GetNameAsync(new GetNameRequest()).ResponseAsync.Soon());

    private static async Task DisposeAsync(IEnumerable<EndpointServer> servers)
    {
        foreach (var server in servers)
        {
            await server.DisposeAsync();
        }
    }

    private sealed class Wrapping(HttpMessageHandler inner) : DelegatingHandler(inner);

    /// <summary>Services of the user's own: a log, and a load balancer.</summary>
    private sealed class RecordingServices : IServiceProvider
    {
        public int Logs { get; private set; }

        public object? GetService(Type serviceType)
        {
            if (serviceType != typeof(ILoggerFactory))
            {
                return null;
            }

            Logs++;
            return NullLoggerFactory.Instance;
        }
    }

    /// <summary>Gives what a provider for SRV records of DNS gives: an IP address or the name of a host, and a port, for each.</summary>
    private sealed class SrvRecords(IReadOnlyList<EndPoint> records) : IServiceEndpointProviderFactory, IServiceEndpointProvider
    {
        private IReadOnlyList<EndPoint> _records = records;
        private CancellationTokenSource _changed = new();

        public ServiceEndpointQuery? Query { get; private set; }

        public bool TryCreateProvider(ServiceEndpointQuery query, [System.Diagnostics.CodeAnalysis.NotNullWhen(true)] out IServiceEndpointProvider? provider)
        {
            Query = query;
            provider = this;
            return true;
        }

        public ValueTask PopulateAsync(IServiceEndpointBuilder endpoints, CancellationToken cancellationToken)
        {
            endpoints.AddChangeToken(new CancellationChangeToken(Volatile.Read(ref _changed).Token));
            foreach (var record in Volatile.Read(ref _records))
            {
                endpoints.Endpoints.Add(ServiceEndpoint.Create(record));
            }

            return ValueTask.CompletedTask;
        }

        public Task ChangeAsync(IReadOnlyList<EndPoint> records)
        {
            Volatile.Write(ref _records, records);
            return Interlocked.Exchange(ref _changed, new CancellationTokenSource()).CancelAsync();
        }

        public ValueTask DisposeAsync() => ValueTask.CompletedTask;
    }

    private static readonly IgnoringPool Pool = new();

    private sealed class IgnoringPool : IEndpointListener
    {
        public void EndpointsChanged(IReadOnlyList<ChannelEndpoint> endpoints)
        {
        }

        public void ResolutionFailed(Exception error)
        {
        }
    }
}

using System.Diagnostics;
using System.Globalization;
using System.Net;
using System.Net.Sockets;
using System.Security.Cryptography.X509Certificates;
using Grpc.Core;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.FunctionalTests;

/// <summary>
/// Calls through an HTTP proxy, over a pool and over a bare channel. The balancer of a bare channel dials the server where the proxy is meant; it
/// stands back where there is a ConnectCallback.
/// </summary>
public sealed class HttpProxyTests(ITestOutputHelper output)
{
    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public async Task WithTls_TheProxyIsAskedForTheAddress(bool overPool)
    {
        using var certificate = TestCertificate.New("localhost");
        await using var server = await EndpointServer.StartAsync("127.0.0.1", certificate: certificate);
        await using var proxy = new ConnectProxy();
        var address = new Uri($"https://localhost:{server.EndPoint.Port}");
        await using (var client = TestClient.Create(overPool, address, handler => Through(proxy, certificate, isBare: !overPool)(handler)))
        {
            for (var i = 0; i < 3; i++)
            {
                await client.User.GetNameAsync(new GetNameRequest()).ResponseAsync.Soon();
            }
        }

        Assert.Equal([$"CONNECT {address.Authority} 200"], proxy.Requests);
        Assert.Equal(["localhost"], server.ServerNames);
        Assert.Equal(Enumerable.Repeat(address.Authority, 3), server.Authorities);
    }

    [Fact]
    public async Task OfAList_TheProxyIsAskedForEachAddress()
    {
        using var certificate = TestCertificate.New("localhost");
        await using var one = await EndpointServer.StartAsync("127.0.0.1", certificate: certificate);
        await using var two = await EndpointServer.StartAsync("127.0.0.1", certificate: certificate);
        await using var proxy = new ConnectProxy();
        string[] authorities = [$"localhost:{one.EndPoint.Port}", $"localhost:{two.EndPoint.Port}"];
        var options = Options(Through(proxy, certificate));
        await using (var invoker = PoolingCallInvoker.ForAddresses(authorities.Select(static authority => $"https://{authority}"), options))
        {
            await invoker.ConnectAsync().Soon();
            var client = new User.UserClient(invoker);
            await Waiting.Until(() => invoker.Pool.GetStatistics().Channels == 2);
            for (var i = 0; i < 20; i++)
            {
                await client.GetNameAsync(new GetNameRequest()).ResponseAsync.Soon();
            }
        }

        Assert.Equal(authorities.Select(static authority => $"CONNECT {authority} 200").Order(), proxy.Requests.Order());
        Assert.All(one.Authorities, authority => Assert.Equal(authorities[0], authority));
        Assert.All(two.Authorities, authority => Assert.Equal(authorities[1], authority));
        Assert.Equal(20, one.Authorities.Count + two.Authorities.Count);
    }

    [Fact]
    public async Task OfANameWithEndpoints_TheProxyIsAskedForTheEndpoint_AndAllElseIsByTheName()
    {
        using var certificate = TestCertificate.New("users.test");
        var servers = await EndpointServer.StartSeveralAsync(2, certificate);
        var port = servers[0].EndPoint.Port;
        await using var proxy = new ConnectProxy();
        using var policy = new AddressChannelPolicy(new Uri($"https://users.test:{port}"), Options(Through(proxy, certificate)).Pool, pins: true);
        foreach (var server in servers)
        {
            var (made, itsTransport) = policy.Create(new ChannelEndpoint(server.EndPoint));
            using var channel = made;
            using var transport = itsTransport;
            var reply = await new User.UserClient(channel).GetNameAsync(new GetNameRequest()).ResponseAsync.Soon();
            Assert.Equal(server.Journal.ServerName, reply.Origin.Server);
            Assert.Equal(["users.test"], server.ServerNames);
            Assert.Equal([$"users.test:{port}"], server.Authorities);
        }

        Assert.Equal(servers.Select(static server => $"CONNECT {server.EndPoint} 200"), proxy.Requests);
        foreach (var server in servers)
        {
            await server.DisposeAsync();
        }
    }

    [Theory]
    [InlineData("https", "2.0", "CONNECT 127.0.0.9:{0} 502")]
    [InlineData("https", "1.1", "CONNECT 127.0.0.9:{0} 502")]
    [InlineData("http", "2.0", null)] // HTTP/2 without TLS does not go through a proxy
    [InlineData("http", "1.1", "POST http://127.0.0.9:{0}/user.v1.User/GetName 502")]
    public async Task WhateverIsSpoken_TheProxyIsAskedForTheEndpoint(string scheme, string version, string? request)
    {
        await using var proxy = new ConnectProxy { Refusal = 502 };
        const int Port = 5000; // nobody connects to it
        var options = Options(Through(proxy, certificate: null)).Pool;
        options.ConfigureChannel = channel => channel.HttpVersion = Version.Parse(version);
        using var policy = new AddressChannelPolicy(new Uri($"{scheme}://users.test:{Port}"), options, pins: true);
        var (made, itsTransport) = policy.Create(new ChannelEndpoint(IPEndPoint.Parse($"127.0.0.9:{Port}")));
        using var channel = made;
        using var transport = itsTransport;
        Assert.NotEqual(StatusCode.OK, (await Outcome.OfAsync(() => new User.UserClient(channel).GetNameAsync(new GetNameRequest()).ResponseAsync)).Status);
        Assert.Equal(request is null ? [] : [string.Format(CultureInfo.InvariantCulture, request, Port)], proxy.Requests.Take(1)); // a POST has a body behind it
    }

    [Fact]
    public async Task WithoutAProxy_AChannelOfHttp11GoesToItsEndpoint_ByTheName()
    {
        using var certificate = TestCertificate.New("users.test");
        await using var server = await EndpointServer.StartAsync("127.0.0.9", certificate: certificate);
        var options = new ChannelPoolOptions { ConfigureChannel = static channel => channel.HttpVersion = HttpVersion.Version11 };
        using var policy = new AddressChannelPolicy(new Uri($"https://users.test:{server.EndPoint.Port}"), options, pins: true);
        using var channel = policy.Create(new ChannelEndpoint(server.EndPoint)).Channel;
        await Outcome.OfAsync(() => new User.UserClient(channel).GetNameAsync(new GetNameRequest()).ResponseAsync);
        Assert.Equal("users.test", Assert.Single(server.ServerNames.Distinct()));
    }

    [Fact]
    public async Task TheProxyResolvesANameThatOnlyItKnows()
    {
        using var certificate = TestCertificate.New("users.invalid");
        await using var server = await EndpointServer.StartAsync("127.0.0.1", certificate: certificate);
        await using var proxy = new ConnectProxy { Target = server.EndPoint };
        await using var client = TestClient.Create(overPool: true, new Uri("https://users.invalid"), Through(proxy, certificate));
        await client.User.GetNameAsync(new GetNameRequest()).ResponseAsync.Soon();
        Assert.Equal(["CONNECT users.invalid:443 200"], proxy.Requests);
        Assert.Equal(["users.invalid"], server.Authorities);
    }

    [Theory]
    [InlineData("of the proxy")]
    [InlineData("by default")]
    public async Task CredentialsForTheProxy_AreSentWhenItAsks(string which)
    {
        using var certificate = TestCertificate.New("localhost");
        await using var server = await EndpointServer.StartAsync("127.0.0.1", certificate: certificate);
        await using var proxy = new ConnectProxy { Credentials = "ann:secret" };
        await using var client = TestClient.Create(overPool: true, new Uri($"https://localhost:{server.EndPoint.Port}"), handler =>
        {
            Through(proxy, certificate)(handler);
            if (which == "by default")
            {
                handler.DefaultProxyCredentials = new NetworkCredential("ann", "secret");
                handler.Proxy = new ProxyWithoutCredentials(proxy.Address);
            }
            else
            {
                handler.Proxy = new WebProxy(proxy.Address) { Credentials = new NetworkCredential("ann", "secret") };
            }
        });
        await client.User.GetNameAsync(new GetNameRequest()).ResponseAsync.Soon();
        var authority = $"localhost:{server.EndPoint.Port}";
        Assert.Equal([$"CONNECT {authority} 407", $"CONNECT {authority} 200"], proxy.Requests);
    }

    [Theory]
    [InlineData(502, true)]
    [InlineData(502, false)]
    [InlineData(407, true)]
    [InlineData(407, false)]
    [InlineData(403, true)]
    [InlineData(200, false)] // HTTP/2 without TLS does not go through a proxy
    public async Task ARefusal_EndsACallAsOnABareChannel(int status, bool withTls)
    {
        var bare = await RunAsync(overPool: false);
        var pool = await RunAsync(overPool: true);
        output.WriteLine($"bare: {bare}\npool: {pool}");
        Assert.NotEqual(StatusCode.OK, bare.End.Status);
        Assert.Equal(bare.End.Status, pool.End.Status);
        Assert.EndsWith(bare.End.Cause, pool.End.Cause, StringComparison.Ordinal);
        Assert.Equal(bare.Requests.Distinct(), pool.Requests.Distinct()); // the pool may have dialled once more, for the calls to come

        // A proxy that cannot reach the server is as a server that cannot be reached: the call never left.
        Assert.Equal(status == 502 && withTls ? 3 : 0, pool.Retries);

        async Task<(Outcome End, IReadOnlyList<string> Requests, long Retries)> RunAsync(bool overPool)
        {
            await using var proxy = new ConnectProxy { Refusal = status == 200 ? null : status };
            await using var client = TestClient.Create(overPool, new Uri($"{(withTls ? "https" : "http")}://users.invalid:5000"), Through(proxy, certificate: null, isBare: !overPool));
            var end = await Outcome.OfAsync(() => client.User.GetNameAsync(new GetNameRequest()).ResponseAsync);
            return (end, proxy.Requests, client.Retries);
        }
    }

    [Fact]
    public async Task TheProxyOfTheEnvironment_IsUsed()
    {
        using var certificate = TestCertificate.New("localhost");
        await using var server = await EndpointServer.StartAsync("127.0.0.1", certificate: certificate);
        await using var proxy = new ConnectProxy();
        var authority = $"localhost:{server.EndPoint.Port}";
        var start = new ProcessStartInfo("dotnet", [typeof(ProxiedCall).Assembly.Location, ProxiedCall.Command, $"https://{authority}", certificate.GetCertHashString()])
        {
            RedirectStandardOutput = true,
            Environment = { ["HTTPS_PROXY"] = $"{proxy.Address}", ["https_proxy"] = $"{proxy.Address}", ["NO_PROXY"] = "", ["no_proxy"] = "" },
        };
        using var process = Process.Start(start)!;
        Assert.Equal("OK", await process.StandardOutput.ReadLineAsync().Soon());
        await process.WaitForExitAsync().Soon();
        Assert.Equal([$"CONNECT {authority} 200"], proxy.Requests);
    }

    private static Action<SocketsHttpHandler> Through(ConnectProxy proxy, X509Certificate2? certificate, bool isBare = false) => handler =>
    {
        if (isBare)
        {
            handler.ConnectCallback = static async (context, cancellationToken) =>
            {
                var socket = new Socket(SocketType.Stream, ProtocolType.Tcp) { NoDelay = true };
                await socket.ConnectAsync(context.DnsEndPoint, cancellationToken);
                return new NetworkStream(socket, ownsSocket: true);
            };
        }

        handler.Proxy = new WebProxy(proxy.Address);
        if (certificate is not null)
        {
            handler.SslOptions.CertificateChainPolicy = new X509ChainPolicy
            {
                TrustMode = X509ChainTrustMode.CustomRootTrust,
                CustomTrustStore = { certificate },
                RevocationMode = X509RevocationMode.NoCheck,
            };
        }
    };

    private static PoolingCallInvokerOptions Options(Action<SocketsHttpHandler> handler) =>
        new() { Pool = { ConfigureHandler = handler, DrainTimeout = TimeSpan.Zero } };

    private sealed class ProxyWithoutCredentials(Uri address) : IWebProxy
    {
        public ICredentials? Credentials { get; set; }

        public Uri GetProxy(Uri destination) => address;

        public bool IsBypassed(Uri host) => false;
    }
}

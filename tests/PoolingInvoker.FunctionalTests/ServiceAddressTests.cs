using System.Collections.Concurrent;
using System.Net;
using System.Net.Security;
using System.Security.Cryptography.X509Certificates;
using Grpc.Core;
using Microsoft.Extensions.Configuration;
using Microsoft.Extensions.DependencyInjection;
using Microsoft.Extensions.ServiceDiscovery;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.FunctionalTests;

/// <summary>Channels to the addresses that service discovery finds: the server gets its own address, and the application the name of the service.</summary>
public sealed class ServiceAddressTests
{
    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public async Task EachServer_IsCalledByItsAddress_AndFollowed(bool isWrapped)
    {
        await using var first = await EndpointServer.StartAsync("127.0.0.2");
        await using var second = await EndpointServer.StartAsync("127.0.0.3");
        var (services, configuration) = Discovery(("http:0", $"{first.EndPoint}"), ("http:1", $"http://{second.EndPoint}"));
        await using var _ = services;
        var seen = new ConcurrentQueue<string>();
        await using var invoker = PoolingCallInvoker.ForAddresses("http://users", Resolve(services, "http://users"), new PoolingCallInvokerOptions
        {
            Pool = { ConfigureChannel = options => options.HttpHandler = isWrapped ? new SeeingHandler(options.HttpHandler!, seen) : options.HttpHandler },
        });
        var client = new User.UserClient(invoker);
        while (first.Authorities.IsEmpty || second.Authorities.IsEmpty)
        {
            await client.GetNameAsync(new GetNameRequest());
        }

        Assert.All(first.Authorities, authority => Assert.Equal($"{first.EndPoint}", authority));
        Assert.All(second.Authorities, authority => Assert.Equal($"{second.EndPoint}", authority));
        Assert.All(seen, static authority => Assert.Equal("users", authority));
        Assert.Equal(isWrapped, !seen.IsEmpty);

        configuration["services:users:http:1"] = $"{first.EndPoint}";
        configuration.Reload();
        await Waiting.Until(() => invoker.Pool.GetChannels().All(channel => channel.Endpoint == $"{first.EndPoint}"));
    }

    [Fact]
    public async Task AChannelOfHttp11_GoesToItsAddress()
    {
        using var certificate = TestCertificate.New("localhost");
        await using var server = await EndpointServer.StartAsync("127.0.0.1", certificate: certificate);
        var (services, _) = Discovery(("https:0", $"https://localhost:{server.EndPoint.Port}"));
        await using var __ = services;
        await using var invoker = PoolingCallInvoker.ForAddresses("https://users", Resolve(services, "https://users"), new PoolingCallInvokerOptions
        {
            Pool = { ConfigureHandler = Trusting(certificate), ConfigureChannel = static channel => channel.HttpVersion = HttpVersion.Version11 },
            Retry = { MaxRetryAttempts = 0 },
        });
        await Outcome.OfAsync(() => new User.UserClient(invoker).GetNameAsync(new GetNameRequest()).ResponseAsync);
        Assert.Equal("localhost", Assert.Single(server.ServerNames.Distinct()));
    }

    [Fact]
    public async Task TheSchemeOfAnEndpoint_IsThatOfItsChannel()
    {
        using var certificate = TestCertificate.New("localhost");
        await using var plain = await EndpointServer.StartAsync("127.0.0.1");
        await using var secure = await EndpointServer.StartAsync("127.0.0.1", certificate: certificate);
        foreach (var (server, scheme) in new[] { (plain, "http"), (secure, "https") })
        {
            var (services, _) = Discovery(($"{scheme}:0", $"{scheme}://localhost:{server.EndPoint.Port}"));
            await using var __ = services;
            List<string> urls = [];
            await using var invoker = PoolingCallInvoker.ForAddresses("https://users", Resolve(services, "https+http://users"), new PoolingCallInvokerOptions
            {
                Pool = { ConfigureHandler = Trusting(certificate) },
            });
            var credentials = CallCredentials.FromInterceptor((context, _) =>
            {
                urls.Add(context.ServiceUrl);
                return Task.CompletedTask;
            });
            await new User.UserClient(invoker).GetNameAsync(new GetNameRequest(), new CallOptions(credentials: credentials));

            Assert.Equal($"localhost:{server.EndPoint.Port}", Assert.Single(server.Authorities));
            Assert.Equal(scheme == "https" ? ["https://users/user.v1.User"] : [], urls);
        }

        Assert.Equal("localhost", Assert.Single(secure.ServerNames));
    }

    [Fact]
    public async Task TheHostName_ThatComesWithAnEndpoint_IsItsAuthority()
    {
        using var certificate = TestCertificate.New("users.test");
        await using var server = await EndpointServer.StartAsync("127.0.0.1", certificate: certificate);
        var (services, _) = Discovery(("https:0", $"https://{server.EndPoint}"));
        await using var __ = services;
        var resolve = Resolve(services, "https://users");
        await using var invoker = PoolingCallInvoker.ForAddresses(
            "https://users",
            async token =>
            {
                var source = await resolve(token);
                source.Endpoints[0].Features.Set<IHostNameFeature>(new HostName("users.test"));
                return source;
            },
            new PoolingCallInvokerOptions { Pool = { ConfigureHandler = Trusting(certificate) } });
        await new User.UserClient(invoker).GetNameAsync(new GetNameRequest());

        Assert.Equal("users.test", Assert.Single(server.Authorities));
        Assert.Equal("users.test", Assert.Single(server.ServerNames));
    }

    private static (ServiceProvider Services, IConfigurationRoot Configuration) Discovery(params (string Key, string Endpoint)[] endpoints)
    {
        var configuration = new ConfigurationBuilder()
            .AddInMemoryCollection(endpoints.Select(static endpoint => KeyValuePair.Create($"services:users:{endpoint.Key}", (string?)endpoint.Endpoint)))
            .Build();
        return (new ServiceCollection().AddSingleton<IConfiguration>(configuration).AddServiceDiscovery().BuildServiceProvider(), configuration);
    }

    private static Func<CancellationToken, ValueTask<ServiceEndpointSource>> Resolve(ServiceProvider services, string name)
    {
        var resolver = services.GetRequiredService<ServiceEndpointResolver>();
        return token => resolver.GetEndpointsAsync(name, token);
    }

    private static Action<SocketsHttpHandler> Trusting(X509Certificate2 certificate) => handler =>
        handler.SslOptions.RemoteCertificateValidationCallback = (_, seen, _, errors) =>
            seen?.GetCertHashString() == certificate.GetCertHashString() && !errors.HasFlag(SslPolicyErrors.RemoteCertificateNameMismatch);

    private sealed class SeeingHandler(HttpMessageHandler inner, ConcurrentQueue<string> seen) : DelegatingHandler(inner)
    {
        protected override Task<HttpResponseMessage> SendAsync(HttpRequestMessage request, CancellationToken cancellationToken)
        {
            seen.Enqueue(request.RequestUri!.Authority);
            return base.SendAsync(request, cancellationToken);
        }
    }

    private sealed record HostName(string Host) : IHostNameFeature
    {
        string IHostNameFeature.HostName => Host;
    }
}

using Microsoft.Extensions.Configuration;
using Microsoft.Extensions.DependencyInjection;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.DependencyInjectionTests;

/// <summary>Clients with service discovery, whose handler chooses an endpoint for each request; over the pool a channel goes to one.</summary>
public sealed class DiscoveryTests
{
    public static TheoryData<bool> WithAndWithout => ClientApp.WithAndWithout;

    public static TheoryData<string, bool> Addresses => new()
    {
        { "http://users", false },
        { "http://users", true },
        { "http://_grpc.users", false },
        { "http://_grpc.users", true },
        { "https+http://users", true }, // which a bare client does not take
        { "http+https://users", true },
    };

    [Theory]
    [MemberData(nameof(Addresses))]
    public async Task AService_WithItsEndpoints(string address, bool pool)
    {
        await using var first = await UserServer.StartAsync();
        await using var second = await UserServer.StartAsync();
        string? url = null;
        var name = address.Contains("_grpc", StringComparison.Ordinal) ? "grpc" : "http";
        await using var app = new ClientApp(services => AddConfiguration(services, ($"{name}:0", $"http://localhost:{first.Address.Port}"), ($"{name}:1", $"http://localhost:{second.Address.Port}"))
            .AddServiceDiscovery()
            .AddGrpcClient<User.UserClient>(options => options.Address = new Uri(address))
            .With(pool)
            .AddServiceDiscovery()
            .ConfigureChannel(static channel => channel.UnsafeUseInsecureChannelCallCredentials = true)
            .AddCallCredentials((context, _) =>
            {
                url = context.ServiceUrl;
                return Task.CompletedTask;
            }));
        await Waiting.Until(() =>
        {
            app.CallAsync(pool).GetAwaiter().GetResult();
            return !first.Calls.IsEmpty && !second.Calls.IsEmpty;
        });
        Assert.All(first.Calls, call => Assert.Equal(first.Address.Authority, call.Authority));
        Assert.All(second.Calls, call => Assert.Equal(second.Address.Authority, call.Authority));
        Assert.Equal(address is "http://_grpc.users" ? "http://_grpc.users/user.v1.User" : "http://users/user.v1.User", url);
        if (pool)
        {
            string[] endpoints = [$"localhost:{first.Address.Port}", $"localhost:{second.Address.Port}"];
            Assert.Equal(endpoints.ToHashSet(), [.. app.Pool.GetChannels().Select(static channel => channel.Endpoint)]);
        }
    }

    [Theory]
    [MemberData(nameof(WithAndWithout))]
    public async Task AServiceWithTls(bool pool)
    {
        using var certificate = TestCertificate.New("localhost");
        await using var server = await UserServer.StartAsync(certificate);
        await using var app = new ClientApp(services => AddConfiguration(services, ("https:0", $"https://localhost:{server.Address.Port}"))
            .AddServiceDiscovery()
            .ConfigureHttpClientDefaults(static http => http.AddServiceDiscovery())
            .AddGrpcClient<User.UserClient>(static options => options.Address = new Uri("https://users"))
            .With(pool)
            .ConfigurePrimaryHttpMessageHandler(() => Trusting(certificate)));
        await app.CallAsync(pool);
        Assert.Equal($"localhost:{server.Address.Port}", server.LastCall.Authority);
    }

    [Theory]
    [MemberData(nameof(WithAndWithout))]
    public async Task AnAddressThatIsNoService(bool pool)
    {
        await using var server = await UserServer.StartAsync();
        await using var app = new ClientApp(services => AddConfiguration(services)
            .AddServiceDiscovery()
            .AddGrpcClient<User.UserClient>(options => options.Address = server.Address)
            .AddServiceDiscovery()
            .With(pool));
        await app.CallAsync(pool);
        Assert.Equal(server.Address.Authority, server.LastCall.Authority);
    }

    [Theory]
    [InlineData(false, false)]
    [InlineData(false, true)]
    [InlineData(true, true)] // without the pool the channel asks DNS for the service
    public async Task APrimaryHandlerOfAnotherType(bool hasSockets, bool pool)
    {
        await using var server = await UserServer.StartAsync();
        await using var app = new ClientApp(services => AddConfiguration(services, ("http:0", $"{server.Address}"))
            .AddServiceDiscovery()
            .AddGrpcClient<User.UserClient>(static options => options.Address = new Uri("http://users"))
            .AddServiceDiscovery()
            .With(pool)
            .ConfigurePrimaryHttpMessageHandler(() => hasSockets ? new TracingHandler(new Trace(), "primary") { InnerHandler = new SocketsHttpHandler() } : new HttpClientHandler()));
        await app.CallAsync(pool);
        Assert.Equal(server.Address.Authority, server.LastCall.Authority);
        if (pool)
        {
            // Without sockets that can be directed it is left to the handler of discovery.
            Assert.All(app.Pool.GetChannels(), channel => Assert.Equal(hasSockets ? server.Address.Authority : "users", channel.Endpoint));
        }
    }

    [Fact]
    public async Task HttpsOrHttp_IsFollowed_WithTheChannelsOfItsScheme()
    {
        using var certificate = TestCertificate.New("localhost");
        await using var plain = await UserServer.StartAsync();
        await using var secure = await UserServer.StartAsync(certificate);
        await using var app = new ClientApp(services => AddConfiguration(services, ("http:0", $"{plain.Address}"))
            .AddServiceDiscovery()
            .AddGrpcClient<User.UserClient>()
            .ConfigureHttpClient(static client => client.BaseAddress = new Uri("https+http://users"))
            .AddServiceDiscovery()
            .With(pool: true)
            .ConfigurePrimaryHttpMessageHandler(() => Trusting(certificate))
            .AddCallCredentials(static (_, headers) =>
            {
                headers.Add("x-token", "secret");
                return Task.CompletedTask;
            }));
        await app.CallAsync(overPool: true);
        Assert.Null(plain.LastCall["x-token"]); // it goes over TLS only

        var configuration = (IConfigurationRoot)app.Services.GetRequiredService<IConfiguration>();
        configuration["services:users:https:0"] = $"{secure.Address}";
        configuration["services:users:http:0"] = null;
        configuration.Reload();
        await Waiting.Until(() =>
        {
            app.CallAsync(overPool: true).GetAwaiter().GetResult();
            return !secure.Calls.IsEmpty;
        });
        Assert.Equal("secret", secure.LastCall["x-token"]);
    }

    [Theory]
    [InlineData(false, "https+http://users", "only service discovery understands")]
    [InlineData(true, "https+http://users", "whose connections cannot be directed")]
    public async Task WhatCannotBe_IsSaid(bool hasDiscovery, string address, string message)
    {
        await using var app = new ClientApp(services =>
        {
            var builder = AddConfiguration(services).AddGrpcClient<User.UserClient>(options => options.Address = new Uri(address)).With(pool: true);
            if (hasDiscovery)
            {
                services.AddServiceDiscovery();
                builder.AddServiceDiscovery().ConfigurePrimaryHttpMessageHandler(static () => new HttpClientHandler());
            }
        });
        var exception = Assert.Throws<InvalidOperationException>(() => app.Client);
        Assert.StartsWith("The channel pool of the gRPC client 'UserClient' cannot be made: its address is 'https+http://users", exception.Message, StringComparison.Ordinal);
        Assert.Contains(message, exception.Message, StringComparison.Ordinal);
    }

    private static IServiceCollection AddConfiguration(IServiceCollection services, params (string Key, string Endpoint)[] endpoints) =>
        services.AddSingleton<IConfiguration>(new ConfigurationBuilder()
            .AddInMemoryCollection(endpoints.Select(static endpoint => KeyValuePair.Create($"services:users:{endpoint.Key}", (string?)endpoint.Endpoint)))
            .Build());

    private static SocketsHttpHandler Trusting(System.Security.Cryptography.X509Certificates.X509Certificate2 certificate) => new()
    {
        SslOptions = { RemoteCertificateValidationCallback = (_, seen, _, errors) => certificate.Equals(seen) && !errors.HasFlag(System.Net.Security.SslPolicyErrors.RemoteCertificateNameMismatch) },
    };
}

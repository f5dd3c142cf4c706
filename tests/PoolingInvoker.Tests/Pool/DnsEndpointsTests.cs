using System.Net;
using System.Net.Sockets;
using Microsoft.Extensions.ServiceDiscovery;
using PoolingInvoker.Testing;

namespace PoolingInvoker.Tests.Pool;

/// <summary>What a name of DNS stands for, and which endpoints addresses, names and entries of lists are.</summary>
public sealed class DnsEndpointsTests
{
    private static readonly Uri Users = new("http://users:5000");
    private readonly RecordingTime _time = new(DateTimeOffset.UnixEpoch);

    [Theory]
    [InlineData("dns:///users:5000", false, "http://users:5000/")]
    [InlineData("dns:///users:5000", true, "https://users:5000/")]
    [InlineData("dns:users:5000", false, "http://users:5000/")]
    [InlineData("DNS:///users:5000", false, "http://users:5000/")]
    [InlineData("dns:///users", false, "http://users/")]
    [InlineData("dns:///users", true, "https://users/")]
    [InlineData("dns:///users/", false, "http://users/")]
    [InlineData("dns:///users:80", true, "https://users:80/")]
    [InlineData("dns:///users.default.svc.cluster.local:5000", false, "http://users.default.svc.cluster.local:5000/")]
    [InlineData("dns:///my_users:5000", false, "http://my_users:5000/")]
    [InlineData("dns:///10.0.0.1:5000", false, "http://10.0.0.1:5000/")]
    [InlineData("dns:///[::1]:5000", false, "http://[::1]:5000/")]
    [InlineData("dns:///[::1]", true, "https://[::1]/")]
    public void AName(string address, bool isSecure, string name) =>
        Assert.Equal(name, DnsEndpoints.NameOf(new Uri(address), isSecure).AbsoluteUri);

    [Theory]
    [InlineData("dns://8.8.8.8/users:5000", "'dns:///users:5000'")]
    [InlineData("dns://users:5000", "'dns:///users:5000'")]
    [InlineData("dns:///", "does not name a host")]
    [InlineData("dns:", "does not name a host")]
    [InlineData("dns:///:5000", "does not name a host")]
    [InlineData("dns:///users:70000", "does not name a host")]
    [InlineData("dns:///users:grpc", "does not name a host")]
    [InlineData("dns:///users:5000/v1", "does not name a host")]
    [InlineData("dns:///users:5000?x=1", "does not name a host")]
    [InlineData("dns:///users:5000#x", "does not name a host")]
    [InlineData("dns:///me@users:5000", "does not name a host")]
    public void NoName(string address, string message)
    {
        var exception = Assert.Throws<ArgumentException>(() => DnsEndpoints.NameOf(new Uri(address), isSecure: false));
        Assert.Contains($"'{address}'", exception.Message, StringComparison.Ordinal);
        Assert.Contains(message, exception.Message, StringComparison.Ordinal);
    }

    [Fact]
    public async Task TheAddresses_AreTheSame_HoweverTheAnswerRotates()
    {
        var answers = new Queue<string[]>([["10.0.0.10", "10.0.0.2", "fd00::2", "fd00::1", "10.0.0.2"], ["fd00::1", "10.0.0.2", "fd00::2", "10.0.0.10"]]);
        var dns = new DnsEndpoints(Users, _time, (host, _) =>
        {
            Assert.Equal("users", host);
            return Task.FromResult(answers.Dequeue().Select(IPAddress.Parse).ToArray());
        });
        for (var i = 0; i < 2; i++)
        {
            var source = await dns.ResolveAsync(CancellationToken.None);
            Assert.Equal(
                (HashSet<string>)["10.0.0.2:5000", "10.0.0.10:5000", "[fd00::1]:5000", "[fd00::2]:5000"],
                source.Endpoints.Select(static endpoint => ChannelEndpoint.From(endpoint.EndPoint, Users).ToString()).ToHashSet());
        }
    }

    [Fact]
    public async Task TheAnswerHolds_ForTheRefreshInterval()
    {
        var dns = new DnsEndpoints(Users, _time, static (_, _) => Task.FromResult(new[] { IPAddress.Loopback }));
        var source = await dns.ResolveAsync(CancellationToken.None);
        Assert.True(source.ChangeToken.ActiveChangeCallbacks);
        _time.Advance(DnsEndpoints.RefreshInterval - TimeSpan.FromTicks(1));
        Assert.False(source.ChangeToken.HasChanged);
        _time.Advance(TimeSpan.FromTicks(1));
        Assert.True(source.ChangeToken.HasChanged);
    }

    [Fact]
    public async Task AWatcherOverDns_AsksAgainInThirtySeconds()
    {
        var asked = 0;
        var pool = new NeverFailing();
        var addresses = new[] { IPAddress.Parse("10.0.0.1") };
        var dns = new DnsEndpoints(Users, _time, (_, _) =>
        {
            Interlocked.Increment(ref asked);
            return Task.FromResult(Volatile.Read(ref addresses));
        });
        using var watcher = new EndpointWatcher(Users, dns.ResolveAsync, _time, Random.Shared, pool);
        await watcher.FirstAsync(CancellationToken.None).Soon();
        await Waiting.Until(() => _time.Armed == 1);
        Volatile.Write(ref addresses, [IPAddress.Parse("10.0.0.2")]);
        _time.Advance(DnsEndpoints.RefreshInterval);
        await Waiting.Until(() => pool.Endpoints[0].ToString() == "10.0.0.2:5000");
        Assert.Equal(2, asked);
    }

    [Fact]
    public async Task AnIPAddress_IsItself_AndAsksNobody()
    {
        foreach (var (name, endpoint) in new[] { ("http://10.0.0.1:5000", "10.0.0.1:5000"), ("https://[fd00::1]", "[fd00::1]:443") })
        {
            var dns = new DnsEndpoints(new Uri(name), _time, static (_, _) => throw new InvalidOperationException("Nobody was to be asked."));
            var source = await dns.ResolveAsync(CancellationToken.None);
            Assert.Equal(endpoint, ChannelEndpoint.From(Assert.Single(source.Endpoints).EndPoint, new Uri(name)).ToString());
            Assert.True(source.ChangeToken.ActiveChangeCallbacks);
        }

        Assert.Equal(0, _time.Armed);
    }

    [Fact]
    public async Task AHostThatDoesNotExist_IsNamed()
    {
        var dns = new DnsEndpoints(Users, _time, static (_, _) => throw new SocketException((int)SocketError.HostNotFound));
        var exception = await Assert.ThrowsAsync<HttpRequestException>(() => dns.ResolveAsync(CancellationToken.None).AsTask());
        Assert.Equal(HttpRequestError.NameResolutionError, exception.HttpRequestError);
        Assert.EndsWith("(users:5000)", exception.Message, StringComparison.Ordinal);
        Assert.Equal(SocketError.HostNotFound, Assert.IsType<SocketException>(exception.InnerException).SocketErrorCode);
    }

    [Fact]
    public async Task TheResolverOfTheSystem_KnowsThisMachine()
    {
        var source = await new DnsEndpoints(new Uri("http://localhost:5000"), _time).ResolveAsync(CancellationToken.None);
        Assert.All(source.Endpoints, static endpoint => Assert.True(IPAddress.IsLoopback(Assert.IsType<IPEndPoint>(endpoint.EndPoint).Address)));
    }

    public static TheoryData<EndPoint, string, string> Resolved => new()
    {
        { new IPEndPoint(IPAddress.Parse("10.0.0.1"), 5001), "http://users:5000", "10.0.0.1:5001" },
        { new IPEndPoint(IPAddress.IPv6Loopback, 5001), "http://users:5000", "[::1]:5001" },
        { new IPEndPoint(IPAddress.Loopback, 0), "http://users:5000", "127.0.0.1:80" },
        { new DnsEndPoint("pod-1.users", 5001), "http://users", "pod-1.users:5001" },
        { new DnsEndPoint("pod-1.users", 0), "https://users", "pod-1.users:443" },
        { new DnsEndPoint("10.0.0.1", 5001), "https://users", "10.0.0.1:5001" },
        { new TextEndPoint("http://10.0.0.1:5001/"), "http://users", "10.0.0.1:5001" },
        { new TextEndPoint("https://pod-1.users"), "https://users", "pod-1.users:443" },
        { new TextEndPoint("http://[::1]:5001"), "http://users", "[::1]:5001" },
        { new TextEndPoint("tcp://10.0.0.1:5001"), "https://users", "10.0.0.1:5001" },
        { new TextEndPoint("tcp://10.0.0.1"), "https://users", "10.0.0.1:443" },
    };

    [Theory]
    [MemberData(nameof(Resolved), DisableDiscoveryEnumeration = true)]
    public void WhatAResolutionGives_IsAnEndpoint(EndPoint resolved, string name, string text)
    {
        var endpoint = ChannelEndpoint.From(resolved, new Uri(name));
        Assert.Equal(text, endpoint.ToString());
        Assert.Null(endpoint.Address);
        Assert.Equal(endpoint, ChannelEndpoint.From(resolved, new Uri(name)));
    }

    [Fact]
    public void AnEndpointOfAnotherScheme_IsRefused()
    {
        var exception = Assert.Throws<InvalidOperationException>(() => ChannelEndpoint.From(new TextEndPoint("https://10.0.0.1/"), Users));
        Assert.Contains("'https://10.0.0.1/' speaks https", exception.Message, StringComparison.Ordinal);
        Assert.Throws<InvalidOperationException>(() => ChannelEndpoint.From(new TextEndPoint("unix:/run/users.sock"), Users));
    }

    public static TheoryData<EndPoint, string?, string, string, string, string> OfAService => new()
    {
        { new IPEndPoint(IPAddress.Loopback, 5001), null, "http://users", "127.0.0.1:5001", "http://127.0.0.1:5001/", "http://users/" },
        { new IPEndPoint(IPAddress.Loopback, 5001), "users.test", "https://users", "127.0.0.1:5001", "https://users.test/", "https://users/" },
        { new DnsEndPoint("pod-1.users", 0), null, "https://users:5000", "pod-1.users:443", "https://pod-1.users/", "https://users:5000/" },
        { new TextEndPoint("http://localhost:5001/"), null, "https://users", "localhost:5001", "http://localhost:5001/", "http://users/" },
        { new TextEndPoint("https://localhost:5001"), "users.test:1", "http://users", "localhost:5001", "https://users.test:1/", "https://users/" },
        { new TextEndPoint("tcp://localhost:5001"), null, "http://users", "localhost:5001", "http://localhost:5001/", "http://users/" },
    };

    [Theory]
    [MemberData(nameof(OfAService), DisableDiscoveryEnumeration = true)]
    public void AnEndpointOfAService_KeepsItsAddress(EndPoint resolved, string? host, string service, string text, string address, string name)
    {
        var endpoint = ServiceEndpoint.Create(resolved);
        endpoint.Features.Set<IHostNameFeature>(host is null ? null : new HostName(host));
        var found = ChannelEndpoint.OfService(endpoint, new Uri(service));
        Assert.Equal((text, address, name), (found.ToString(), found.Address!.AbsoluteUri, found.Service!.AbsoluteUri));
        Assert.Equal(found, ChannelEndpoint.OfService(endpoint, new Uri(service)));
    }

    [Fact]
    public void AnEndpointOfAServiceWithAPath_IsRefused()
    {
        var endpoint = ServiceEndpoint.Create(new TextEndPoint("http://gateway/users"));
        var exception = Assert.Throws<InvalidOperationException>(() => ChannelEndpoint.OfService(endpoint, Users));
        Assert.Contains("'http://gateway/users' has a path", exception.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void AList_HasEndpointsWithAddressesOfTheirOwn()
    {
        var list = ChannelEndpoint.ParseList(["https://a", "https://10.0.0.1:5000", "https://A:443/", "https://[::1]:5000/path"]);
        Assert.Equal(["a:443", "10.0.0.1:5000", "[::1]:5000"], list.Select(static endpoint => endpoint.ToString()));
        Assert.Equal(["https://a/", "https://10.0.0.1:5000/", "https://[::1]:5000/"], list.Select(static endpoint => endpoint.Address!.AbsoluteUri));
        Assert.NotEqual(list[1], ChannelEndpoint.From(list[1].EndPoint, new Uri("https://users")));
    }

    [Theory]
    [InlineData("There are no addresses.")]
    [InlineData("'users:5000'", "http://users:5000", "users:5000")]
    [InlineData("'dns:///users:5000'", "dns:///users:5000")]
    [InlineData("'http://a' and 'https://b' have different schemes", "http://a", "https://b")]
    public void NoList(string message, params string[] addresses) =>
        Assert.Contains(message, Assert.Throws<ArgumentException>(() => ChannelEndpoint.ParseList([.. addresses])).Message, StringComparison.Ordinal);

    [Fact]
    public void NoListAtAll()
    {
        Assert.Throws<ArgumentNullException>(() => ChannelEndpoint.ParseList(null!));
        Assert.Throws<ArgumentNullException>(() => ChannelEndpoint.ParseList(["http://users:5000", null!]));
    }

    private sealed record HostName(string Host) : IHostNameFeature
    {
        string IHostNameFeature.HostName => Host;
    }

    /// <summary>As service discovery has it for what it reads from configuration.</summary>
    private sealed class TextEndPoint(string text) : EndPoint
    {
        public override string ToString() => text;
    }

    private sealed class NeverFailing : IEndpointListener
    {
        public IReadOnlyList<ChannelEndpoint> Endpoints { get; private set; } = [];

        public void EndpointsChanged(IReadOnlyList<ChannelEndpoint> endpoints) => Endpoints = endpoints;

        public void ResolutionFailed(Exception error) => Assert.Fail(error.ToString());
    }
}

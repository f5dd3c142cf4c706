using System.Collections.Concurrent;
using System.Net;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.FunctionalTests;

/// <summary>Calls through a proxy that others have made.</summary>
[Trait("Tier", "all")]
public sealed class TinyproxyTests
{
    [Fact]
    public async Task CallsGoThroughIt_OnOneConnectionAChannel()
    {
        using var certificate = TestCertificate.New("localhost");
        await using var server = await EndpointServer.StartAsync("127.0.0.1", certificate: certificate);
        var log = new ConcurrentQueue<string>();
        await using var proxy = await TinyproxyProcess.StartAsync("ann", "secret", log.Enqueue);
        var hash = certificate.GetCertHashString();
        await using var client = TestClient.Create(
            overPool: true,
            new Uri($"https://localhost:{server.EndPoint.Port}"),
            handler =>
            {
                handler.Proxy = new WebProxy(proxy.Address) { Credentials = new NetworkCredential("ann", "secret") };
                handler.SslOptions.RemoteCertificateValidationCallback = (_, seen, _, _) => seen?.GetCertHashString() == hash;
            },
            pool: static options => options.Pool.MinPoolSize = 3);
        await client.Pooled!.ConnectAsync().Soon();
        await Task.WhenAll(Enumerable.Range(0, 30).Select(i => client.User.GetNameAsync(new GetNameRequest { Id = i }).ResponseAsync)).Soon();
        Assert.Equal(3, server.Journal.PeakConnections);
        await Waiting.Until(() => log.Count(line => line.Contains($"Established connection to host \"localhost\"", StringComparison.Ordinal)) == 3);
    }
}

using System.Collections.Concurrent;
using System.Diagnostics;
using System.Net.Security;
using System.Security.Cryptography.X509Certificates;
using Grpc.Core;
using Microsoft.AspNetCore.Server.Kestrel.Https;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.FunctionalTests;

/// <summary>The certificates of the server and of its client are changed under load, without a restart of either: over a pool, and over a bare channel.</summary>
public sealed class CertificateRotationTests(ITestOutputHelper output)
{
    private const int Channels = 6;
    private const int Callers = 24;
    private const int Enough = 300; // requests, of a phase

    private readonly ConcurrentQueue<string> _clients = new(); // whom the server has seen, for each request
    private readonly ConcurrentQueue<string> _servers = new(); // whom the client has seen, for each connection
    private readonly ConcurrentQueue<RpcException> _lost = new();
    private long _calls;

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public async Task AfterARefresh_TheNewOnesAreUsed_AndNoCallIsLost(bool byCallback)
    {
        using var certificates = new Certificates();
        await using var server = await StartServerAsync(certificates);
        await using var client = NewClient(server, certificates, overPool: true, byCallback);
        var pool = client.Pooled!.Pool;
        await pool.ConnectAsync().Soon();
        using var stop = new CancellationTokenSource();
        var load = LoadAsync(client, stop.Token);
        await Waiting.Until(() => _clients.Count >= Enough);
        Assert.All(_clients.Distinct(), seen => Assert.Equal(certificates.OldClient.Thumbprint, seen));
        Assert.All(_servers, seen => Assert.Equal(certificates.OldServer.Thumbprint, seen));

        certificates.Rotate();
        _servers.Clear();
        var began = Stopwatch.GetTimestamp();
        await pool.RefreshAsync().Soon();
        var took = Stopwatch.GetElapsedTime(began);
        await Waiting.Until(() => pool.GetStatistics().DrainingChannels == 0);
        _clients.Clear();
        await Waiting.Until(() => _clients.Count >= Enough);
        await stop.CancelAsync();
        await load.Soon();

        output.WriteLine($"{_calls} calls by {Callers} callers, {_lost.Count} lost; {Channels} channels replaced in {took.TotalMilliseconds:0} ms; {server.Connections} connections");
        Assert.Empty(_lost);
        Assert.All(_clients.Distinct(), seen => Assert.Equal(certificates.NewClient.Thumbprint, seen));
        Assert.Equal(Enumerable.Repeat(certificates.NewServer.Thumbprint, Channels), _servers);
        Assert.Equal((2 * Channels, Channels), (server.Connections, pool.GetStatistics().Channels));
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public async Task ABareChannel_KeepsTheOldOnes_AsLongAsItsConnectionLives(bool byCallback)
    {
        using var certificates = new Certificates();
        await using var server = await StartServerAsync(certificates);
        await using var client = NewClient(server, certificates, overPool: false, byCallback);
        using var stop = new CancellationTokenSource();
        var load = LoadAsync(client, stop.Token);
        await Waiting.Until(() => _clients.Count >= Enough);
        certificates.Rotate();
        _clients.Clear();
        await Waiting.Until(() => _clients.Count >= Enough);
        await stop.CancelAsync();
        await load.Soon();
        Assert.Empty(_lost);
        Assert.All(_clients.Distinct(), seen => Assert.Equal(certificates.OldClient.Thumbprint, seen));
        Assert.All(_servers, seen => Assert.Equal(certificates.OldServer.Thumbprint, seen));
    }

    private Task<HttpServer> StartServerAsync(Certificates certificates) => HttpServer.StartAsync(
        context =>
        {
            _clients.Enqueue(context.Connection.ClientCertificate!.Thumbprint);
            return HttpServer.ReplyAsync(context, []);
        },
        new HttpServer.Setup
        {
            Certificate = certificates.OldServer,
            ConfigureHttps = https =>
            {
                (https.ServerCertificate, https.ServerCertificateSelector) = (null, (_, _) => certificates.Server);
                https.ClientCertificateMode = ClientCertificateMode.RequireCertificate;
                https.ClientCertificateValidation = (given, _, _) =>
                    given.Thumbprint == certificates.OldClient.Thumbprint || given.Thumbprint == certificates.NewClient.Thumbprint;
            },
        });

    // By a callback the certificate is chosen when a connection is made, and else when a channel is.
    private TestClient NewClient(HttpServer server, Certificates certificates, bool overPool, bool byCallback) => TestClient.Create(
        overPool,
        new Uri($"https://localhost:{server.Address.Port}"),
        handler =>
        {
            var mine = certificates.Client;
            handler.SslOptions = new SslClientAuthenticationOptions
            {
                ClientCertificates = byCallback ? null : [mine],
                LocalCertificateSelectionCallback = byCallback ? (_, _, _, _, _) => certificates.Client : null,
                RemoteCertificateValidationCallback = (_, given, _, _) =>
                {
                    var seen = given!.GetCertHashString();
                    _servers.Enqueue(seen);
                    return seen == certificates.OldServer.Thumbprint || seen == certificates.NewServer.Thumbprint;
                },
            };
        },
        pool: static options =>
        {
            (options.Pool.MinPoolSize, options.Pool.MaxPoolSize) = (Channels, Channels);
            options.Retry.MaxRetryAttempts = 0; // nothing is to be made good by another attempt
        });

    private Task LoadAsync(TestClient client, CancellationToken stop) => Task.WhenAll(Enumerable.Range(0, Callers).Select(_ => Task.Run(async () =>
    {
        while (!stop.IsCancellationRequested)
        {
            try
            {
                await client.User.RenameAsync(new RenameRequest(), cancellationToken: CancellationToken.None);
                Interlocked.Increment(ref _calls);
            }
            catch (RpcException exception)
            {
                _lost.Enqueue(exception);
            }
        }
    })));

    private sealed class Certificates : IDisposable
    {
        private volatile bool _areNew;

        public X509Certificate2 OldServer { get; } = TestCertificate.New("localhost");

        public X509Certificate2 NewServer { get; } = TestCertificate.New("localhost");

        public X509Certificate2 OldClient { get; } = TestCertificate.New("client");

        public X509Certificate2 NewClient { get; } = TestCertificate.New("client");

        public X509Certificate2 Server => _areNew ? NewServer : OldServer;

        public X509Certificate2 Client => _areNew ? NewClient : OldClient;

        public void Rotate() => _areNew = true;

        public void Dispose()
        {
            OldServer.Dispose();
            NewServer.Dispose();
            OldClient.Dispose();
            NewClient.Dispose();
        }
    }
}

using System.Collections.Concurrent;
using System.Net;
using System.Net.Security;
using System.Net.Sockets;
using System.Security.Cryptography.X509Certificates;
using Grpc.Core;
using Microsoft.AspNetCore.Server.Kestrel.Https;
using Polly;
using Polly.Retry;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.FunctionalTests;

/// <summary>What users set at the handler of their channels, and servers that end connections while they are opened, beside a bare channel.</summary>
public sealed class UsersTransportTests(ITestOutputHelper output)
{
    private const int Calls = 5;

    public static TheoryData<string> Settings => [.. Cases.Keys];

    private static Dictionary<string, Action<SocketsHttpHandler, Wrapper>> Cases { get; } = new()
    {
        ["nothing"] = static (_, _) => { },
        ["several connections"] = static (handler, _) => handler.EnableMultipleHttp2Connections = true,
        ["a filter that wraps"] = static (handler, wrapper) => handler.PlaintextStreamFilter = (context, _) => ValueTask.FromResult<Stream>(wrapper.Wrap(context.PlaintextStream)),
        ["a filter that passes on"] = static (handler, _) => handler.PlaintextStreamFilter = static (context, _) => ValueTask.FromResult(context.PlaintextStream),
        ["a filter that throws"] = static (handler, _) => handler.PlaintextStreamFilter = static (_, _) => throw new InvalidOperationException("filter"),
        ["a filter that cannot read"] = static (handler, _) => handler.PlaintextStreamFilter = static (_, _) => throw new IOException("filter"),
        ["a callback"] = static (handler, wrapper) => handler.ConnectCallback = async (context, token) => wrapper.Wrap(await DialAsync(context, token)),
        ["a callback that throws"] = static (handler, _) => handler.ConnectCallback = static (_, _) => throw new InvalidOperationException("callback"),
        ["a callback that is refused"] = static (handler, _) => handler.ConnectCallback = static (_, _) => throw new SocketException((int)SocketError.ConnectionRefused),
        ["a callback that gives null"] = static (handler, _) => handler.ConnectCallback = static (_, _) => ValueTask.FromResult<Stream>(null!),
        ["a callback that does TLS"] = static (handler, _) => handler.ConnectCallback = async (context, token) =>
        {
            var stream = await DialAsync(context, token);
            if (context.InitialRequestMessage.RequestUri!.Scheme != Uri.UriSchemeHttps)
            {
                return stream;
            }

            var tls = new SslStream(stream);
            var options = new SslClientAuthenticationOptions
            {
                TargetHost = context.DnsEndPoint.Host,
                ApplicationProtocols = [SslApplicationProtocol.Http2],
                RemoteCertificateValidationCallback = handler.SslOptions.RemoteCertificateValidationCallback,
            };
            await tls.AuthenticateAsClientAsync(options, token);
            return tls;
        },
        ["pings"] = static (handler, _) => (handler.KeepAlivePingDelay, handler.KeepAlivePingTimeout) = (TimeSpan.FromSeconds(1), Waiting.Long),
        ["no idle time"] = static (handler, _) => handler.PooledConnectionIdleTimeout = TimeSpan.Zero,
        ["no lifetime"] = static (handler, _) => handler.PooledConnectionLifetime = TimeSpan.Zero,
        ["one connection a server"] = static (handler, _) => handler.MaxConnectionsPerServer = 1,
        ["a large window"] = static (handler, _) => handler.InitialHttp2StreamWindowSize = 1 << 20,
    };

    [Theory]
    [MemberData(nameof(Settings))]
    public async Task WhatTheUserSets_IsInForce(string what)
    {
        foreach (var withTls in (bool[])[false, true])
        {
            var bare = await RunAsync(overPool: false, withTls);
            var pool = await RunAsync(overPool: true, withTls);
            output.WriteLine($"TLS {withTls}\nbare: {bare}\npool: {pool}");
            Assert.Equal((bare.Statuses, bare.Wrapped > 0), (pool.Statuses, pool.Wrapped > 0));
        }

        async Task<(string Statuses, string Cause, int Connections, int Wrapped)> RunAsync(bool overPool, bool withTls)
        {
            using var certificate = TestCertificate.New("localhost");
            await using var server = await EndpointServer.StartAsync("127.0.0.1", certificate: withTls ? certificate : null);
            var wrapper = new Wrapper();
            await using var client = TestClient.Create(overPool, new Uri($"{(withTls ? "https" : "http")}://localhost:{server.EndPoint.Port}"), handler =>
            {
                Trust(handler, certificate);
                Cases[what](handler, wrapper);
            });
            List<Outcome> ends = [];
            for (var i = 0; i < Calls; i++)
            {
                ends.Add(await Outcome.OfAsync(() => client.User.GetNameAsync(new GetNameRequest()).ResponseAsync));
            }

            return (string.Join(", ", ends.Select(static end => end.Status)), ends[0].ToString(), server.Journal.PeakConnections, wrapper.Wrapped);
        }
    }

    [Theory]
    [InlineData(HttpRequestError.ConnectionError)]
    [InlineData(HttpRequestError.NameResolutionError)]
    [InlineData(HttpRequestError.SecureConnectionError)]
    public async Task AHandlerThatCannotReachAnother_OnceTheServerHasAnswered_HasTheCallSentOnce(HttpRequestError error)
    {
        foreach (var overPool in (bool[])[false, true])
        {
            await using var server = await EndpointServer.StartAsync("127.0.0.1");
            await using var client = TestClient.Create(
                overPool,
                new Uri($"http://{server.EndPoint}"),
                channel: options => options.HttpHandler = new Auditing(error) { InnerHandler = options.HttpHandler! },
                pool: static options => options.ConfigurePipeline = static pipeline => pipeline.AddRetry(new RetryStrategyOptions { Delay = TimeSpan.Zero }));
            var end = await Outcome.OfAsync(() => client.User.RenameAsync(new RenameRequest { RequestId = "once" }).ResponseAsync);
            output.WriteLine($"{(overPool ? "pool" : "bare")}: {end}; {client.Retries} retries");
            Assert.NotEqual(StatusCode.OK, end.Status);
            Assert.Single(server.Journal.Executed);
        }
    }

    [Theory]
    [InlineData("given")]
    [InlineData("chosen")]
    [InlineData("missing")]
    [InlineData("refused")]
    public async Task AClientCertificate_IsShown(string what)
    {
        var bare = await RunAsync(overPool: false);
        var pool = await RunAsync(overPool: true);
        output.WriteLine($"bare: {bare}\npool: {pool}");
        Assert.Equal(bare.Seen, pool.Seen);
        if (what is "missing" or "refused")
        {
            // Which of the two it is on a bare channel depends on whether it reads or writes when the server closes.
            Assert.True(bare.End.Status is StatusCode.Unavailable or StatusCode.Internal, $"{bare}");
            Assert.True(pool.End.Status is StatusCode.Unavailable or StatusCode.Internal, $"{pool}");
        }
        else
        {
            Assert.Equal((StatusCode.OK, StatusCode.OK), (bare.End.Status, pool.End.Status));
        }

        async Task<(Outcome End, string Seen, int Connections)> RunAsync(bool overPool)
        {
            using var certificate = TestCertificate.New("localhost");
            using var own = TestCertificate.New("client.test");
            var seen = new ConcurrentQueue<string>();
            await using var server = await HttpServer.StartAsync(
                context =>
                {
                    seen.Enqueue(context.Connection.ClientCertificate?.Subject ?? "none");
                    return HttpServer.ReplyAsync(context, []);
                },
                new HttpServer.Setup
                {
                    Certificate = certificate,
                    ConfigureHttps = https =>
                    {
                        https.ClientCertificateMode = ClientCertificateMode.RequireCertificate;
                        https.ClientCertificateValidation = (_, _, _) => what != "refused";
                    },
                });
            await using var client = TestClient.Create(overPool, new Uri($"https://localhost:{server.Address.Port}"), handler =>
            {
                Trust(handler, certificate);
                if (what == "chosen")
                {
                    handler.SslOptions.LocalCertificateSelectionCallback = (_, _, _, _, _) => own;
                }
                else if (what != "missing")
                {
                    handler.SslOptions.ClientCertificates = [own];
                }
            });
            var end = await Outcome.OfAsync(() => client.User.GetNameAsync(new GetNameRequest()).ResponseAsync);
            return (end, string.Join(", ", seen), server.Connections);
        }
    }

    [Fact]
    public async Task TheHostOfARequest_IsItsAuthority_AndTheNameForTls()
    {
        var bare = await RunAsync(overPool: false);
        var pool = await RunAsync(overPool: true);
        output.WriteLine($"bare: {bare}\npool: {pool}");
        Assert.Equal(bare, pool);

        async Task<string> RunAsync(bool overPool)
        {
            using var certificate = TestCertificate.New("localhost");
            await using var server = await EndpointServer.StartAsync("127.0.0.1", certificate: certificate);
            string? host = null;
            await using var client = TestClient.Create(
                overPool,
                new Uri($"https://localhost:{server.EndPoint.Port}"),
                handler => Trust(handler, certificate),
                options => options.HttpHandler = new HostHandler(options.HttpHandler!, () => host));
            List<StatusCode> ends = [];
            foreach (var next in (string?[])[null, "one.test", "two.test", "one.test", null])
            {
                host = next;
                ends.Add((await Outcome.OfAsync(() => client.User.GetNameAsync(new GetNameRequest()).ResponseAsync)).Status);
            }

            return $"{string.Join(", ", ends)}; {string.Join(", ", server.Authorities).Replace($"{server.EndPoint.Port}", "port", StringComparison.Ordinal)}; {string.Join(", ", server.ServerNames)}";
        }
    }

    private static void Trust(SocketsHttpHandler handler, X509Certificate2 certificate)
    {
        var hash = certificate.GetCertHashString();
        handler.SslOptions.RemoteCertificateValidationCallback = (_, seen, _, _) => seen?.GetCertHashString() == hash;
    }

    private static async ValueTask<Stream> DialAsync(SocketsHttpConnectionContext context, CancellationToken cancellationToken)
    {
        var socket = new Socket(AddressFamily.InterNetwork, SocketType.Stream, ProtocolType.Tcp) { NoDelay = true };
        await socket.ConnectAsync(IPAddress.Loopback, context.DnsEndPoint.Port, cancellationToken);
        return new NetworkStream(socket, ownsSocket: true);
    }

    // Makes streams of the user's own, which pass all on.
    private sealed class Wrapper
    {
        private int _wrapped;

        public int Wrapped => _wrapped;

        public PassingStream Wrap(Stream inner)
        {
            Interlocked.Increment(ref _wrapped);
            return new PassingStream(inner);
        }
    }

    private sealed class HostHandler(HttpMessageHandler inner, Func<string?> host) : DelegatingHandler(inner)
    {
        protected override Task<HttpResponseMessage> SendAsync(HttpRequestMessage request, CancellationToken cancellationToken)
        {
            request.Headers.Host = host();
            return base.SendAsync(request, cancellationToken);
        }
    }

    // It tells another service what has been done, and cannot reach it.
    private sealed class Auditing(HttpRequestError error) : DelegatingHandler
    {
        protected override async Task<HttpResponseMessage> SendAsync(HttpRequestMessage request, CancellationToken cancellationToken)
        {
            using var response = await base.SendAsync(request, cancellationToken);
            throw new HttpRequestException(error, "The audit cannot be reached.");
        }
    }

    private sealed class PassingStream(Stream inner) : Stream
    {
        public override bool CanRead => true;

        public override bool CanSeek => false;

        public override bool CanWrite => true;

        public override long Length => throw new NotSupportedException();

        public override long Position
        {
            get => throw new NotSupportedException();
            set => throw new NotSupportedException();
        }

        public override ValueTask<int> ReadAsync(Memory<byte> buffer, CancellationToken cancellationToken = default) => inner.ReadAsync(buffer, cancellationToken);

        public override ValueTask WriteAsync(ReadOnlyMemory<byte> buffer, CancellationToken cancellationToken = default) => inner.WriteAsync(buffer, cancellationToken);

        public override Task FlushAsync(CancellationToken cancellationToken) => inner.FlushAsync(cancellationToken);

        public override int Read(byte[] buffer, int offset, int count) => inner.Read(buffer, offset, count);

        public override void Write(byte[] buffer, int offset, int count) => inner.Write(buffer, offset, count);

        public override void Flush() => inner.Flush();

        public override long Seek(long offset, SeekOrigin origin) => throw new NotSupportedException();

        public override void SetLength(long value) => throw new NotSupportedException();

        protected override void Dispose(bool disposing)
        {
            inner.Dispose();
            base.Dispose(disposing);
        }
    }
}

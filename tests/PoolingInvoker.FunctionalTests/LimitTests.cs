using System.Collections.Concurrent;
using System.Net;
using System.Security.Cryptography;
using System.Security.Cryptography.X509Certificates;
using Grpc.Net.Client;
using Microsoft.AspNetCore.Builder;
using Microsoft.AspNetCore.Hosting;
using Microsoft.AspNetCore.Hosting.Server;
using Microsoft.AspNetCore.Hosting.Server.Features;
using Microsoft.AspNetCore.Server.Kestrel.Core;
using Microsoft.Extensions.DependencyInjection;
using PoolingInvoker.Demo.Servers;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.FunctionalTests;

/// <summary>What the servers say that they take, over real sockets.</summary>
public sealed class LimitTests
{
    private const int Limit = 3;
    private const int Callers = 30;

    [Theory]
    [InlineData(null, Limit, false)]
    [InlineData(2, 2, false)]
    [InlineData(10, Limit, false)]
    [InlineData(null, Limit, true)]
    public async Task WhatTheServerAnnounces_IsWhatAChannelTakes(int? most, int capacity, bool isTls)
    {
        await using var server = await LimitedServer.StartAsync(isTls);
        await using var invoker = PoolingCallInvoker.ForAddress(server.Address, new PoolingCallInvokerOptions
        {
            Pool =
            {
                MaxConcurrentCallsPerChannel = most,
                ConfigureHandler = static handler => handler.SslOptions.RemoteCertificateValidationCallback = static (_, certificate, _, _) => certificate?.Subject == LimitedServer.Subject,
            },
        });
        var client = new User.UserClient(invoker);
        var seen = new ConcurrentQueue<PooledChannelSnapshot>();
        await Task.WhenAll(Enumerable.Range(0, Callers).Select(_ => Task.Run(async () =>
        {
            for (var i = 0; i < 20; i++)
            {
                await client.RenameAsync(new RenameRequest { RequestId = $"{Guid.NewGuid()}", DelayMs = 5 });
                Array.ForEach([.. invoker.Pool.GetChannels()], seen.Enqueue);
            }
        }))).Soon();

        Assert.Equal(Callers * 20, server.Journal.Executed.Distinct().Count()); // none was sent twice
        Assert.Equal(0, invoker.Pool.GetStatistics().Retries);
        Assert.InRange(server.PeakStreams, 1, capacity);
        Assert.All(seen.Where(static channel => channel.State == PooledChannelState.Active), channel => Assert.Equal(capacity, channel.Capacity));
        Assert.DoesNotContain(seen, channel => channel.CallsInFlight > capacity);
        Assert.InRange(invoker.Pool.GetStatistics().Channels, 2, Callers / capacity);
    }

    [Fact]
    public async Task AColdPool_BelowAHandlerOfTheUsers_KeepsTheLimit()
    {
        await using var server = new RawServer(maxStreams: Limit) { Holds = true };
        await using var invoker = NewInvoker(server, static pool => pool.ConfigureChannel = static options => options.HttpHandler = new PassingHandler(options.HttpHandler!));
        var calls = Call(invoker, 4 * Limit);
        await Waiting.Until(() => server.Connections.Sum(static connection => connection.Open) == 4 * Limit);
        foreach (var connection in server.Connections)
        {
            await connection.AnswerAsync();
        }

        await Task.WhenAll(calls).Soon();
    }

    [Fact]
    public async Task AServerThatAnnouncesNothing_SetsNoLimit()
    {
        await using var server = new RawServer(maxStreams: null) { Holds = true };
        await using var invoker = NewInvoker(server, static pool => pool.TargetConcurrentCallsPerChannel = null);
        await invoker.ConnectAsync().Soon();
        var calls = Call(invoker, 500);
        await Waiting.Until(() => server.Connections is [{ Open: 500 }]);
        Assert.Equal((1, 0), (invoker.Pool.GetStatistics().Channels, invoker.Pool.GetStatistics().CallsWaiting));
        Assert.Equal(int.MaxValue, invoker.Pool.GetChannels()[0].Capacity);
        await server.Connections[0].AnswerAsync();
        await Task.WhenAll(calls).Soon();
    }

    [Fact]
    public async Task AServerMayChangeItsMind_InMidFlight()
    {
        await using var server = new RawServer(maxStreams: 100) { Holds = true };
        await using var invoker = NewInvoker(server, static pool => (pool.MaxPoolSize, pool.TargetConcurrentCallsPerChannel) = (1, null));
        var calls = Call(invoker, 50);
        await Waiting.Until(() => server.Connections is [{ Open: 50 }]);
        var connection = server.Connections[0];
        Assert.Equal(100, invoker.Pool.GetChannels()[0].Capacity);

        // From 100 to 1: those that run may go on, and nobody else begins.
        await connection.AnnounceAsync(1);
        await Waiting.Until(() => invoker.Pool.GetChannels()[0].Capacity == 1);
        calls.AddRange(Call(invoker, 10));
        Assert.Equal((50, 10), (invoker.Pool.GetStatistics().CallsInFlight, invoker.Pool.GetStatistics().CallsWaiting));
        await connection.AnswerAsync(49);
        await Waiting.Until(() => invoker.Pool.GetStatistics() is { CallsInFlight: 1, CallsWaiting: 10 });
        for (var left = 9; left >= 6; left--)
        {
            await connection.AnswerAsync();
            connection.TakePeak();
            var waiting = left;
            await Waiting.Until(() => invoker.Pool.GetStatistics() is { CallsInFlight: 1 } now && now.CallsWaiting == waiting && connection.Open == 1);
            Assert.Equal(1, connection.TakePeak());
        }

        // And back to 100: all begin.
        await connection.AnnounceAsync(100);
        await Waiting.Until(() => connection.Open == 7);
        Assert.Equal((7, 0), (invoker.Pool.GetStatistics().CallsInFlight, invoker.Pool.GetStatistics().CallsWaiting));
        await connection.AnswerAsync();
        await Task.WhenAll(calls).Soon();
        Assert.Equal((1L, 0L), (invoker.Pool.GetStatistics().ChannelsCreated, invoker.Pool.GetStatistics().Retries));
        Assert.Single(server.Connections);
    }

    [Fact]
    public async Task WhereTheLimitFalls_ThePoolGrows()
    {
        await using var server = new RawServer(maxStreams: 100) { Holds = true };
        await using var invoker = NewInvoker(server, static pool => pool.TargetConcurrentCallsPerChannel = null);
        var calls = Call(invoker, 5);
        await Waiting.Until(() => server.Connections is [{ Open: 5 }]);
        await server.Connections[0].AnnounceAsync(5);
        await Waiting.Until(() => invoker.Pool.GetChannels()[0].Capacity == 5);
        calls.AddRange(Call(invoker, 5));
        await Waiting.Until(() => server.Connections is [{ Open: 5 }, { Open: 5 }]);
        await Task.WhenAll(server.Connections.Select(static connection => connection.AnswerAsync()));
        await Task.WhenAll(calls).Soon();
    }

    [Theory]
    [InlineData("a handler of the user's own", "the transport is not the pool's own")]
    [InlineData("a client of the user's own", "the transport is not the pool's own")]
    [InlineData("HTTP/1.1", "or not HTTP/2")]
    [InlineData("a policy", "a policy makes the channels")]
    public async Task WhereItCannotBeSeen_ItIsAHundred_AndTheLogSaysSo(string what, string why)
    {
        using var log = new RecordingLoggerFactory();
        var options = new ChannelPoolOptions
        {
            LoggerFactory = log,
            ConfigureChannel = what switch
            {
                "a handler of the user's own" => static channel => channel.HttpHandler = new HttpClientHandler(),
                "a client of the user's own" => static channel => channel.HttpClient = new HttpClient(new SocketsHttpHandler()),
                "HTTP/1.1" => static channel => channel.HttpVersion = HttpVersion.Version11,
                _ => null,
            },
        };
        await using var pool = what == "a policy" ? new ChannelPool(new Policy(), options) : ChannelPool.ForAddress("http://127.0.0.1:1", options);
        List<ChannelLease> leases = [];
        for (var i = 0; i < 101; i++)
        {
            Assert.True(pool.TryAcquire(out var lease));
            leases.Add(lease);
        }

        Assert.Equal([100, 1], pool.GetChannels().Select(static channel => channel.CallsInFlight));
        Assert.All(pool.GetChannels(), static channel => Assert.Equal(100, channel.Capacity));
        var (_, message) = Assert.Single(log.Entries, static entry => entry.Event == "LimitUnknown");
        Assert.Contains(why, message, StringComparison.Ordinal);
        Assert.EndsWith("A channel takes 100 calls at a time.", message, StringComparison.Ordinal);
        leases.ForEach(static lease => lease.Dispose());
    }

    [Fact]
    public async Task GoAway_SendsTheNextCallsElsewhere_AndThoseThatRunEndWhereTheyAre()
    {
        await using var server = new RawServer(maxStreams: 100) { Holds = true };
        await using var invoker = NewInvoker(server);
        var old = Call(invoker, 3);
        await Waiting.Until(() => server.Connections is [{ Open: 3 }]);
        var going = server.Connections[0];
        await going.GoAwayAsync();
        await Waiting.Until(() => invoker.Pool.GetChannels()[0].State is PooledChannelState.Replacing or PooledChannelState.Draining);
        var next = Call(invoker, 5);
        await Waiting.Until(() => server.Connections is [{ Open: 3, Calls: 3 }, { Open: 5 }]);
        Assert.Equal((1, 1), (invoker.Pool.GetStatistics().Channels, invoker.Pool.GetStatistics().DrainingChannels));

        await going.AnswerAsync();
        await Task.WhenAll(old).Soon();
        await Waiting.Until(() => invoker.Pool.GetStatistics().DrainingChannels == 0);
        await server.Connections[1].AnswerAsync();
        await Task.WhenAll(next).Soon();
        Assert.Equal((3, 5, 0L), (going.Calls, server.Connections[1].Calls, invoker.Pool.GetStatistics().Retries));
    }

    [Fact]
    public async Task GoAway_ClosesAnIdleChannelAboveTheMinimum_AndRenewsOneOfTheMinimum()
    {
        var events = new ConcurrentQueue<ChannelPoolEvent>();
        await using var server = new RawServer(maxStreams: 2) { Holds = true };
        await using var invoker = NewInvoker(server, pool => pool.OnEvent = events.Enqueue);
        var calls = Call(invoker, 4);
        await Waiting.Until(() => server.Connections is [{ Open: 2 }, { Open: 2 }]);
        await Task.WhenAll(server.Connections.Select(static connection => connection.AnswerAsync()));
        await Task.WhenAll(calls).Soon();
        await Waiting.Until(() => invoker.Pool.GetStatistics().CallsInFlight == 0);

        await server.Connections[0].GoAwayAsync();
        await Waiting.Until(() => invoker.Pool.GetStatistics().Channels == 1);
        await Waiting.Until(() => events.Count(static one => one.Kind == ChannelPoolEventKind.Closed) == 1);
        Assert.Contains("GOAWAY", Assert.Single(events, static one => one.Kind == ChannelPoolEventKind.Retired).Message, StringComparison.Ordinal);

        await server.Connections[1].GoAwayAsync();
        await Waiting.Until(() => events.Count(static one => one.Kind == ChannelPoolEventKind.Closed) == 2);
        Assert.Contains("GOAWAY", Assert.Single(events, static one => one.Kind == ChannelPoolEventKind.Replaced).Message, StringComparison.Ordinal);
        Assert.Equal(1, invoker.Pool.GetStatistics().Channels);
        server.Holds = false;
        await Task.WhenAll(Call(invoker, 1)).Soon();
        Assert.Equal(3, server.Connections.Count);
    }

    private static PoolingCallInvoker NewInvoker(RawServer server, Action<ChannelPoolOptions>? configure = null)
    {
        var options = new PoolingCallInvokerOptions();
        configure?.Invoke(options.Pool);
        return PoolingCallInvoker.ForAddress(server.Address, options);
    }

    // Calls that are not sent twice.
    private static List<Task> Call(PoolingCallInvoker invoker, int count) =>
        [.. Enumerable.Range(0, count).Select(_ => new User.UserClient(invoker).RenameAsync(new RenameRequest()).ResponseAsync)];

    private sealed class PassingHandler(HttpMessageHandler inner) : DelegatingHandler(inner);

    private sealed class Policy : Microsoft.Extensions.ObjectPool.IPooledObjectPolicy<GrpcChannel>
    {
        public GrpcChannel Create() => GrpcChannel.ForAddress("http://127.0.0.1:1");

        public bool Return(GrpcChannel obj) => true;
    }

    /// <summary>Kestrel that takes few streams on a connection, and counts them.</summary>
    private sealed class LimitedServer : IAsyncDisposable
    {
        public const string Subject = "CN=localhost";

        private readonly WebApplication _application;
        private readonly ConcurrentDictionary<string, int> _streams = new();
        private int _peak;

        private LimitedServer(WebApplication application, ServerJournal journal)
        {
            _application = application;
            Journal = journal;
        }

        public Uri Address { get; private set; } = null!;

        public ServerJournal Journal { get; }

        /// <summary>The most calls at a time on one connection.</summary>
        public int PeakStreams => _peak;

        public static async Task<LimitedServer> StartAsync(bool isTls)
        {
            var journal = new ServerJournal("limited", file: null);
            var builder = WebApplication.CreateEmptyBuilder(new WebApplicationOptions());
            builder.Services.AddGrpc();
            builder.Services.AddSingleton(journal);
            builder.WebHost.UseKestrelCore();
            builder.WebHost.UseKestrelHttpsConfiguration();
            builder.WebHost.ConfigureKestrel(kestrel =>
            {
                kestrel.Limits.Http2.MaxStreamsPerConnection = Limit;
                kestrel.Listen(IPAddress.Loopback, 0, listen =>
                {
                    listen.Protocols = HttpProtocols.Http2;
                    if (isTls)
                    {
                        listen.UseHttps(NewCertificate());
                    }
                });
            });
            var server = new LimitedServer(builder.Build(), journal);
            server._application.Use(async (context, next) =>
            {
                var streams = server._streams.AddOrUpdate(context.Connection.Id, 1, static (_, count) => count + 1);
                for (var peak = server._peak; streams > peak && Interlocked.CompareExchange(ref server._peak, streams, peak) != peak;)
                {
                    peak = server._peak;
                }

                try
                {
                    await next(context);
                }
                finally
                {
                    server._streams.AddOrUpdate(context.Connection.Id, 0, static (_, count) => count - 1);
                }
            });
            server._application.MapGrpcService<UserService>();
            await server._application.StartAsync();
            server.Address = new Uri(server._application.Services.GetRequiredService<IServer>().Features.Get<IServerAddressesFeature>()!.Addresses.Single());
            return server;
        }

        public async ValueTask DisposeAsync()
        {
            using var now = new CancellationTokenSource();
            await now.CancelAsync();
            await _application.StopAsync(now.Token);
            await _application.DisposeAsync();
            Journal.Dispose();
        }

        private static X509Certificate2 NewCertificate()
        {
            using var key = ECDsa.Create(ECCurve.NamedCurves.nistP256);
            var request = new CertificateRequest(Subject, key, HashAlgorithmName.SHA256);
            var now = TimeProvider.System.GetUtcNow();
            return request.CreateSelfSigned(now.AddDays(-1), now.AddDays(1));
        }
    }
}

using System.Globalization;
using System.Net.Sockets;
using Grpc.Core;
using Microsoft.AspNetCore.Http;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.FunctionalTests;

/// <summary>Connections of the pool's own, beside those of a bare channel.</summary>
public sealed class TransportTests(ITestOutputHelper output)
{
    [Fact]
    public async Task AUnixSocket_IsReachedByTheConnectCallbackOfTheUser()
    {
        var path = Path.Combine(Path.GetTempPath(), $"{Guid.NewGuid():N}.sock");
        var setup = new HttpServer.Setup { UnixSocket = path };
        var server = await HttpServer.StartAsync(static context => HttpServer.ReplyAsync(context, []), setup);
        await using var client = TestClient.Create(overPool: true, new Uri("http://localhost"), handler => handler.ConnectCallback = async (_, cancellationToken) =>
        {
            var socket = new Socket(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified);
            await socket.ConnectAsync(new UnixDomainSocketEndPoint(path), cancellationToken);
            return new NetworkStream(socket, ownsSocket: true);
        });
        await client.Pooled!.ConnectAsync().Soon();
        await client.User.GetNameAsync(new GetNameRequest()).ResponseAsync.Soon();
        Assert.Equal(1, server.Connections);
        Assert.Equal(1, Assert.Single(client.Pooled.Pool.GetChannels()).Id);

        await server.DisposeAsync();
        Assert.Equal(StatusCode.Unavailable, (await Outcome.OfAsync(() => client.User.GetNameAsync(new GetNameRequest()).ResponseAsync)).Status);
        await using var another = await HttpServer.StartAsync(static context => HttpServer.ReplyAsync(context, []), setup);
        using var patience = new CancellationTokenSource(Waiting.Long);
        while ((await Outcome.OfAsync(() => client.User.GetNameAsync(new GetNameRequest()).ResponseAsync)).Status != StatusCode.OK)
        {
            patience.Token.ThrowIfCancellationRequested();
        }

        Assert.InRange(client.ChannelsReplaced, 1, int.MaxValue);
        Assert.True(another.Connections >= 1);
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public async Task TheConnectTimeoutOfTheHandler_EndsACallAsUnavailable(bool withTls)
    {
        // The one never says a word of TLS, the other never takes the connection.
        await using var silent = SocketServer.ThatSaysNothing();
        await using var full = new FreezingRelay(silent.Address);
        if (!withTls)
        {
            await full.StopAcceptingAsync();
        }

        var address = withTls ? new Uri($"https://127.0.0.1:{silent.EndPoint.Port}") : full.Address;
        await using var client = TestClient.Create(
            overPool: true,
            address,
            static handler => handler.ConnectTimeout = TimeSpan.FromMilliseconds(200),
            pool: static options => options.Retry.MaxRetryAttempts = 0);
        var end = await Outcome.OfAsync(() => client.User.GetNameAsync(new GetNameRequest()).ResponseAsync);
        output.WriteLine($"{end}");
        Assert.Equal(StatusCode.Unavailable, end.Status);
    }

    [Theory]
    [InlineData("headers")]
    [InlineData("trailers")]
    public async Task AnAnswerThatBreaksTheConnectionFromOurSide_IsAskedForNoMoreThanOnABareChannel(string where)
    {
        var bare = await RunAsync(overPool: false);
        var pool = await RunAsync(overPool: true);
        output.WriteLine($"bare: {bare}\npool: {pool}");
        Assert.Equal(bare.Requests, pool.Requests);
        Assert.InRange(pool.Connections, 1, bare.Connections);
        Assert.Equal(bare.End.Status, pool.End.Status);

        async Task<(Outcome End, int Requests, int Connections)> RunAsync(bool overPool)
        {
            await using var server = await HttpServer.StartAsync(async context =>
            {
                if (where == "headers")
                {
                    context.Response.Headers["x-large"] = new string('a', 100_000);
                }
                else
                {
                    context.Response.AppendTrailer("x-large", new string('a', 100_000));
                }

                await HttpServer.ReplyAsync(context, []);
            });
            await using var client = TestClient.Create(overPool, server.Address);
            var end = await Outcome.OfAsync(() => client.User.GetNameAsync(new GetNameRequest()).ResponseAsync);
            return (end, server.Requests.Count, server.Connections);
        }
    }

    [Fact]
    public async Task OpenSockets_AreChannels_AndNoneAfterDispose()
    {
        await using var server = new RawServer(maxStreams: 10);
        var client = TestClient.Create(overPool: true, server.Address);
        for (var round = 0; round < 40; round++)
        {
            await Task.WhenAll(Enumerable.Range(0, 30).Select(_ => Outcome.OfAsync(() => client.User.GetNameAsync(new GetNameRequest()).ResponseAsync)));
            var connections = server.Connections;
            var connection = connections[round % connections.Count];
            try
            {
                await connection.AnnounceAsync(1 + (round % 20));
                await connection.GoAwayAsync();
            }
            catch (Exception exception) when (exception is IOException or ObjectDisposedException)
            {
                // It has gone already.
            }

            if (round % 3 == 0)
            {
                connection.Dispose();
            }
        }

        await Waiting.Until(() => client.Pooled!.Pool.GetStatistics() is { DrainingChannels: 0, CallsInFlight: 0 } statistics && Established(server.Address.Port) == statistics.Channels);
        await client.DisposeAsync();
        await Waiting.Until(() => Established(server.Address.Port) == 0);
    }

    [Fact]
    public async Task ConnectionsThatEndEarly_LeaveNothingUnobserved()
    {
        var unobserved = 0;
        EventHandler<UnobservedTaskExceptionEventArgs> count = (_, args) =>
        {
            if (args.Exception.ToString().Contains("PoolingInvoker.", StringComparison.Ordinal))
            {
                Interlocked.Increment(ref unobserved);
            }
        };
        TaskScheduler.UnobservedTaskException += count;
        try
        {
            foreach (var create in (Func<SocketServer>[])[SocketServer.ThatSaysNothing, SocketServer.ThatCloses, SocketServer.ThatResets, SocketServer.ThatClosesAfterSettings])
            {
                await using var server = create();
                for (var i = 0; i < 5; i++)
                {
                    await DropAsync(server);
                }
            }

            for (var i = 0; i < 5; i++)
            {
                GC.Collect();
                GC.WaitForPendingFinalizers();
            }
        }
        finally
        {
            TaskScheduler.UnobservedTaskException -= count;
        }

        Assert.Equal(0, unobserved);
    }

    [Theory]
    [InlineData("http")]
    [InlineData("https")]
    public async Task DisposedWhileItConnects_ItLeavesNoSocket(string scheme)
    {
        await using var server = SocketServer.ThatSaysNothing();
        var client = TestClient.Create(overPool: true, new Uri($"{scheme}://127.0.0.1:{server.EndPoint.Port}"));
        var connecting = client.Pooled!.ConnectAsync();
        await Waiting.Until(() => server.Accepted == 1);
        Assert.Equal(1, Established(server.EndPoint.Port));
        var since = TimeProvider.System.GetTimestamp();
        await client.DisposeAsync();
        await Waiting.Until(() => Established(server.EndPoint.Port) == 0);
        output.WriteLine($"{TimeProvider.System.GetElapsedTime(since)}");
        await Task.WhenAny(connecting).Soon();
        Assert.NotNull(connecting.Exception);
    }

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public async Task AChannelThatIsDisposed_IsCollected(bool isCalled)
    {
        await using var server = await HttpServer.StartAsync(static context => HttpServer.ReplyAsync(context, []));
        using var policy = new AddressChannelPolicy(server.Address, new ChannelPoolOptions());
        var (channel, transport) = await UseAsync();
        await Waiting.Until(() =>
        {
            GC.Collect();
            GC.WaitForPendingFinalizers();
            return !channel.IsAlive && !transport.IsAlive;
        });

        async Task<(WeakReference Channel, WeakReference Transport)> UseAsync()
        {
            var (used, itsTransport) = policy.Create(endpoint: null);
            await itsTransport!.ConnectAsync(CancellationToken.None).Soon();
            if (isCalled)
            {
                await new User.UserClient(used).GetNameAsync(new GetNameRequest()).ResponseAsync.Soon();
            }

            used.Dispose();
            itsTransport.Dispose();
            return (new WeakReference(used), new WeakReference(itsTransport));
        }
    }

    [Fact]
    public async Task AHandlerThatThrowsInDispose_LeavesNoConnectionOpen_AndNobodyIsToldOfIt()
    {
        await using var server = await HttpServer.StartAsync(static context => HttpServer.ReplyAsync(context, []));
        var pool = ChannelPool.ForAddress(server.Address, new ChannelPoolOptions
        {
            ConfigureChannel = static options => options.HttpHandler = new HandlerThatCannotBeDisposed(options.HttpHandler!),
        });
        await pool.ConnectAsync().Soon();
        Assert.Equal(1, Established(server.Address.Port));
        pool.Dispose(); // with what was made ahead
        await Waiting.Until(() => Established(server.Address.Port) == 0);
    }

    private static async Task DropAsync(SocketServer server)
    {
        var before = server.Accepted;
        await using var client = TestClient.Create(overPool: true, server.Address);
        using var patience = new CancellationTokenSource();
        var connecting = client.Pooled!.ConnectAsync(patience.Token);
        await Waiting.Until(() => server.Accepted > before);
        await patience.CancelAsync();
        await Task.WhenAny(connecting);
        _ = connecting.Exception;
    }

    // The clients' side of connections to a port, as the kernel knows them: 01 is ESTABLISHED, 08 is CLOSE_WAIT.
    private static int Established(int port)
    {
        var remote = string.Create(CultureInfo.InvariantCulture, $":{port:X4}");
        return File.ReadLines("/proc/net/tcp").Concat(File.ReadLines("/proc/net/tcp6"))
            .Select(static line => line.Split(' ', StringSplitOptions.RemoveEmptyEntries))
            .Count(line => line.Length > 3 && line[2].EndsWith(remote, StringComparison.Ordinal) && line[3] is ("01" or "08"));
    }

    private sealed class HandlerThatCannotBeDisposed(HttpMessageHandler inner) : DelegatingHandler(inner)
    {
        protected override void Dispose(bool disposing)
        {
            base.Dispose(disposing);
            throw new FormatException("of the user's");
        }
    }
}

using System.Collections.Concurrent;
using System.Net.Http.Headers;
using System.Net.Sockets;
using Grpc.Core;
using Grpc.Net.Client;
using Microsoft.AspNetCore.Http;
using Microsoft.Extensions.Time.Testing;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;
using static PoolingInvoker.FunctionalTests.ServerFrames;

namespace PoolingInvoker.FunctionalTests;

/// <summary>What servers and users may do and seldom do, over a pool and over a bare channel.</summary>
public sealed class BreakingTests
{
    private static readonly byte[] NoMoreStreams = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]; // GOAWAY that excludes all
    private static readonly byte[] GoingSoon = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0x7F, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0]; // GOAWAY that excludes none yet

    public static TheoryData<string, bool> Misconfigurations
    {
        get
        {
            var data = new TheoryData<string, bool>();
            foreach (var what in Misconfigured.Keys)
            {
                data.Add(what, false);
                data.Add(what, true);
            }

            return data;
        }
    }

    private static Dictionary<string, (string Address, Action<GrpcChannelOptions> Configure)> Misconfigured { get; } = new()
    {
        ["https without TLS"] = ("https://users", static channel => channel.Credentials = ChannelCredentials.Insecure),
        ["http with TLS"] = ("http://users", static channel => channel.Credentials = ChannelCredentials.SecureSsl),
        ["roots"] = ("https://users", static channel => channel.Credentials = new SslCredentials("roots")),
    };

    [Theory]
    [InlineData(false, false)]
    [InlineData(false, true)]
    [InlineData(true, false)]
    [InlineData(true, true)]
    public async Task AServerThatGoes_AsSoonAsItIsConnectedTo_CostsNoCall(bool isWarm, bool excludesAll)
    {
        // On a bare channel the call mostly comes before the GOAWAY, and is answered, or sent again by the handler.
        // The first connection, or the one after a call, is told at once that the server takes no more calls; the next one works.
        var connections = 0;
        await using var server = new SocketServer(async socket =>
        {
            var number = Interlocked.Increment(ref connections);
            await using var stream = new NetworkStream(socket);
            await stream.ReadExactlyAsync(new byte[24]);
            await stream.WriteAsync((byte[])[.. Settings, .. number == (isWarm ? 2 : 1) ? excludesAll ? NoMoreStreams : GoingSoon : []]);
            while (true)
            {
                var frame = await ReadFrameAsync(stream);
                if (frame is [_, _, _, 4, 0, ..])
                {
                    await stream.WriteAsync(SettingsAck);
                }
                else if (frame is [_, _, _, 0, 1, ..] && !(excludesAll && number == (isWarm ? 2 : 1)))
                {
                    await stream.WriteAsync(Reply(frame[8]));
                    if (isWarm && number == 1)
                    {
                        await stream.WriteAsync(NoMoreStreams);
                    }
                }
            }
        });
        await using var client = TestClient.Create(overPool: true, server.Address);
        for (var i = 0; i < (isWarm ? 2 : 1); i++)
        {
            await client.User.RenameAsync(new RenameRequest()).ResponseAsync.Soon();
        }

        Assert.InRange(server.Accepted, 1, isWarm ? 3 : 2);
    }

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public async Task AConnectionThatIsClosed_WhileCredentialsAreFetched_IsMadeAgain(bool overPool)
    {
        // A bare channel connects when it has the credentials; the pool has connected, and the server has waited for long enough.
        var closes = new TaskCompletionSource();
        var accepted = 0;
        await using var server = new SocketServer(async socket =>
        {
            var isFirst = overPool && Interlocked.Increment(ref accepted) == 1;
            await using var stream = new NetworkStream(socket);
            await stream.ReadExactlyAsync(new byte[24]);
            await stream.WriteAsync(Settings);
            if (isFirst)
            {
                await closes.Task;
                socket.Shutdown(SocketShutdown.Send);
                return;
            }

            while (true)
            {
                var frame = await ReadFrameAsync(stream);
                await stream.WriteAsync(frame is [_, _, _, 4, 0, ..] ? SettingsAck : frame is [_, _, _, 0, 1, ..] ? Reply(frame[8]) : []);
            }
        });
        var time = new FakeTimeProvider(TimeProvider.System.GetUtcNow());
        var asked = 0;
        var fetched = new TaskCompletionSource();
        var credentials = CallCredentials.FromInterceptor((_, _) =>
        {
            asked++;
            return fetched.Task;
        });
        await using var client = TestClient.Create(
            overPool,
            server.Address,
            channel: static channel => channel.UnsafeUseInsecureChannelCallCredentials = true,
            pool: options => (options.Pool.TimeProvider, options.Pool.ProbeDelay) = (time, Timeout.InfiniteTimeSpan));
        var call = Outcome.OfAsync(() => client.User.RenameAsync(new RenameRequest(), new CallOptions(credentials: credentials)).ResponseAsync);
        await Waiting.Until(() => asked == 1);
        time.Advance(TimeSpan.FromSeconds(10));
        closes.SetResult();
        await Waiting.Until(() => client.Pooled?.Pool.GetChannels().Single().ConnectivityState is null or not ConnectivityState.Ready);
        fetched.SetResult();
        Assert.Equal(StatusCode.OK, (await call).Status);
        Assert.Equal(1, asked);
        Assert.Equal(0, client.Retries);
    }

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public async Task ARedirect_IsFollowedBelowTheHandlersOfTheUser(bool overPool)
    {
        // As a handler does that adds a token: it is for this server, and is not sent to where that redirects.
        var authorizations = new ConcurrentQueue<string>();
        await using var server = await HttpServer.StartAsync(context =>
        {
            authorizations.Enqueue($"{context.Request.Path} {context.Request.Headers.Authorization}");
            if (context.Request.Path == "/moved")
            {
                return HttpServer.ReplyAsync(context, []);
            }

            (context.Response.StatusCode, context.Response.Headers.Location) = (StatusCodes.Status307TemporaryRedirect, "/moved");
            return Task.CompletedTask;
        });
        var sent = 0;
        await using var client = TestClient.Create(
            overPool, server.Address, channel: channel => channel.HttpHandler = new TokenHandler(channel.HttpHandler!, () => sent++));
        await client.User.RenameAsync(new RenameRequest()).ResponseAsync.Soon();
        Assert.Equal(["/user.v1.User/Rename Bearer secret", "/moved "], authorizations);
        Assert.Equal(1, sent);
    }

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public async Task ACookie_IsSentOnAllConnections(bool overPool)
    {
        var several = new TaskCompletionSource();
        var gets = 0;
        await using var server = await HttpServer.StartAsync(
            async context =>
            {
                var isKnown = context.Request.Cookies.ContainsKey("session");
                if (context.Request.Path == "/user.v1.User/Rename")
                {
                    context.Response.Cookies.Append("session", "7");
                    isKnown = true;
                }
                else if (Interlocked.Increment(ref gets) == 2)
                {
                    several.SetResult();
                }
                else
                {
                    await several.Task.Soon();
                }

                await HttpServer.ReplyAsync(context, [], isKnown ? "0" : "16");
            },
            new HttpServer.Setup { Configure = static kestrel => kestrel.Limits.Http2.MaxStreamsPerConnection = 1 });
        await using var client = TestClient.Create(overPool, server.Address);
        await client.User.RenameAsync(new RenameRequest()).ResponseAsync.Soon();
        var ends = await Task.WhenAll(Enumerable.Range(0, 4).Select(_ => Outcome.OfAsync(() => client.User.GetNameAsync(new GetNameRequest()).ResponseAsync)));
        Assert.True(server.Connections > 1);
        Assert.All(ends, static end => Assert.Equal(StatusCode.OK, end.Status));
    }

    [Theory]
    [MemberData(nameof(Misconfigurations))]
    public void AChannelThatCannotBe_IsRefusedWhenTheClientIsMade(string what, bool overPool)
    {
        var (address, configure) = Misconfigured[what];
        Assert.Throws<InvalidOperationException>(() => TestClient.Create(overPool, new Uri(address), channel: configure));
    }

    [Theory]
    [InlineData(true, true)]
    [InlineData(true, false)]
    [InlineData(false, true)]
    [InlineData(false, false)]
    public async Task AHandlerThatKeepsNoConnections_MakesOneForEachCall(bool overPool, bool noLifetime)
    {
        await using var server = await HttpServer.StartAsync(static context => HttpServer.ReplyAsync(context, []));
        await using var client = TestClient.Create(overPool, server.Address, handler =>
        {
            (handler.PooledConnectionLifetime, handler.PooledConnectionIdleTimeout) = noLifetime
                ? (TimeSpan.Zero, handler.PooledConnectionIdleTimeout)
                : (handler.PooledConnectionLifetime, TimeSpan.Zero);
        });
        for (var i = 0; i < 20; i++)
        {
            var ends = await Task.WhenAll(Enumerable.Range(0, 10).Select(_ => Outcome.OfAsync(() => client.User.RenameAsync(new RenameRequest()).ResponseAsync)));
            Assert.All(ends, static end => Assert.Equal(StatusCode.OK, end.Status));
        }
    }

    private sealed class TokenHandler(HttpMessageHandler inner, Action sends) : DelegatingHandler(inner)
    {
        protected override Task<HttpResponseMessage> SendAsync(HttpRequestMessage request, CancellationToken cancellationToken)
        {
            sends();
            request.Headers.Authorization = new AuthenticationHeaderValue("Bearer", "secret");
            return base.SendAsync(request, cancellationToken);
        }
    }
}

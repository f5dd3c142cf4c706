using Grpc.Core;
using Microsoft.AspNetCore.Http;
using Microsoft.Extensions.Time.Testing;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.FunctionalTests;

/// <summary>A channel is connected without a call of the user's: handlers and credentials see the calls of users alone.</summary>
public sealed class ConnectingTests
{
    private const string Service = "/user.v1.User/";

    [Theory]
    [InlineData("credentials")]
    [InlineData("a handler")]
    public async Task ThePoolGrows_WhereNobodyElseMayCall(string what)
    {
        const int Calls = 250;
        var refused = 0;
        var user = new AsyncLocal<string?>();
        var release = new TaskCompletionSource(TaskCreationOptions.RunContinuationsAsynchronously);
        await using var server = await HttpServer.StartAsync(context => HoldAsync(context, release.Task));
        await using var client = TestClient.Create(overPool: true, server.Address, channel: options =>
        {
            if (what == "a handler")
            {
                options.HttpHandler = new RefusingHandler(options.HttpHandler!, () => Interlocked.Increment(ref refused));
                return;
            }

            options.UnsafeUseInsecureChannelCallCredentials = true;
            options.Credentials = ChannelCredentials.Create(ChannelCredentials.Insecure, CallCredentials.FromInterceptor((context, metadata) =>
            {
                if (!context.ServiceUrl.EndsWith("user.v1.User", StringComparison.Ordinal) || user.Value is null)
                {
                    Interlocked.Increment(ref refused);
                    throw new InvalidOperationException("There is no token without a request.");
                }

                metadata.Add("authorization", user.Value);
                return Task.CompletedTask;
            }));
        });
        var calls = Enumerable.Range(0, Calls).Select(i =>
        {
            user.Value = $"user-{i}";
            return Outcome.OfAsync(() => client.User.RenameAsync(new RenameRequest(), new CallOptions(deadline: DateTime.UtcNow.AddSeconds(25))).ResponseAsync);
        }).ToArray();
        user.Value = null;
        try
        {
            await Waiting.Until(() => server.Requests.Count(static path => path == $"{Service}Rename") == Calls || calls.Any(static call => call.IsCompleted));
        }
        finally
        {
            release.SetResult();
        }

        Assert.All(await Task.WhenAll(calls), static end => Assert.Equal("OK", $"{end.Status} {end.Detail}".TrimEnd()));
        Assert.InRange(server.Connections, 3, 100);
        Assert.Equal(0, refused);
        Assert.All(server.Requests, static path => Assert.StartsWith(Service, path, StringComparison.Ordinal));
    }

    [Fact]
    public async Task NoCallIsMadeThatTheUserDidNotMake()
    {
        var seen = 0;
        await using var server = await HttpServer.StartAsync(static context => HttpServer.ReplyAsync(context, []));
        await using var client = TestClient.Create(
            overPool: true,
            server.Address,
            channel: options => options.HttpHandler = new RefusingHandler(options.HttpHandler!, () => Interlocked.Increment(ref seen)),
            pool: static options => options.Pool.MinPoolSize = 4);
        await client.Pooled!.ConnectAsync().Soon();
        await Task.WhenAll(client.Pooled.ConnectAsync(), client.Pooled.ConnectAsync(), client.Pooled.ConnectAsync()).Soon();
        Assert.Equal(4, server.Connections);
        Assert.Empty(server.Requests);
        await client.User.GetNameAsync(new GetNameRequest()).ResponseAsync.Soon();
        Assert.Equal([$"{Service}GetName"], server.Requests);
        Assert.Equal(0, seen);
    }

    [Fact]
    public async Task ConnectAsync_AgainAfterACancelledOne_AndTwiceAtATime()
    {
        var speaks = new TaskCompletionSource(TaskCreationOptions.RunContinuationsAsynchronously);
        await using var server = new RawServer(maxStreams: 100) { Speaks = speaks.Task };
        await using var client = TestClient.Create(overPool: true, server.Address);
        using var patience = new CancellationTokenSource();
        var first = client.Pooled!.ConnectAsync(patience.Token);
        await Waiting.Until(() => server.Accepted == 1);
        await patience.CancelAsync();
        await Assert.ThrowsAnyAsync<OperationCanceledException>(() => first.Soon());

        var second = client.Pooled.ConnectAsync();
        var third = client.Pooled.ConnectAsync();
        speaks.SetResult();
        await Task.WhenAll(second, third).Soon();
        await client.User.GetNameAsync(new GetNameRequest()).ResponseAsync.Soon();
        Assert.Equal(1, server.Connections.Sum(static connection => connection.Calls));
    }

    [Fact]
    public async Task AHandlerThatAnswersByItself_WaitsForNoConnection()
    {
        // Nobody answers there, and no timer of the pool fires.
        await using var silent = SocketServer.ThatSaysNothing();
        foreach (var code in (StatusCode[])[StatusCode.OK, StatusCode.PermissionDenied])
        {
            await using var client = TestClient.Create(
                overPool: true,
                silent.Address,
                channel: options => options.HttpHandler = new AnsweringHandler(options.HttpHandler!, code),
                pool: static options => options.Pool.TimeProvider = new FakeTimeProvider(TimeProvider.System.GetUtcNow()));
            for (var i = 0; i < 3; i++)
            {
                Assert.Equal(code, (await Outcome.OfAsync(() => client.User.GetNameAsync(new GetNameRequest()).ResponseAsync)).Status);
            }
        }
    }

    private static async Task HoldAsync(HttpContext context, Task released)
    {
        await released;
        await HttpServer.ReplyAsync(context, []);
    }

    private sealed class RefusingHandler(HttpMessageHandler inner, Action refused) : DelegatingHandler(inner)
    {
        protected override Task<HttpResponseMessage> SendAsync(HttpRequestMessage request, CancellationToken cancellationToken)
        {
            if (request.RequestUri!.AbsolutePath.StartsWith(Service, StringComparison.Ordinal))
            {
                return base.SendAsync(request, cancellationToken);
            }

            refused();
            throw new InvalidOperationException($"There is no signature for {request.RequestUri}.");
        }
    }

    private sealed class AnsweringHandler(HttpMessageHandler inner, StatusCode code) : DelegatingHandler(inner)
    {
        protected override Task<HttpResponseMessage> SendAsync(HttpRequestMessage request, CancellationToken cancellationToken)
        {
            var content = new ByteArrayContent(code == StatusCode.OK ? new byte[5] : []);
            content.Headers.ContentType = new("application/grpc");
            var response = new HttpResponseMessage { Version = new Version(2, 0), Content = content, RequestMessage = request };
            response.TrailingHeaders.Add("grpc-status", $"{(int)code}");
            return Task.FromResult(response);
        }
    }
}

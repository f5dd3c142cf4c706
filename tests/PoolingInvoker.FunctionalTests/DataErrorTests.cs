using System.Text;
using Google.Protobuf;
using Grpc.Core;
using Microsoft.AspNetCore.Http;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.FunctionalTests;

/// <summary>Calls that fail by their data, over a pool and over a bare channel: nothing is wrong with their channel.</summary>
public sealed class DataErrorTests(ITestOutputHelper output)
{
    private const int Calls = 5;

    public static TheoryData<string> Cases =>
    [
        "a reply that cannot be parsed", "a header that is not ASCII", "metadata that is too large", "metadata that is too large, of a call with side effects",
        "a request above the limit", "a reply above the limit", "a request that cannot be read", "a request whose marshaller throws",
        "a reply whose marshaller throws", "an unknown compression of the reply", "an unknown compression of the request", "OK without a message",
        "content that is not gRPC", "a stream with a reply that cannot be parsed",
    ];

    [Theory]
    [MemberData(nameof(Cases))]
    public async Task IsSentOnce_AndHarmsNobody(string what)
    {
        var bare = await RunAsync(overPool: false, what);
        var pool = await RunAsync(overPool: true, what);
        output.WriteLine($"bare: {bare}\npool: {pool}");
        Assert.NotEqual(StatusCode.OK, bare.Outcome.Status);

        // What the client itself refuses while it writes may have been seen by the server, or not.
        Assert.InRange(pool.Attempts, 0, Calls);
        Assert.Equal(bare with { Attempts = pool.Attempts }, pool);
    }

    [Theory]
    [MemberData(nameof(Cases))]
    public async Task LeavesTheRetriesOfOthersAlone(string what)
    {
        const int Others = 20;
        var refused = 0;
        await using var server = await HttpServer.StartAsync(context =>
            context.Request.Headers.ContainsKey("x-refused-once") && !context.Request.Headers.ContainsKey("grpc-previous-rpc-attempts") && Interlocked.Increment(ref refused) > 0
                ? HttpServer.ReplyAsync(context, message: null, "14")
                : AnswerAsync(context, Task.CompletedTask));
        await using var client = Create(overPool: true, server);
        await client.User.GetProfileAsync(new GetProfileRequest()).ResponseAsync.Soon();
        for (var i = 0; i < 10; i++)
        {
            await Task.WhenAll(Enumerable.Range(0, 20).Select(_ => Outcome.OfAsync(() => CallAsync(client, what))));
        }

        var ends = await Task.WhenAll(Enumerable.Range(0, Others).Select(_ =>
            Outcome.OfAsync(() => client.User.GetNameAsync(new GetNameRequest(), new Metadata { { "x-refused-once", "1" } }).ResponseAsync)));
        output.WriteLine($"{ends.Count(static end => end.Status == StatusCode.OK)} of {Others} OK; {client.Pooled!.Pool.GetStatistics()}");
        Assert.Equal(Others, refused);
        Assert.All(ends, static end => Assert.Equal(StatusCode.OK, end.Status));
    }

    [Fact]
    public async Task ANewLineInAHeader_BreaksNoMoreThanOnABareChannel()
    {
        var bare = await RunAsync(overPool: false, "a header with a new line");
        var pool = await RunAsync(overPool: true, "a header with a new line");
        output.WriteLine($"bare: {bare}\npool: {pool}");
        Assert.Equal(bare.Outcome.Status, pool.Outcome.Status);
        Assert.InRange(pool.Attempts, 0, bare.Attempts);

        // A bare channel connects again with its next call, and the pool at once.
        Assert.InRange(pool.Connections, 1, bare.Connections + 1);
        Assert.Equal(bare.Neighbour.Status, pool.Neighbour.Status);
    }

    private static async Task<Findings> RunAsync(bool overPool, string what)
    {
        var release = new TaskCompletionSource(TaskCreationOptions.RunContinuationsAsynchronously);
        await using var server = await HttpServer.StartAsync(context => AnswerAsync(context, release.Task));
        await using var client = Create(overPool, server);
        await client.User.GetProfileAsync(new GetProfileRequest()).ResponseAsync.Soon();
        var neighbour = Outcome.OfAsync(() => client.User.RenameAsync(new RenameRequest(), new Metadata { { "x-held", "1" } }).ResponseAsync);
        await Waiting.Until(() => server.Requests.Count(static path => path.EndsWith("/Rename", StringComparison.Ordinal)) == 1);
        var before = server.Requests.Count;
        Outcome? outcome = null;
        for (var i = 0; i < Calls; i++)
        {
            var one = await Outcome.OfAsync(() => CallAsync(client, what));
            Assert.Equal(outcome ??= one, one);
        }

        var attempts = server.Requests.Count - before;
        release.SetResult();
        return new Findings(outcome!, await neighbour, attempts, server.Connections, client.ChannelsReplaced, client.Retries);
    }

    private static TestClient Create(bool overPool, HttpServer server) => TestClient.Create(overPool, server.Address, channel: static options =>
    {
        options.MaxSendMessageSize = 1_000;
        options.MaxReceiveMessageSize = 1_000;
    });

    private static Task CallAsync(TestClient client, string what)
    {
        var user = client.User;
        var fault = new Metadata { { "x-fault", Convert.ToHexString(Encoding.UTF8.GetBytes(what)) } };
        var large = new Metadata { { "x-large", new string('a', 40_000) } };
        return what switch
        {
            "a header that is not ASCII" => user.GetNameAsync(new GetNameRequest(), new Metadata { { "x-user", "Jörg" } }).ResponseAsync,
            "a header with a new line" => user.GetNameAsync(new GetNameRequest(), new Metadata { { "x-user", "Ada\r\nLovelace" } }).ResponseAsync,
            "metadata that is too large" => user.GetNameAsync(new GetNameRequest(), large).ResponseAsync,
            "metadata that is too large, of a call with side effects" => user.RenameAsync(new RenameRequest(), large).ResponseAsync,
            "a request above the limit" => client.Invoker.AsyncUnaryCall(Get(new byte[2_000], null), null, default, new GetNameRequest()).ResponseAsync,
            "a request whose marshaller throws" => client.Invoker.AsyncUnaryCall(Get(null, null), null, default, new GetNameRequest()).ResponseAsync,
            "a reply whose marshaller throws" => client.Invoker.AsyncUnaryCall(Get([], new HttpRequestException("no such picture")), null, default, new GetNameRequest()).ResponseAsync,
            "an unknown compression of the request" => user.GetNameAsync(new GetNameRequest(), new Metadata { { "grpc-internal-encoding-request", "none-such" } }).ResponseAsync,
            "a stream with a reply that cannot be parsed" => ReadAsync(user.ListNames(new ListNamesRequest(), fault)),
            _ => user.GetNameAsync(new GetNameRequest(), fault).ResponseAsync,
        };
    }

    private static async Task ReadAsync(AsyncServerStreamingCall<NameReply> call)
    {
        using (call)
        {
            await call.ResponseStream.MoveNext(CancellationToken.None);
        }
    }

    // A method that is idempotent, with marshallers of the test's: null is a request that cannot be made.
    private static Method<GetNameRequest, GetNameReply> Get(byte[]? request, Exception? reply) => new(
        MethodType.Unary,
        "user.v1.User",
        "GetProfile",
        Marshallers.Create<GetNameRequest>(_ => request ?? throw new FileNotFoundException("picture.png"), static _ => new GetNameRequest()),
        Marshallers.Create<GetNameReply>(static message => message.ToByteArray(), _ => reply is null ? new GetNameReply() : throw reply));

    private static async Task AnswerAsync(HttpContext context, Task released)
    {
        if (context.Request.Headers.ContainsKey("x-held"))
        {
            await released;
        }

        var what = Encoding.UTF8.GetString(Convert.FromHexString(context.Request.Headers["x-fault"].ToString()));
        switch (what)
        {
            case "a reply that cannot be parsed" or "a stream with a reply that cannot be parsed":
                await HttpServer.ReplyAsync(context, [0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f]);
                break;
            case "a reply above the limit":
                context.Response.ContentType = "application/grpc";
                context.Response.AppendTrailer("grpc-status", "0");
                await context.Response.Body.WriteAsync((byte[])[0, 0, 0, 8, 0, .. new byte[2_048]]);
                break;
            case "a request that cannot be read":
                await HttpServer.ReplyAsync(context, message: null, "13");
                break;
            case "an unknown compression of the reply":
                context.Response.ContentType = "application/grpc";
                context.Response.Headers["grpc-encoding"] = "none-such";
                context.Response.AppendTrailer("grpc-status", "0");
                await context.Response.Body.WriteAsync((byte[])[1, 0, 0, 0, 1, 0]);
                break;
            case "OK without a message":
                await HttpServer.ReplyAsync(context, message: null);
                break;
            case "content that is not gRPC":
                context.Response.ContentType = "text/html";
                await context.Response.WriteAsync("<html>");
                break;
            default:
                await HttpServer.ReplyAsync(context, []);
                break;
        }
    }

    // Equal where a call over the pool has the same end as over a bare channel, and costs the same.
    private sealed record Findings(Outcome Outcome, Outcome Neighbour, int Attempts, int Connections, long Replaced, long Retries);
}

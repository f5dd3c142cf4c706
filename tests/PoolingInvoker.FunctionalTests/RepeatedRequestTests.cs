using System.Net;
using Grpc.Core;
using Microsoft.AspNetCore.Http;
using PoolingInvoker.Protos;

namespace PoolingInvoker.FunctionalTests;

/// <summary>Answers at which the HTTP client sends a request again by itself, over a pool and over a bare channel.</summary>
public sealed class RepeatedRequestTests(ITestOutputHelper output)
{
    public static TheoryData<int, string> Statuses
    {
        get
        {
            var statuses = new TheoryData<int, string>();
            foreach (var status in (int[])[300, 301, 302, 303, 307, 308])
            {
                statuses.Add(status, "/login");
                statuses.Add(status, "/moved");
            }

            statuses.Add(401, "");
            statuses.Add(407, "");
            return statuses;
        }
    }

    [Theory]
    [MemberData(nameof(Statuses))]
    public async Task AUnaryCall_IsSentAsOverABareChannel(int status, string location)
    {
        foreach (var isIdempotent in (bool[])[true, false])
        {
            var bare = await RunAsync(overPool: false, status, location, Call);
            var pool = await RunAsync(overPool: true, status, location, Call);
            output.WriteLine($"bare: {bare}\npool: {pool}");
            Assert.Equal(bare, pool);

            Task Call(User.UserClient user, CallOptions options) =>
                isIdempotent ? user.GetNameAsync(new GetNameRequest { Id = 7 }, options).ResponseAsync : user.RenameAsync(new RenameRequest { Id = 7 }, options).ResponseAsync;
        }
    }

    [Theory]
    [MemberData(nameof(Statuses))]
    public async Task AStreamOfRequests_IsReadOnce_AndEndsWithTheStatusOfTheAnswer(int status, string location)
    {
        var bare = await RunAsync(overPool: false, status, location, ImportAsync);
        var pool = await RunAsync(overPool: true, status, location, ImportAsync);
        output.WriteLine($"bare: {bare}\npool: {pool}");
        Assert.Equal(1, pool.Read);
        Assert.InRange(pool.Requests, 1, bare.Requests);
        if (pool.End != bare.End)
        {
            // Where the HTTP client could not send it again, a bare channel says that. What the server said is more.
            Assert.Equal(status switch { 401 => StatusCode.Unauthenticated, _ => StatusCode.Unknown }, pool.End.Status);
            Assert.DoesNotContain("refused", pool.End.Detail, StringComparison.Ordinal);
        }
    }

    private static async Task ImportAsync(User.UserClient user, CallOptions options)
    {
        using var call = user.ImportNames(options);
        try
        {
            await call.RequestStream.WriteAsync(new ImportNameRequest { Name = "Ada" });
            await call.RequestStream.CompleteAsync();
        }
        catch (Exception exception) when (exception is RpcException or InvalidOperationException)
        {
            // The response says why.
        }

        await call;
    }

    private static async Task<(Outcome End, int Requests, int Read)> RunAsync(bool overPool, int status, string location, Func<User.UserClient, CallOptions, Task> call)
    {
        var read = 0;
        await using var server = await HttpServer.StartAsync(async context =>
        {
            var body = new MemoryStream();
            await context.Request.Body.CopyToAsync(body);
            if (body.Length > 0)
            {
                Interlocked.Increment(ref read);
            }

            if (context.Request.Path == "/moved")
            {
                await HttpServer.ReplyAsync(context, []);
            }
            else if (context.Request.Path == "/login")
            {
                context.Response.ContentType = "text/html";
                await context.Response.WriteAsync("<html>");
            }
            else
            {
                context.Response.StatusCode = status;
                context.Response.Headers.Location = location;
                context.Response.Headers.WWWAuthenticate = "Basic realm=\"users\"";
                context.Response.Headers.ProxyAuthenticate = "Basic realm=\"users\"";
            }
        });
        await using var client = TestClient.Create(overPool, server.Address, static handler => handler.Credentials = new NetworkCredential("ada", "wrong"));
        var end = await Outcome.OfAsync(() => call(client.User, new CallOptions(deadline: DateTime.UtcNow.AddSeconds(20))));
        return (end, server.Requests.Count, read);
    }
}

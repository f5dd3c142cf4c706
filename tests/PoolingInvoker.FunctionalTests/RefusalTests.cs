using Grpc.Core;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.FunctionalTests;

/// <summary>Calls that a server refuses in its headers (Trailers-Only), while somebody waits for the headers.</summary>
public sealed class RefusalTests
{
    [Theory]
    [InlineData(MethodType.Unary)]
    [InlineData(MethodType.ClientStreaming)]
    public async Task AskingForTheHeaders_DoesNotTurnTheRetryOff(MethodType kind)
    {
        var refuses = new TaskCompletionSource(TaskCreationOptions.RunContinuationsAsynchronously);
        var calls = 0;
        await using var server = await HttpServer.StartAsync(async context =>
        {
            if (Interlocked.Increment(ref calls) != 2)
            {
                await HttpServer.ReplyAsync(context, []);
                return;
            }

            await refuses.Task;
            context.Response.ContentType = "application/grpc";
            context.Response.Headers["grpc-status"] = "14";
        });

        // The channel tells the headers of the refusal, and is held up before it ends the call.
        using var goesOn = new ManualResetEventSlim();
        var logs = new PausingLogs("ResponseHeadersReceived", refuses.Task, goesOn);
        await using var client = TestClient.Create(
            overPool: true,
            server.Address,
            channel: options => options.LoggerFactory = logs,
            pool: static options => options.IsIdempotent = static _ => true);
        await client.User.GetNameAsync(new GetNameRequest()).ResponseAsync.Soon();
        using var unary = kind == MethodType.Unary ? client.User.GetNameAsync(new GetNameRequest()) : null;
        using var stream = kind == MethodType.ClientStreaming ? client.User.ImportNames() : null;
        var headers = unary?.ResponseHeadersAsync ?? stream!.ResponseHeadersAsync;
        await Waiting.Until(() => Volatile.Read(ref calls) == 2);
        refuses.SetResult();
        await logs.Paused.Soon();
        for (var i = 0; i < 20_000; i++)
        {
            await Task.Yield();
        }

        Assert.False(headers.IsCompleted);
        goesOn.Set();
        if (stream is not null)
        {
            await stream.RequestStream.CompleteAsync().Soon();
        }

        await (unary?.ResponseAsync ?? (Task)stream!.ResponseAsync).Soon();
        Assert.NotNull(await headers.Soon());
        Assert.Equal(3, Volatile.Read(ref calls));
    }
}

using Grpc.Core;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.Tests.Calls;

/// <summary>Code of the user's that runs, and throws, while an attempt is started.</summary>
public sealed class HostileTests : ScriptedCalls
{
    [Theory]
    [InlineData("unary")]
    [InlineData("client streaming")]
    [InlineData("server streaming")]
    [InlineData("duplex")]
    public async Task ACallThatIsDisposedWhileItsSecondAttemptStarts_GivesTheLeaseBack_ThoughACallbackThrows(string kind)
    {
        var started = new TaskCompletionSource<IDisposable>();
        Server.ThenStatusAfter(started.Task, StatusCode.Unavailable);
        Server.Then(async token =>
        {
            using var registration = token.Register(static () => throw new FormatException("of the user's"));
            (await started.Task).Dispose();
            await Task.Delay(Timeout.InfiniteTimeSpan, TimeProvider.System, token);
            throw new InvalidOperationException();
        });
        var (client, pool) = NewClient(static options =>
        {
            options.Pool.MaxPoolSize = 1; // a channel that has been used sends on the thread that starts the attempt
            options.IsIdempotent = static _ => true;
        });
        var (call, ending) = Start(client, kind);
        started.SetResult(call);
        await Elapse(() => Server.Requests.Count == 2);
        await Waiting.Until(() => pool.GetStatistics().CallsInFlight == 0);
        if (kind is "unary" or "client streaming")
        {
            var exception = await Assert.ThrowsAsync<RpcException>(() => ending.Soon());
            Assert.Equal(StatusCode.Cancelled, exception.StatusCode);
        }

        ending.Observe(); // a read on a channel whose Dispose has thrown may not end
    }

    // What shows the end of the call: its response, or a read.
    private static (IDisposable Call, Task Ending) Start(User.UserClient client, string kind)
    {
        switch (kind)
        {
            case "unary":
                var unary = client.GetNameAsync(new GetNameRequest());
                return (unary, unary.ResponseAsync);
            case "client streaming":
                var import = client.ImportNames();
                return (import, import.ResponseAsync);
            case "server streaming":
                var list = client.ListNames(new ListNamesRequest());
                return (list, list.ResponseStream.MoveNext(CancellationToken.None));
            default:
                var chat = client.Chat();
                return (chat, chat.ResponseStream.MoveNext(CancellationToken.None));
        }
    }
}

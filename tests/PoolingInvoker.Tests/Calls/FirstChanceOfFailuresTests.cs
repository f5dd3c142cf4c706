using System.Runtime.ExceptionServices;
using Grpc.Core;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.Tests.Calls;

/// <summary>
/// The exceptions that are thrown in a call that fails, whoever catches them, beside those on a bare channel: none of a type that a bare
/// channel does not throw but a cancellation, and no more than it takes to pass the failure on. Nothing is polled for by exception.
/// </summary>
[Collection(nameof(FirstChanceTests))]
public sealed class FirstChanceOfFailuresTests : ScriptedCalls
{
    private readonly AsyncLocal<bool> _isCounted = new(); // what other tests have left over throws elsewhere

    public static TheoryData<string, string> Cases => [.. from kind in (string[])["unary", "blocking unary", "client streaming", "server streaming", "duplex"]
                                                          from end in (string[])["status", "trailers only", "unavailable", "refused", "token", "deadline", "broken", "broken, behind the headers"]
                                                          where end != "broken, behind the headers" || kind is "server streaming" or "duplex"
                                                          select (kind, end)];

    [Theory]
    [MemberData(nameof(Cases))]
    public async Task AFailingCall_ThrowsWhatItThrowsOnABareChannel(string kind, string end)
    {
        using var channel = Server.Create();
        var (client, pool) = NewClient(static options => options.Retry.MaxRetryAttempts = 0);
        await CountAsync(new User.UserClient(channel), kind, end, pool); // what is thrown once, when code runs for the first time
        await CountAsync(client, kind, end, pool);
        var bare = await CountAsync(new User.UserClient(channel), kind, end, pool);
        var pooled = await CountAsync(client, kind, end, pool);
        var told = $"bare {string.Join(", ", bare)}; pooled {string.Join(", ", pooled)}";
        Assert.True(pooled.Keys.Except(bare.Keys).All(static name => name is nameof(RpcException) or nameof(TaskCanceledException)), told);
        Assert.True(pooled.GetValueOrDefault(nameof(RpcException)) <= bare.GetValueOrDefault(nameof(RpcException)) + More(kind, end), told);
    }

    // The library throws a failure once more: where the call ends, or in the reader. Of a stream without headers Grpc.Net.Client throws it twice to
    // who asks for them, and once where it does not fail before it is read from.
    private static int More(string kind, string end) => (kind, end) is ("server streaming" or "duplex", "refused" or "token" or "deadline" or "broken") ? 4 : 1;

    private async Task<IReadOnlyDictionary<string, int>> CountAsync(User.UserClient client, string kind, string end, ChannelPool pool)
    {
        var thrown = new List<string>();
        void OnThrown(object? sender, FirstChanceExceptionEventArgs arguments)
        {
            if (_isCounted.Value)
            {
                lock (thrown)
                {
                    thrown.Add(arguments.Exception.GetType().Name);
                }
            }
        }

        AppDomain.CurrentDomain.FirstChanceException += OnThrown;
        try
        {
            _isCounted.Value = true;
            await RunAsync(client, kind, end);
            await Waiting.Until(() => pool.GetStatistics().CallsInFlight == 0);
        }
        finally
        {
            AppDomain.CurrentDomain.FirstChanceException -= OnThrown;
        }

        lock (thrown)
        {
            return thrown.CountBy(static name => name).ToDictionary();
        }
    }

    private async Task RunAsync(User.UserClient client, string kind, string end)
    {
        using var cancellation = new CancellationTokenSource();
        var options = new CallOptions(cancellationToken: cancellation.Token);
        switch (end)
        {
            case "status":
                Server.ThenStatusInTrailers(StatusCode.FailedPrecondition);
                break;
            case "trailers only":
                Server.ThenStatus(StatusCode.FailedPrecondition);
                break;
            case "unavailable":
                Server.ThenStatus(StatusCode.Unavailable);
                break;
            case "refused":
                Server.ThenRefuse();
                break;
            case "broken":
                Server.ThenBreak();
                break;
            case "broken, behind the headers":
                Server.ThenBreakAfter(new NameReply { Name = "a" });
                break;
            default:
                Server.ThenHang();
                options = end == "deadline" ? options.WithDeadline(DateTime.UtcNow.AddMilliseconds(20)) : options;
                break;
        }

        var calling = CallAsync(client, kind, options);
        await Waiting.Until(() => Server.Requests.Count > 0);
        await (end == "token" ? cancellation.CancelAsync() : Task.CompletedTask);
        await ((Task)calling).ConfigureAwait(ConfigureAwaitOptions.SuppressThrowing);
        Assert.True(calling.IsFaulted);
    }

    private static Task CallAsync(User.UserClient client, string kind, CallOptions options)
    {
        switch (kind)
        {
            case "unary":
                return client.GetNameAsync(new GetNameRequest(), options).ResponseAsync;
            case "blocking unary":
                return Task.Run(() => client.GetName(new GetNameRequest(), options));
            case "client streaming":
                return client.ImportNames(options).ResponseAsync;
            case "server streaming":
                return ReadAsync(client.ListNames(new ListNamesRequest(), options).ResponseStream);
            default:
                return ReadAsync(client.Chat(options).ResponseStream);
        }

        static async Task ReadAsync<T>(IAsyncStreamReader<T> responses)
        {
            while (await responses.MoveNext(CancellationToken.None))
            {
            }
        }
    }
}

using System.Diagnostics;
using System.Runtime.ExceptionServices;
using Grpc.Core;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.Tests.Calls;

/// <summary>
/// The exceptions that are thrown in a call that fails, whoever catches them, beside those on a bare channel. The library throws none of its
/// own, and has Grpc.Net.Client throw no more than a bare channel. A call that blocks throws once: it has no task that could fail.
/// </summary>
[Collection(nameof(FirstChanceTests))]
public sealed class FirstChanceOfFailuresTests : ScriptedCalls
{
    private readonly AsyncLocal<bool> _isCounted = new(); // what other tests have left over throws elsewhere

    public static TheoryData<string, string> Cases => [.. from kind in (string[])["unary", "blocking unary", "client streaming", "server streaming", "duplex"]
                                                          from end in (string[])["status", "trailers only", "unavailable", "refused", "token", "deadline", "broken", "broken, behind the headers"]
                                                          where end != "broken, behind the headers" || kind is "server streaming" or "duplex"
                                                          select (kind, end),
                                                          ("headers", "status"), ("headers", "trailers only"), ("headers", "unavailable"), ("headers", "refused"),
                                                          ("writes behind the end", "trailers only")];

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
        var told = $"bare {bare}; pooled {pooled}";
        Assert.True(pooled.ByTheLibrary.Count == (kind == "blocking unary" ? 1 : 0), told);
        if (!IsEitherWay(kind, end))
        {
            Assert.True(bare.ToString() == pooled.ToString(), told);
        }
    }

    // How often Grpc.Net.Client itself throws depends on which of two threads is first there: that of the call, and the one that ends it.
    private static bool IsEitherWay(string kind, string end) =>
        end is "token" or "deadline" || (kind is "server streaming" or "duplex" && end is "refused" or "broken");

    // The first method outside of the framework: whoever throws, or awaits what has failed.
    private static bool IsThrownByLibrary() =>
        new StackTrace(2).GetFrames().Select(static frame => frame.GetMethod()?.DeclaringType).FirstOrDefault(
            static type => type is not null && type.Assembly.GetName().Name is { } name && !name.StartsWith("System.", StringComparison.Ordinal))
            ?.Assembly == typeof(ChannelPool).Assembly;

    private async Task<Thrown> CountAsync(User.UserClient client, string kind, string end, ChannelPool pool)
    {
        var thrown = new Thrown();
        void OnThrown(object? sender, FirstChanceExceptionEventArgs arguments)
        {
            if (_isCounted.Value)
            {
                lock (thrown)
                {
                    (IsThrownByLibrary() ? thrown.ByTheLibrary : thrown.ByOthers).Add(arguments.Exception.GetType().Name);
                }
            }
        }

        AppDomain.CurrentDomain.FirstChanceException += OnThrown;
        try
        {
            _isCounted.Value = true;
            Script(end);

            // A deadline counts from the start, and may come before the request does: then there is a later one.
            for (var deadline = TimeSpan.FromMilliseconds(20); !await RunAsync(client, kind, end, deadline); deadline *= 4)
            {
                lock (thrown)
                {
                    thrown.ByTheLibrary.Clear();
                    thrown.ByOthers.Clear();
                }
            }

            await Waiting.Until(() => pool.GetStatistics().CallsInFlight == 0);
        }
        finally
        {
            AppDomain.CurrentDomain.FirstChanceException -= OnThrown;
        }

        lock (thrown)
        {
            return thrown;
        }
    }

    private void Script(string end)
    {
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
                break;
        }
    }

    // Whether the request came before the end of the call.
    private async Task<bool> RunAsync(User.UserClient client, string kind, string end, TimeSpan deadline)
    {
        using var cancellation = new CancellationTokenSource();
        var options = new CallOptions(cancellationToken: cancellation.Token);
        var sent = Server.Requests.Count;
        var calling = CallAsync(client, kind, end == "deadline" ? options.WithDeadline(DateTime.UtcNow + deadline) : options);
        await Waiting.Until(() => Server.Requests.Count > sent || (end == "deadline" && calling.IsCompleted));
        var came = Server.Requests.Count > sent;
        await (end == "token" ? cancellation.CancelAsync() : Task.CompletedTask);
        await ((Task)calling).ConfigureAwait(ConfigureAwaitOptions.SuppressThrowing);
        Assert.True(calling.IsFaulted);
        return came;
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
            case "headers":
                return client.GetNameAsync(new GetNameRequest(), options).ResponseHeadersAsync.ContinueWith(
                    static headers => headers.IsFaulted ? headers : throw new InvalidOperationException("it was to fail"), TaskScheduler.Default).Unwrap();
            case "writes behind the end":
                return WriteAsync(client.Chat(options));
            case "server streaming":
                return ReadAsync(client.ListNames(new ListNamesRequest(), options).ResponseStream);
            default:
                return ReadAsync(client.Chat(options).ResponseStream);
        }

        static async Task WriteAsync(AsyncDuplexStreamingCall<ChatMessage, ChatMessage> chat)
        {
            var reading = chat.ResponseStream.MoveNext(CancellationToken.None);
            await ((Task)reading).ConfigureAwait(ConfigureAwaitOptions.SuppressThrowing);
            for (var i = 0; i < 3; i++)
            {
                await chat.RequestStream.WriteAsync(new ChatMessage()).ConfigureAwait(ConfigureAwaitOptions.SuppressThrowing);
            }

            await reading;
        }

        static async Task ReadAsync<T>(IAsyncStreamReader<T> responses)
        {
            while (await responses.MoveNext(CancellationToken.None))
            {
            }
        }
    }

    private sealed record Thrown
    {
        public List<string> ByTheLibrary { get; } = [];
        public List<string> ByOthers { get; } = [];

        // A blocking call has its one whoever throws it.
        public override string ToString() => string.Join(
            ", ", ByOthers.Concat(ByTheLibrary).CountBy(static name => name).OrderBy(static count => count.Key, StringComparer.Ordinal));
    }
}

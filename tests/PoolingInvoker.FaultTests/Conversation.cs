using Grpc.Core;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.FaultTests;

/// <summary>How far a call has come when the fault strikes.</summary>
internal enum Point
{
    /// <summary>The server has the whole request, and has answered nothing.</summary>
    Request,

    /// <summary>The server has the headers of a stream of requests.</summary>
    BeforeWrite,

    /// <summary>The server has the first one of a stream of requests, and has answered nothing.</summary>
    AfterWrite,

    /// <summary>The client has the first one of a stream of responses.</summary>
    AfterResponse,
}

/// <summary>A column of the table.</summary>
internal sealed record Column(string Title, Point Point, bool IsIdempotent, Func<Conversation, Task> Call)
{
    public const string IdempotentUnary = "GetName";

    public static IReadOnlyList<Column> All { get; } =
    [
        new(IdempotentUnary, Point.Request, IsIdempotent: true, static call => call.GetName()),
        new("Rename", Point.Request, IsIdempotent: false, static call => call.Rename()),
        new("ListNames, before a response", Point.Request, IsIdempotent: true, static call => call.ListNames(Point.Request)),
        new("ListNames, after the 1st response", Point.AfterResponse, IsIdempotent: true, static call => call.ListNames(Point.AfterResponse)),
        new("ImportNames, before a request", Point.BeforeWrite, IsIdempotent: false, static call => call.ImportNames(Point.BeforeWrite)),
        new("ImportNames, after the 1st request", Point.AfterWrite, IsIdempotent: false, static call => call.ImportNames(Point.AfterWrite)),
        new("Chat, before a request", Point.BeforeWrite, IsIdempotent: true, static call => call.Chat(Point.BeforeWrite)),
        new("Chat, after the 1st request", Point.AfterWrite, IsIdempotent: true, static call => call.Chat(Point.AfterWrite)),
        new("Chat, after the 1st response", Point.AfterResponse, IsIdempotent: true, static call => call.Chat(Point.AfterResponse)),
    ];

    /// <summary>What the script of the server calls the point.</summary>
    public string At => Point switch
    {
        Point.BeforeWrite => "headers",
        Point.AfterResponse => "response",
        _ => "request",
    };
}

/// <summary>
/// One call: it comes to a point, a fault strikes there, and it goes on as if it knew nothing of it. When a write fails, it says that its
/// requests are complete, and looks at the response. A call that ends without an exception has got all that it should get.
/// </summary>
/// <param name="client">The client.</param>
/// <param name="options">The options of the call.</param>
/// <param name="strike">Waits until the server has come to the point, and lets the fault strike there.</param>
/// <param name="notice">Waits until the client has noticed: the task is done, or there is another attempt.</param>
internal sealed class Conversation(User.UserClient client, CallOptions options, Func<Task> strike, Func<Task, Task> notice) : IDisposable
{
    private IDisposable? _call;

    /// <summary>What the first write threw that failed.</summary>
    public Exception? WriteFailure { get; private set; }

    public async Task GetName()
    {
        var call = Keep(client.GetNameAsync(new GetNameRequest { Id = 7 }, options));
        await strike();
        Assert.Equal("user-7", (await call.ResponseAsync.Soon()).Name);
    }

    public async Task Rename()
    {
        var call = Keep(client.RenameAsync(new RenameRequest { Id = 7, Name = "Ada" }, options));
        await strike();
        await call.ResponseAsync.Soon();
    }

    public async Task ListNames(Point point)
    {
        const int Count = 3;
        var call = Keep(client.ListNames(new ListNamesRequest { Count = Count }, options));
        for (var id = 0; id < Count; id++)
        {
            var reading = call.ResponseStream.MoveNext(CancellationToken.None);
            if (id == (point == Point.Request ? 0 : 1))
            {
                await strike();
            }

            Require(await reading.Soon());
            Assert.Equal(id, call.ResponseStream.Current.Id);
        }

        Assert.False(await call.ResponseStream.MoveNext(CancellationToken.None).Soon());
    }

    public async Task ImportNames(Point point)
    {
        const int Count = 3;
        var call = Keep(client.ImportNames(options));
        for (var id = 0; id < Count && WriteFailure is null; id++)
        {
            if (id == (point == Point.BeforeWrite ? 0 : 1))
            {
                await strike();
                await notice(call.ResponseAsync);
            }

            await Write(call.RequestStream, new ImportNameRequest { Id = id });
        }

        await Try(call.RequestStream.CompleteAsync);
        Require((await call.ResponseAsync.Soon()).Imported == Count);
    }

    public async Task Chat(Point point)
    {
        const int Count = 3;
        var call = Keep(client.Chat(options));
        for (var id = 0; id < Count; id++)
        {
            var reading = call.ResponseStream.MoveNext(CancellationToken.None);
            var message = new ChatMessage { Text = $"{id}" };
            if (point == Point.AfterWrite)
            {
                await Write(call.RequestStream, message);
            }

            if (id == (point == Point.AfterResponse ? 1 : 0))
            {
                await strike();
                await notice(reading);
            }

            if (point != Point.AfterWrite)
            {
                await Write(call.RequestStream, message);
            }

            if (WriteFailure is not null)
            {
                await Try(call.RequestStream.CompleteAsync);
            }

            Require(await reading.Soon());
            Assert.Equal(message.Text, call.ResponseStream.Current.Text);
        }

        await Try(call.RequestStream.CompleteAsync);
        Assert.False(await call.ResponseStream.MoveNext(CancellationToken.None).Soon());
    }

    public void Dispose() => _call?.Dispose();

    private TCall Keep<TCall>(TCall call)
        where TCall : IDisposable
    {
        _call = call;
        return call;
    }

    // A call may end OK without requests that the caller has written only if the caller was told.
    private void Require(bool complete)
    {
        if (!complete)
        {
            throw new InvalidDataException("The call is OK, and messages are missing.", WriteFailure);
        }
    }

    private Task Write<TRequest>(IClientStreamWriter<TRequest> stream, TRequest request) => Try(() => stream.WriteAsync(request));

    // How the call ends is asked of its response.
    private async Task Try(Func<Task> write)
    {
        try
        {
            await write().Soon();
        }
        catch (Exception exception) when (exception is RpcException or IOException or HttpRequestException or InvalidOperationException)
        {
            WriteFailure ??= exception;
        }
    }
}

using System.Text;
using Grpc.Core;
using PoolingInvoker.Testing;

namespace PoolingInvoker.ContractTests;

/// <summary>What ends a call, and how far it had come.</summary>
internal sealed record SurfaceEnd(string Title, Cause By, bool AfterMessage, string Then = "")
{
    public static IReadOnlyList<SurfaceEnd> All =>
    [
        new("OK", Cause.Server, AfterMessage: true, Ending.Response),
        new("an error status", Cause.Server, AfterMessage: true, Ending.ErrorAfterHeaders),
        new("an error status", Cause.Server, AfterMessage: false, Ending.ErrorAfterHeaders),
        new("trailers-only", Cause.Server, AfterMessage: false, Ending.TrailersOnlyError),
        .. new[] { true, false }.SelectMany(static after => new SurfaceEnd[]
        {
            new("its token", Cause.Token, after),
            new("its deadline", Cause.Deadline, after),
            new("Dispose", Cause.Dispose, after),
            new("connection lost", Cause.Server, after, Ending.ConnectionLost),
            new("channel or pool disposed", Cause.ChannelDisposed, after),
        }),
    ];

    /// <summary>Whether it ends what other calls need.</summary>
    public bool EndsOthers => By == Cause.ChannelDisposed || Then == Ending.ConnectionLost;

    /// <summary>Whether the server has sent a message of a stream before.</summary>
    public bool HasMessageOf(MethodType kind) => AfterMessage && kind is MethodType.ServerStreaming or MethodType.DuplexStreaming;

    /// <summary>A call with one response has none before its end.</summary>
    public bool IsOf(MethodType kind) => !AfterMessage || Then == Ending.Response || kind is MethodType.ServerStreaming or MethodType.DuplexStreaming;
}

public enum Cause
{
    Server,
    Token,
    Deadline,
    Dispose,
    ChannelDisposed,
}

/// <summary>When a member is called.</summary>
internal enum Moment
{
    /// <summary>Before the end comes; what it gives is awaited behind it.</summary>
    Before,

    /// <summary>Right after the caller has ended the call, on the same thread.</summary>
    Ended,

    /// <summary>When the response has been awaited, or the responses read to their end.</summary>
    Seen,
}

/// <summary>What is asked of a member.</summary>
/// <param name="Name">Its name.</param>
/// <param name="Call">The call of it.</param>
/// <param name="Waits">Whether that may last until the end of the call.</param>
internal sealed record Member(string Name, Func<SurfaceCall, Task<string>> Call, bool Waits = false)
{
    public bool IsWrite => Name.StartsWith("Write", StringComparison.Ordinal) || Name == "CompleteAsync";
}

/// <summary>A call object, whatever its kind, and what its members give.</summary>
internal sealed class SurfaceCall : IDisposable
{
    private static readonly Marshaller<string> Text = Marshallers.Create(Encoding.UTF8.GetBytes, Encoding.UTF8.GetString);
    public const string LargeWrite = "WriteAsync, more than is taken";

    private static readonly string[] InternalCalls = ["Grpc.Net.Client.Internal.GrpcCall`2", "PoolingInvoker.StreamingCall`2"];
    private static readonly WriteOptions Other = new(WriteFlags.BufferHint);

    private readonly CancellationToken _token;
    private readonly Func<Task<Metadata>> _headers;
    private readonly Func<Status> _status;
    private readonly Func<Metadata> _trailers;
    private readonly Action _dispose;
    private readonly Task<string>? _response;
    private readonly Func<Task<string>>? _await;
    private readonly IClientStreamWriter<string>? _requests;
    private readonly IAsyncStreamReader<string>? _responses;

    public SurfaceCall(CallInvoker invoker, MethodType kind, CallOptions options)
    {
        _token = options.CancellationToken;
        var method = new Method<string, string>(kind, "contract", kind.ToString(), Text, Text);
        switch (kind)
        {
            case MethodType.Unary:
                var unary = invoker.AsyncUnaryCall(method, null, options, "hello");
                (_headers, _status, _trailers, _dispose) = (() => unary.ResponseHeadersAsync, unary.GetStatus, unary.GetTrailers, unary.Dispose);
                (_response, _await) = (unary.ResponseAsync, async () => await unary);
                break;
            case MethodType.ClientStreaming:
                var client = invoker.AsyncClientStreamingCall(method, null, options);
                (_headers, _status, _trailers, _dispose) = (() => client.ResponseHeadersAsync, client.GetStatus, client.GetTrailers, client.Dispose);
                (_response, _await, _requests) = (client.ResponseAsync, async () => await client, client.RequestStream);
                break;
            case MethodType.ServerStreaming:
                var streaming = invoker.AsyncServerStreamingCall(method, null, options, "hello");
                (_headers, _status, _trailers, _dispose) = (() => streaming.ResponseHeadersAsync, streaming.GetStatus, streaming.GetTrailers, streaming.Dispose);
                _responses = streaming.ResponseStream;
                break;
            default:
                var duplex = invoker.AsyncDuplexStreamingCall(method, null, options);
                (_headers, _status, _trailers, _dispose) = (() => duplex.ResponseHeadersAsync, duplex.GetStatus, duplex.GetTrailers, duplex.Dispose);
                (_requests, _responses) = (duplex.RequestStream, duplex.ResponseStream);
                break;
        }

        _ = _response?.ContinueWith(static response => response.Exception, TaskScheduler.Default);
    }

    /// <summary>The members that a call of a kind has, and what is asked of each.</summary>
    public static IEnumerable<Member> Members(MethodType kind)
    {
        if (kind is MethodType.Unary or MethodType.ClientStreaming)
        {
            yield return new("ResponseAsync", static call => call._response!, Waits: true);
            yield return new("GetAwaiter", static call => call._await!(), Waits: true);
        }

        yield return new("ResponseHeadersAsync", static async call => Describe(await call._headers()), Waits: true);
        yield return new("GetStatus", static call => Task.FromResult(call.Describe(call._status())));
        yield return new("GetTrailers", static call => Task.FromResult(Describe(call._trailers())));
        yield return new("Dispose, and GetStatus", static call =>
        {
            call._dispose();
            return Task.FromResult(call.Describe(call._status()));
        });

        if (kind is MethodType.ClientStreaming or MethodType.DuplexStreaming)
        {
            yield return new("WriteAsync", static call => Done(call._requests!.WriteAsync("hello")));
            yield return new("WriteAsync, with a token", static call => Done(call._requests!.WriteAsync("hello", CancellationToken.None)));
            yield return new("WriteAsync, its token has fired", static call => Done(call._requests!.WriteAsync("hello", new CancellationToken(canceled: true))));
            yield return new(LargeWrite, static call => Done(call._requests!.WriteAsync(new string('x', 2_000_000))), Waits: true);
            yield return new("WriteAsync(null)", static call => Done(call._requests!.WriteAsync(null!)));
            yield return new("CompleteAsync", static call => Done(call._requests!.CompleteAsync()));
            yield return new("WriteOptions", static call =>
            {
                var before = call._requests!.WriteOptions;
                call._requests.WriteOptions = Other;
                return Task.FromResult($"{(before is null ? "null" : before == Other ? "those that were set" : "others")}, {(call._requests.WriteOptions == Other ? "set" : "not set")}");
            });
        }

        if (kind is MethodType.ServerStreaming or MethodType.DuplexStreaming)
        {
            yield return new("MoveNext", static async call => $"{await call._responses!.MoveNext(CancellationToken.None)}", Waits: true);
            yield return new("MoveNext, its token has fired", static async call => $"{await call._responses!.MoveNext(new CancellationToken(canceled: true))}");
            yield return new("Current", static call => Task.FromResult(call._responses!.Current ?? "null"));
        }

        static async Task<string> Done(Task task)
        {
            await task;
            return "done";
        }
    }

    /// <summary>Calls a member, and writes down what it gives or throws.</summary>
    public async Task<string> TellAsync(Member member)
    {
        Task<string> told;
        try
        {
            told = member.Call(this);
        }
        catch (Exception exception)
        {
            return Describe(exception);
        }

        try
        {
            return await told.Soon();
        }
        catch (Exception exception) when (exception is not TimeoutException)
        {
            return Describe(exception);
        }
    }

    public async Task ReadMessageAsync()
    {
        Assert.True(await _responses!.MoveNext(CancellationToken.None).Soon());
        Assert.Equal("one", _responses.Current);
    }

    /// <summary>Awaits the response, or reads the responses to their end.</summary>
    public async Task SeeTheEndAsync()
    {
        try
        {
            await (_response ?? ReadAsync()).Soon();
        }
        catch (Exception exception) when (exception is not TimeoutException)
        {
            // That is how it ended.
        }

        async Task<string> ReadAsync()
        {
            while (await _responses!.MoveNext(CancellationToken.None))
            {
            }

            return "";
        }
    }

    public void Dispose() => _dispose();

    private static string Describe(Metadata metadata) =>
        $"[{string.Join(", ", metadata.Where(static entry => entry.Key is not ("date" or "server")).Select(static entry => $"{entry.Key}={entry.Value}"))}]";

    private string Describe(Status status) => $"{status.StatusCode} '{Detail(status)}'{Causes(status.DebugException)}";

    // What the transport says of a connection that is lost is its own, and not the same each time.
    private static string Detail(Status status) =>
        IsTransport(status.DebugException) && status.Detail.IndexOf(". ", StringComparison.Ordinal) is > 0 and var end ? status.Detail[..(end + 1)] + " …" : status.Detail;

    private static bool IsTransport(Exception? exception) => exception is HttpRequestException or IOException;

    private string Describe(Exception exception) => exception switch
    {
        RpcException rpc => $"{exception.GetType().Name} {Describe(rpc.Status)} {Describe(rpc.Trailers)}",
        ObjectDisposedException { ObjectName: var name } =>
            $"{nameof(ObjectDisposedException)} '{(InternalCalls.Any(call => name.StartsWith(call, StringComparison.Ordinal)) ? "the call" : name)}'",
        InvalidOperationException or ArgumentException => $"{exception.GetType().Name} '{exception.Message}'",
        _ => exception.GetType().Name + Token(exception) + Causes(exception.InnerException),
    };

    private string Causes(Exception? exception) =>
        exception is null ? "" : IsTransport(exception) ? " ← of the transport" : $" ← {exception.GetType().Name}{Token(exception)}{Causes(exception.InnerException)}";

    private string Token(Exception exception) =>
        exception is OperationCanceledException cancelled && cancelled.CancellationToken == _token && _token.CanBeCanceled ? " (the caller's token)" : "";
}

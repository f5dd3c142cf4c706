using System.Text;
using Grpc.Core;
using PoolingInvoker.Testing;

namespace PoolingInvoker.ContractTests;

public enum CallKind
{
    Unary,
    BlockingUnary,
    ClientStreaming,
    ServerStreaming,
    Duplex,
}

/// <summary>Where in its course something is done to a call.</summary>
public enum Point
{
    Never,
    BeforeStart,
    BeforeHeaders,
    AfterHeaders,
    AfterMessage,
    AfterEnd,
}

/// <summary>What is done in one call, from the side of the application.</summary>
public sealed record Scenario(string Ending)
{
    public Point Cancel { get; init; }

    public Point Dispose { get; init; }

    public TimeSpan? Deadline { get; init; }

    public DateTime? AbsoluteDeadline { get; init; }

    public bool Writes { get; init; } = true;

    public bool Reads { get; init; } = true;

    public bool RequestMarshallerThrows { get; init; }

    public bool ResponseMarshallerThrows { get; init; }

    public bool CredentialsThrow { get; init; }

    public bool ReadsHeadersFirst { get; init; }
}

/// <summary>
/// One call from its start to long after its end, written down: what each step gave, which exception, which status. A pool that
/// cannot be told from a bare channel has the same transcript.
/// </summary>
/// <param name="invoker">Makes the call.</param>
/// <param name="kind">What kind of call.</param>
/// <param name="server">Answers it.</param>
/// <param name="standsStill">Waits until the call cannot go on by itself: null waits for the server to say so.</param>
/// <param name="whenOver">Looks at what is left of a call whose end has been seen, before anybody does more with it.</param>
public sealed class Conversation(
    CallInvoker invoker, CallKind kind, ContractServer server, Func<Task>? standsStill = null, Func<Task>? whenOver = null)
{
    private readonly List<string> _transcript = [];
    private readonly CancellationTokenSource _cancellation = new();
    private string _id = Guid.NewGuid().ToString();
    private DateTime _wroteAt;

    /// <summary>What the steps gave.</summary>
    public async Task<IReadOnlyList<string>> RunAsync(Scenario scenario)
    {
        if (scenario.Deadline is not { } length)
        {
            await RunAsync(scenario, scenario.AbsoluteDeadline);
            return _transcript;
        }

        // A deadline that came before the call stood still came too early on this machine: the call is made again with a later one.
        for (; ; length *= 2)
        {
            _transcript.Clear();
            _id = Guid.NewGuid().ToString();
            var deadline = DateTime.UtcNow + length;
            var standing = StandsStillWithinAsync(length);
            await RunAsync(scenario, deadline);
            if (await standing && _wroteAt < deadline)
            {
                return _transcript;
            }
        }
    }

    private async Task<bool> StandsStillWithinAsync(TimeSpan length)
    {
        try
        {
            await (standsStill?.Invoke() ?? server.Reached(_id)).WaitAsync(length);
            return true;
        }
        catch (TimeoutException)
        {
            return false;
        }
    }

    private async Task RunAsync(Scenario scenario, DateTime? deadline)
    {
        if (scenario.Cancel == Point.BeforeStart)
        {
            await _cancellation.CancelAsync();
        }

        var options = new CallOptions(
            new Metadata { { "ending", scenario.Ending }, { "id", _id } },
            deadline,
            _cancellation.Token,
            credentials: scenario.CredentialsThrow ? CallCredentials.FromInterceptor(static (_, _) => throw new FormatException("of the user's")) : null);
        var method = NewMethod(scenario);

        if (kind == CallKind.BlockingUnary)
        {
            var blocking = Task.Run(() => invoker.BlockingUnaryCall(method, null, options, "hello"));
            if (scenario.Cancel is Point.BeforeHeaders or Point.AfterHeaders or Point.AfterMessage)
            {
                await StandsStillAsync();
                await _cancellation.CancelAsync();
            }

            await Step("response", () => ResponseAsync(blocking, scenario));
            return;
        }

        Call call;
        try
        {
            call = Call.Start(invoker, kind, method, options);
        }
        catch (Exception exception)
        {
            _transcript.Add($"start: {Describe(exception)}");
            return;
        }

        if (call.Requests is { } requests && scenario.Writes)
        {
            await Step("write", async () =>
            {
                await requests.WriteAsync("hello", CancellationToken.None);
                return "ok";
            });
            await Step("complete", async () =>
            {
                await requests.CompleteAsync();
                return "ok";
            });
        }

        _wroteAt = DateTime.UtcNow;
        await AtPointAsync(Point.BeforeHeaders, scenario, call);
        if (scenario.ReadsHeadersFirst || scenario.Cancel is Point.AfterHeaders or Point.AfterMessage || scenario.Dispose is Point.AfterHeaders or Point.AfterMessage)
        {
            await Step("headers", () => HeadersOf(call));
        }

        await AtPointAsync(Point.AfterHeaders, scenario, call);
        if (call.Responses is not null && (scenario.Cancel == Point.AfterMessage || scenario.Dispose == Point.AfterMessage))
        {
            await MoveNextAsync(call.Responses);
        }

        await AtPointAsync(Point.AfterMessage, scenario, call);
        if (scenario.Reads)
        {
            await ReadAsync(call, scenario);
        }
        else
        {
            // Nobody reads: the end shows in the status alone.
            await Waiting.Until(() => !Sync(() => call.GetStatus().StatusCode.ToString()).StartsWith(nameof(InvalidOperationException), StringComparison.Ordinal));
        }

        await (whenOver?.Invoke() ?? Task.CompletedTask);
        After(call);
        await Step("headers in the end", () => HeadersOf(call));
        if (call.Responses is not null)
        {
            await MoveNextAsync(call.Responses);
        }

        if (call.Requests is not null)
        {
            await Step("write in the end", async () =>
            {
                await call.Requests.WriteAsync("late");
                return "ok";
            });
        }

        call.Dispose();
        call.Dispose();
        After(call);
    }

    private async Task ReadAsync(Call call, Scenario scenario)
    {
        if (call.Response is not null)
        {
            await Step("response", () => ResponseAsync(call.Response, scenario));
            return;
        }

        while (await MoveNextAsync(call.Responses!))
        {
        }
    }

    private async Task AtPointAsync(Point point, Scenario scenario, Call call)
    {
        if (scenario.Cancel != point && scenario.Dispose != point)
        {
            return;
        }

        await StandsStillAsync();
        After(call); // nothing can have ended it
        if (scenario.Cancel == point)
        {
            await _cancellation.CancelAsync();
        }
        else
        {
            call.Dispose();
        }
    }

    private Task StandsStillAsync() => (standsStill?.Invoke() ?? server.Reached(_id)).Soon();

    private void After(Call call)
    {
        _transcript.Add($"status: {Sync(() => Describe(call.GetStatus()))}");
        _transcript.Add($"trailers: {Sync(() => Describe(call.GetTrailers()))}");
    }

    private async Task<bool> MoveNextAsync(IAsyncStreamReader<string> responses)
    {
        var moved = await Step("move next", async () => (await responses.MoveNext(CancellationToken.None)).ToString());
        _transcript.Add($"current: {responses.Current}");
        server.HasRead(_id);
        return moved == bool.TrueString;
    }

    private async Task<string> Step(string name, Func<Task<string>> step)
    {
        string result;
        try
        {
            result = await step().Soon();
        }
        catch (TimeoutException)
        {
            throw;
        }
        catch (Exception exception)
        {
            result = Describe(exception);
        }

        _transcript.Add($"{name}: {result}");
        return result;
    }

    private string Sync(Func<string> step)
    {
        try
        {
            return step();
        }
        catch (Exception exception)
        {
            return Describe(exception);
        }
    }

    private static async Task<string> HeadersOf(Call call) => Describe(await call.ResponseHeadersAsync());

    private static string Describe(Metadata metadata) =>
        string.Join(", ", metadata.Where(static entry => entry.Key is not ("date" or "server")).Select(static entry => $"{entry.Key}={entry.Value}"));

    private string Describe(Status status) => $"{status.StatusCode} '{status.Detail}'{Causes(status.DebugException)}";

    // Ended by the caller between the headers and the response, the call on a bare channel ends as one that is disposed or cancelled,
    // or stumbles over a response that is: which, depends on how far it has come.
    private Task<string> ResponseAsync(Task<string> response, Scenario scenario) =>
        scenario.Dispose == Point.AfterHeaders || scenario.Cancel == Point.AfterHeaders ? EndedByCaller(response) : response;

    private async Task<string> EndedByCaller(Task<string> response)
    {
        var exception = await Assert.ThrowsAsync<RpcException>(() => response);
        return exception is { StatusCode: StatusCode.Cancelled } or { StatusCode: StatusCode.Internal or StatusCode.Unavailable, Status.DebugException: not null }
            ? "ended by the caller"
            : Describe(exception);
    }

    private string Describe(Exception exception) => exception switch
    {
        RpcException rpc => $"{exception.GetType().Name} {Describe(rpc.Status)} [{Describe(rpc.Trailers)}]",
        ObjectDisposedException => nameof(ObjectDisposedException),
        InvalidOperationException => $"{nameof(InvalidOperationException)} {exception.Message}",
        _ => exception.GetType().Name + Token(exception) + Causes(exception.InnerException),
    };

    private string Causes(Exception? exception)
    {
        var causes = new StringBuilder();
        for (; exception is not null; exception = exception.InnerException)
        {
            causes.Append(" <- ").Append(exception.GetType().Name).Append(Token(exception));
        }

        return causes.ToString();
    }

    private string Token(Exception exception) =>
        exception is OperationCanceledException canceled && canceled.CancellationToken == _cancellation.Token ? " (the caller's token)" : "";

    private Method<string, string> NewMethod(Scenario scenario) => new(
        kind switch
        {
            CallKind.ClientStreaming => MethodType.ClientStreaming,
            CallKind.ServerStreaming => MethodType.ServerStreaming,
            CallKind.Duplex => MethodType.DuplexStreaming,
            _ => MethodType.Unary,
        },
        "contract",
        kind.ToString(),
        scenario.RequestMarshallerThrows ? Marshallers.Create<string>(static (_, _) => throw new FormatException("of the user's"), static _ => "") : Text,
        scenario.ResponseMarshallerThrows ? Marshallers.Create<string>(static (_, _) => { }, static _ => throw new FormatException("of the user's")) : Text);

    private static readonly Marshaller<string> Text = Marshallers.Create(Encoding.UTF8.GetBytes, Encoding.UTF8.GetString);

    /// <summary>The four kinds of call objects as one.</summary>
    private sealed record Call(
        Func<Task<Metadata>> ResponseHeadersAsync, Func<Status> GetStatus, Func<Metadata> GetTrailers, Action Dispose)
    {
        public Task<string>? Response { get; private init; }

        public IClientStreamWriter<string>? Requests { get; private init; }

        public IAsyncStreamReader<string>? Responses { get; private init; }

        public static Call Start(CallInvoker invoker, CallKind kind, Method<string, string> method, CallOptions options)
        {
            switch (kind)
            {
                case CallKind.Unary:
                    var unary = invoker.AsyncUnaryCall(method, null, options, "hello");
                    return new Call(() => unary.ResponseHeadersAsync, unary.GetStatus, unary.GetTrailers, unary.Dispose) { Response = unary.ResponseAsync };
                case CallKind.ClientStreaming:
                    var client = invoker.AsyncClientStreamingCall(method, null, options);
                    return new Call(() => client.ResponseHeadersAsync, client.GetStatus, client.GetTrailers, client.Dispose) { Response = client.ResponseAsync, Requests = client.RequestStream };
                case CallKind.ServerStreaming:
                    var streaming = invoker.AsyncServerStreamingCall(method, null, options, "hello");
                    return new Call(() => streaming.ResponseHeadersAsync, streaming.GetStatus, streaming.GetTrailers, streaming.Dispose) { Responses = streaming.ResponseStream };
                default:
                    var duplex = invoker.AsyncDuplexStreamingCall(method, null, options);
                    return new Call(() => duplex.ResponseHeadersAsync, duplex.GetStatus, duplex.GetTrailers, duplex.Dispose) { Requests = duplex.RequestStream, Responses = duplex.ResponseStream };
            }
        }
    }
}

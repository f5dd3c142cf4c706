using Grpc.Core;

namespace PoolingInvoker;

/// <summary>A call on a channel, of whichever kind, or an <see cref="EndedCall"/>: what can be asked of it is asked in one way.</summary>
internal readonly struct InnerCall
{
    private readonly object _call;
    private readonly Members _members;

    private InnerCall(object call, Members members) => (_call, _members) = (call, members);

    public Task<Metadata> ResponseHeadersAsync => _members.Headers(_call);

    public static InnerCall Of<TResponse>(AsyncUnaryCall<TResponse> call) => new(call, Kind<TResponse>.Unary);

    public static InnerCall Of<TResponse>(AsyncClientStreamingCall<ReplayableRequest, TResponse> call) => new(call, Kind<TResponse>.ClientStreaming);

    public static InnerCall Of<TResponse>(AsyncServerStreamingCall<TResponse> call) => new(call, Kind<TResponse>.ServerStreaming);

    public static InnerCall Of<TResponse>(AsyncDuplexStreamingCall<ReplayableRequest, TResponse> call) => new(call, Kind<TResponse>.Duplex);

    public static InnerCall Of(EndedCall call) => new(call, EndedCall.Members);

    public Status GetStatus() => _members.Status(_call);

    public Metadata GetTrailers() => _members.Trailers(_call);

    public void Dispose() => ((IDisposable)_call).Dispose();

    /// <summary>
    /// The same on a thread that is not the caller's, such as that of a timer: what callbacks throw that handlers of the user's have
    /// registered with the token of the call ends here.
    /// </summary>
    public void DisposeQuietly()
    {
        try
        {
            Dispose();
        }
        catch (AggregateException)
        {
        }
    }

    /// <summary>Whether the call is over, also if nobody reads it. A call that is not throws inside.</summary>
    public bool IsOver()
    {
        try
        {
            _ = GetStatus();
            return true;
        }
        catch (InvalidOperationException)
        {
            return false;
        }
    }

    internal sealed record Members(Func<object, Task<Metadata>> Headers, Func<object, Status> Status, Func<object, Metadata> Trailers);

    private static class Kind<TResponse>
    {
        public static readonly Members Unary = Of<AsyncUnaryCall<TResponse>>(
            static call => call.ResponseHeadersAsync, static call => call.GetStatus(), static call => call.GetTrailers());

        public static readonly Members ClientStreaming = Of<AsyncClientStreamingCall<ReplayableRequest, TResponse>>(
            static call => call.ResponseHeadersAsync, static call => call.GetStatus(), static call => call.GetTrailers());

        public static readonly Members ServerStreaming = Of<AsyncServerStreamingCall<TResponse>>(
            static call => call.ResponseHeadersAsync, static call => call.GetStatus(), static call => call.GetTrailers());

        public static readonly Members Duplex = Of<AsyncDuplexStreamingCall<ReplayableRequest, TResponse>>(
            static call => call.ResponseHeadersAsync, static call => call.GetStatus(), static call => call.GetTrailers());

        private static Members Of<TCall>(Func<TCall, Task<Metadata>> headers, Func<TCall, Status> status, Func<TCall, Metadata> trailers) =>
            new(call => headers((TCall)call), call => status((TCall)call), call => trailers((TCall)call));
    }
}

/// <summary>A call that ended without an attempt, or with what is not the end of one: what it ended with, or null if that is a success.</summary>
internal sealed class EndedCall(Exception? exception) : IDisposable
{
    public static readonly InnerCall.Members Members = new(
        static call => ((EndedCall)call).Exception is { } exception ? Task.FromException<Metadata>(exception) : Task.FromResult<Metadata>([]),
        static call => ((EndedCall)call).Status,
        static call => ((EndedCall)call).Trailers);

    public Exception? Exception => exception;

    private Status Status => exception switch
    {
        null => Status.DefaultSuccess,
        RpcException { Status: var status } => status,
        _ => new Status(StatusCode.Cancelled, string.Empty, exception),
    };

    private Metadata Trailers => exception switch
    {
        null => [],
        RpcException { Trailers: { Count: > 0 } trailers } => trailers,
        _ => throw CallErrors.NoTrailers,
    };

    public void Dispose()
    {
    }
}

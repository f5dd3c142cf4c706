using Grpc.Core;
using Polly;
using Polly.CircuitBreaker;
using Polly.Timeout;

namespace PoolingInvoker;

/// <summary>What a caller sees of failures that are not an attempt's own: statuses as a bare channel gives them, the cause inside.</summary>
internal static class CallErrors
{
    public static Status Disposed => new(StatusCode.Cancelled, "gRPC call disposed.");

    public static Status Cancelled(CancellationToken token) =>
        new(StatusCode.Cancelled, "Call canceled by the client.", new OperationCanceledException(token));

    public static Status DeadlineExceeded(Exception? cause = null) => new(StatusCode.DeadlineExceeded, string.Empty, cause);

    /// <summary>Why no channel could be had.</summary>
    public static NoChannelException NoChannel(Exception cause) => cause switch
    {
        TimeoutException => new(new Status(StatusCode.ResourceExhausted, cause.Message, cause), isTransient: false),
        ObjectDisposedException => new(Disposed, isTransient: false),
        TooManyWaitingException => new(new Status(StatusCode.ResourceExhausted, cause.Message, cause), isTransient: false),
        _ => Unavailable(cause),
    };

    /// <summary>A channel that had been disposed when the call was to be started on it, by whoever else has it.</summary>
    public static NoChannelException Unavailable(Exception cause) => new(new Status(StatusCode.Unavailable, cause.Message, cause), isTransient: true);

    /// <summary>The exception that a pipeline ended with, as users of gRPC know it.</summary>
    public static RpcException FromPipeline(Exception exception) => exception is RpcException { Status: var given, Trailers: var trailers } ? new(given, trailers) : new(exception switch
    {
        TimeoutRejectedException => DeadlineExceeded(exception),
        BrokenCircuitException => new Status(StatusCode.Unavailable, exception.Message, exception),
        ExecutionRejectedException => new Status(StatusCode.ResourceExhausted, exception.Message, exception),
        OperationCanceledException => new Status(StatusCode.Cancelled, exception.Message, exception),
        _ => new Status(StatusCode.Internal, $"The resilience pipeline ended the call with {exception.GetType().Name}: {exception.Message}", exception),
    });
}

namespace PoolingInvoker;

/// <summary>What a caller sees of failures that are not an attempt's own: statuses and texts as a bare channel gives them, the cause inside.</summary>
internal static class CallErrors
{
    public static Status Disposed => new(StatusCode.Cancelled, "gRPC call disposed.");
    public static InvalidOperationException NoStatus => new("Unable to get the status because the call is not complete.");
    public static InvalidOperationException NoTrailers => new("Can't get the call trailers because the call has not completed successfully.");

    public static Status Cancelled(CancellationToken token) =>
        new(StatusCode.Cancelled, "Call canceled by the client.", new OperationCanceledException(token));

    public static Status GivenUp(string reason) =>
        new(StatusCode.Unavailable, $"The pool has given the channel up: {reason}.", new IOException("The pool has ended the call."));

    public static Status DeadlineExceeded(Exception? cause) => new(StatusCode.DeadlineExceeded, string.Empty, cause);

    /// <summary>Why there is no channel. One that is disposed while the pool is not was disposed by whoever else has it.</summary>
    public static NoChannelException NoChannel(Exception cause, ChannelPool pool) => new(cause switch
    {
        ObjectDisposedException when pool.State.IsDisposed => Disposed,
        ChannelPoolExhaustedException => new Status(StatusCode.ResourceExhausted, cause.Message, cause),
        _ => new Status(StatusCode.Unavailable, cause.Message, cause),
    });
}

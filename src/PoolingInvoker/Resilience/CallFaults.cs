using System.Globalization;
using System.Net.Sockets;
using Grpc.Core;

namespace PoolingInvoker;

/// <summary>Whose fault was it, and is it safe to try again. Pure functions of the exception that an attempt ended with.</summary>
internal static class CallFaults
{
    // gRFC A6: what a server asks for, in the trailers of a failed attempt.
    private const string PushbackTrailer = "grpc-retry-pushback-ms";

    // What the balancer of Grpc.Net.Client says of a call that its configuration drops.
    private const string DropTrailer = "grpc-internal-drop-request";

    // How Grpc.Net.Client says that a response ended before its status (as Cancelled, and with no exception inside).
    private const string NoStatus = "No grpc-status found on response.";

    // How it says that the channel could not connect, whatever came of its attempts. A server can say the same of a server behind it, but
    // with no exception inside.
    private const string NotConnected = "Error connecting to subchannel.";

    private const string CallbackMark = "PoolingInvoker.Callback";

    private const long NoError = 0; // the codes of RFC 9113, section 7
    private const long ProtocolError = 1;
    private const long RefusedStream = 7;

    /// <summary>The verdict on an attempt that ended with this exception.</summary>
    /// <param name="exception">The exception.</param>
    /// <param name="isCommitted">Whether the application has seen something of the attempt.</param>
    public static CallFault Judge(Exception exception, bool isCommitted = false)
    {
        var fault = JudgeUncommitted(exception);
        return isCommitted ? fault with { Fate = RequestFate.Committed, IsTransient = false } : fault;
    }

    /// <summary>Whether another attempt could end otherwise: the transport failed, or the server says that it is not available.</summary>
    public static bool IsTransient(Exception exception) => Judge(exception).IsTransient;

    /// <summary>Whether the request provably did not reach a method of a server.</summary>
    public static bool NeverLeft(Exception exception) => Judge(exception).Fate == RequestFate.NeverLeft;

    /// <summary>Whether there was no connection: a call that waits for ready waits for it.</summary>
    public static bool IsNotConnected(Exception exception) =>
        Judge(exception) is { Origin: FaultOrigin.Channel, Fate: RequestFate.NeverLeft, IsTransient: true }
        && exception is RpcException { StatusCode: StatusCode.Unavailable };

    /// <summary>
    /// How long the server asks to be left alone before the next attempt (gRFC A6): null if it does not ask, and
    /// <see cref="Timeout.InfiniteTimeSpan"/> if there shall be none, which a negative or unreadable value says, too.
    /// </summary>
    public static TimeSpan? Pushback(Exception exception)
    {
        var trailers = (exception as RpcException)?.Trailers;
        return trailers?.GetValue(PushbackTrailer) is { } value
            ? int.TryParse(value, NumberStyles.AllowLeadingSign, CultureInfo.InvariantCulture, out var milliseconds) && milliseconds >= 0
                ? TimeSpan.FromMilliseconds(milliseconds)
                : Timeout.InfiniteTimeSpan
            : bool.TryParse(trailers?.GetValue(DropTrailer), out var isDropped) && isDropped ? Timeout.InfiniteTimeSpan
            : null;
    }

    /// <summary>Remembers that a callback of the caller's threw this, whatever it looks like: it says nothing of the channel.</summary>
    public static void MarkAsCallers(Exception exception)
    {
        if (!exception.Data.IsReadOnly)
        {
            exception.Data[CallbackMark] = true;
        }
    }

    private static CallFault JudgeUncommitted(Exception exception)
    {
        switch (exception)
        {
            case NoChannelException { IsTransient: var isTransient }:
                return new CallFault(isTransient ? FaultOrigin.Channel : FaultOrigin.Caller, RequestFate.NeverLeft, isTransient);
            case RpcException { StatusCode: StatusCode.DeadlineExceeded }:
                return new CallFault(FaultOrigin.Caller, RequestFate.MayHaveBeenProcessed, IsTransient: false);
            default:
                break;
        }

        if (IsCallers(exception))
        {
            // Call credentials come before the request.
            return new CallFault(FaultOrigin.Caller, RequestFate.NeverLeft, IsTransient: false);
        }

        var fate = IsNeverLeft(exception) ? RequestFate.NeverLeft : RequestFate.MayHaveBeenProcessed;
        return TransportFailure(exception) switch
        {
            HttpProtocolException { ErrorCode: not (NoError or ProtocolError) } => new CallFault(FaultOrigin.Server, fate, IsTransient: true),
            not null => new CallFault(FaultOrigin.Channel, fate, IsTransient: true),
            _ => exception switch
            {
                RpcException { StatusCode: StatusCode.Cancelled, Status: { DebugException: null, Detail: NoStatus } } =>
                    new CallFault(FaultOrigin.Server, fate, IsTransient: true),
                RpcException { StatusCode: var status, Status.DebugException: null } when status != StatusCode.Cancelled =>
                    new CallFault(FaultOrigin.Server, fate, IsTransient: status == StatusCode.Unavailable),
                RpcException { StatusCode: StatusCode.Unavailable, Status.DebugException: not OperationCanceledException } =>
                    new CallFault(FaultOrigin.Server, fate, IsTransient: true),
                _ => new CallFault(FaultOrigin.Caller, fate, IsTransient: false),
            },
        };
    }

    // No channel, no connection, or a stream that the server refused (RFC 9113, section 8.7: it has not been processed).
    private static bool IsNeverLeft(Exception exception)
    {
        var cause = Cause(exception);

        // A connection that could not be made: bare from the connectivity of GrpcChannel, wrapped from the handler itself. On a
        // connection that was made, socket errors come wrapped in an IOException.
        if (cause is SocketException { SocketErrorCode: not (SocketError.ConnectionReset or SocketError.ConnectionAborted) }
            || exception is RpcException { StatusCode: StatusCode.Unavailable, Status: { Detail: NotConnected, DebugException: not null } }
            || (cause is TimeoutException && exception is RpcException { StatusCode: StatusCode.Unavailable }))
        {
            return true;
        }

        for (var inner = cause; inner is not null; inner = inner.InnerException)
        {
            if (inner is HttpProtocolException { ErrorCode: RefusedStream }
                or HttpRequestException
                {
                    HttpRequestError: HttpRequestError.NameResolutionError or HttpRequestError.ConnectionError
                    or HttpRequestError.SecureConnectionError or HttpRequestError.ProxyTunnelError,
                })
            {
                return true;
            }
        }

        return false;
    }

    private static bool IsCallers(Exception exception) =>
        exception.Data.Contains(CallbackMark) || (exception is RpcException { Status.DebugException: { } cause } && cause.Data.Contains(CallbackMark));

    // The writer of a request stream throws what the transport threw; all else comes inside of an RpcException.
    private static Exception? Cause(Exception exception) => exception switch
    {
        RpcException rpc => rpc.Status.DebugException,
        IOException or HttpRequestException => exception,
        _ => null,
    };

    // A protocol error (a reset stream, a connection that was closed in good order) or else the outermost failure of the transport.
    private static Exception? TransportFailure(Exception exception)
    {
        Exception? failure = null;
        for (var inner = Cause(exception); inner is not null; inner = inner.InnerException)
        {
            switch (inner)
            {
                case OperationCanceledException:
                    return null; // the caller's doing, whatever it broke
                case HttpProtocolException:
                    return inner;
                case HttpRequestException or IOException or SocketException or TimeoutException:
                    failure ??= inner;
                    break;
                default:
                    break;
            }
        }

        return failure;
    }
}

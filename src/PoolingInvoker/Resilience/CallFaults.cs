using System.Net.Sockets;
using Grpc.Core;

namespace PoolingInvoker;

/// <summary>Whose fault was it, and is it safe to try again. Pure functions of the exception that an attempt ended with.</summary>
internal static class CallFaults
{
    private const long RefusedStream = 7; // RFC 9113, section 7

    /// <summary>Whether another attempt could end otherwise: the transport failed, or the server says that it is not available.</summary>
    public static bool IsTransient(Exception exception) => exception switch
    {
        NoChannelException { IsTransient: var transient } => transient,
        RpcException { StatusCode: StatusCode.DeadlineExceeded } => false,
        RpcException { StatusCode: StatusCode.Unavailable } => true,
        _ => TransportFailure(exception) is not null,
    };

    /// <summary>
    /// Whether the request provably did not reach a server: no channel, no connection, or a stream that the server refused
    /// (RFC 9113, section 8.7: a refused stream has not been processed).
    /// </summary>
    public static bool NeverLeft(Exception exception)
    {
        if (exception is NoChannelException)
        {
            return true;
        }

        var cause = Cause(exception);

        // A connection that could not be made: bare from the connectivity of GrpcChannel, wrapped from the handler itself. On a
        // connection that was made, socket errors come wrapped in an IOException.
        if (cause is SocketException { SocketErrorCode: not (SocketError.ConnectionReset or SocketError.ConnectionAborted) }
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

    /// <summary>
    /// Whether the channel is to be replaced: its connection could not be made or has broken. A stream that was reset and a status
    /// that a server sent say nothing against the channel.
    /// </summary>
    public static bool IsChannelFault(Exception exception) =>
        TransportFailure(exception) is not null and not HttpProtocolException;

    /// <summary>Whether a server, or a proxy before it, has answered. A deadline or a cancellation can be of the client's making.</summary>
    public static bool IsAnswer(Exception exception) =>
        exception is RpcException { Status.DebugException: null, StatusCode: not (StatusCode.Cancelled or StatusCode.DeadlineExceeded) };

    /// <summary>Whether there was no connection: a call that waits for ready waits for it.</summary>
    public static bool IsNotConnected(Exception exception) => exception is NoChannelException { IsTransient: true }
        || (exception is RpcException { StatusCode: StatusCode.Unavailable } && NeverLeft(exception) && TransportFailure(exception) is not HttpProtocolException);

    // The writer of a request stream throws what the transport threw; all else comes inside of an RpcException.
    private static Exception? Cause(Exception exception) => exception switch
    {
        RpcException rpc => rpc.Status.DebugException,
        IOException or HttpRequestException => exception,
        _ => null,
    };

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

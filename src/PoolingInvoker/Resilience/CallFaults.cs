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
        RpcException rpc => TransportFailure(rpc) is not null,
        _ => false,
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

        if (exception is not RpcException { Status.DebugException: { } cause })
        {
            return false;
        }

        // A connection that could not be made: bare from the connectivity of GrpcChannel, wrapped from the handler itself. On a
        // connection that was made, socket errors come wrapped in an IOException.
        if (cause is SocketException { SocketErrorCode: not (SocketError.ConnectionReset or SocketError.ConnectionAborted) })
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
        exception is RpcException rpc && TransportFailure(rpc) is not null and not HttpProtocolException;

    /// <summary>Whether a server, or a proxy before it, has answered.</summary>
    public static bool IsAnswer(Exception exception) => exception is RpcException { Status.DebugException: null };

    private static Exception? TransportFailure(RpcException rpc)
    {
        Exception? failure = null;
        for (var inner = rpc.Status.DebugException; inner is not null; inner = inner.InnerException)
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

using System.Net.Sockets;
using Grpc.Core;

namespace PoolingInvoker.Tests.Resilience;

/// <summary>Whose fault was it, and is it safe to try again: the table.</summary>
public sealed class CallFaultsTests
{
    public static TheoryData<string, Exception, bool, bool, bool> Table => new()
    {
        // what, exception, transient, never left, the channel's fault
        { "connect refused, as GrpcChannel says it", Rpc(StatusCode.Unavailable, new SocketException((int)SocketError.ConnectionRefused)), true, true, true },
        { "no route, as GrpcChannel says it", Rpc(StatusCode.Unavailable, new SocketException((int)SocketError.HostUnreachable)), true, true, true },
        { "connect refused, as the handler says it", Rpc(StatusCode.Unavailable, Http(HttpRequestError.ConnectionError, new SocketException((int)SocketError.ConnectionRefused))), true, true, true },
        { "name not found", Rpc(StatusCode.Unavailable, Http(HttpRequestError.NameResolutionError)), true, true, true },
        { "TLS failed", Rpc(StatusCode.Unavailable, Http(HttpRequestError.SecureConnectionError)), true, true, true },
        { "connect timed out", Rpc(StatusCode.Unavailable, new TimeoutException()), true, true, true },
        { "a time-out of the user's", Rpc(StatusCode.Internal, new TimeoutException()), true, false, true },
        { "connection closed", Rpc(StatusCode.Unavailable, Http(HttpRequestError.ResponseEnded, new HttpIOException(HttpRequestError.ResponseEnded))), true, false, true },
        { "connection reset", Rpc(StatusCode.Unavailable, Http(HttpRequestError.Unknown, new IOException("", new SocketException((int)SocketError.ConnectionReset)))), true, false, true },
        { "connection reset, bare", Rpc(StatusCode.Unavailable, new SocketException((int)SocketError.ConnectionReset)), true, false, true },
        { "connection broken under a writer", new IOException("", new SocketException((int)SocketError.ConnectionReset)), true, false, true },
        { "stream refused", Rpc(StatusCode.Unavailable, Http(HttpRequestError.HttpProtocolError, new HttpProtocolException(7, "", null))), true, true, false },
        { "stream reset, CANCEL", Rpc(StatusCode.Cancelled, Http(HttpRequestError.HttpProtocolError, new HttpProtocolException(8, "", null))), true, false, false },
        { "stream reset, INTERNAL_ERROR", Rpc(StatusCode.Internal, Http(HttpRequestError.HttpProtocolError, new HttpProtocolException(2, "", null))), true, false, false },
        { "the server's Unavailable", Rpc(StatusCode.Unavailable), true, false, false },
        { "the server's Internal", Rpc(StatusCode.Internal), false, false, false },
        { "the server's ResourceExhausted", Rpc(StatusCode.ResourceExhausted), false, false, false },
        { "the deadline", Rpc(StatusCode.DeadlineExceeded), false, false, false },
        { "the deadline, told by a reset", Rpc(StatusCode.DeadlineExceeded, Http(HttpRequestError.HttpProtocolError, new HttpProtocolException(8, "", null))), false, false, false },
        { "the caller's token", Rpc(StatusCode.Cancelled, new OperationCanceledException()), false, false, false },
        { "the caller's token, which broke the transport", Rpc(StatusCode.Cancelled, new IOException("", new OperationCanceledException())), false, false, false },
        { "the caller's token, thrown as it is", new OperationCanceledException(), false, false, false },
        { "a marshaller", Rpc(StatusCode.Internal, new FormatException()), false, false, false },
        { "no channel could be made", new NoChannelException(new Status(StatusCode.Unavailable, ""), isTransient: true), true, true, false },
        { "no channel became free", new NoChannelException(new Status(StatusCode.ResourceExhausted, ""), isTransient: false), false, true, false },
    };

    [Theory]
    [MemberData(nameof(Table), DisableDiscoveryEnumeration = true)]
    public void Judge(string what, Exception exception, bool transient, bool neverLeft, bool channelFault)
    {
        Assert.Equal((what, transient, neverLeft, channelFault), (what, CallFaults.IsTransient(exception), CallFaults.NeverLeft(exception), CallFaults.IsChannelFault(exception)));
    }

    [Fact]
    public void AnAnswer_IsWhatCameFromAServer()
    {
        Assert.True(CallFaults.IsAnswer(Rpc(StatusCode.NotFound)));
        Assert.False(CallFaults.IsAnswer(Rpc(StatusCode.Unavailable, new IOException())));
        Assert.False(CallFaults.IsAnswer(new IOException()));
    }

    private static RpcException Rpc(StatusCode status, Exception? cause = null) => new(new Status(status, "", cause));

    private static HttpRequestException Http(HttpRequestError error, Exception? inner = null) => new(error, "", inner);
}

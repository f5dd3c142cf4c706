using System.Net.Sockets;
using Grpc.Core;

namespace PoolingInvoker.Tests.Resilience;

/// <summary>Whose fault was it, and is it safe to try again: the table.</summary>
public sealed class CallFaultsTests
{
    private const FaultOrigin Caller = FaultOrigin.Caller;
    private const FaultOrigin Server = FaultOrigin.Server;
    private const FaultOrigin Channel = FaultOrigin.Channel;
    private const bool NeverLeft = true;
    private const bool Maybe = false;

    public static TheoryData<string, Exception, object, bool, bool> Table => new()
    {
        // what, exception, whose, whether it never left, whether another attempt could end otherwise
        { "connect refused, as GrpcChannel says it", Rpc(StatusCode.Unavailable, new SocketException((int)SocketError.ConnectionRefused)), Channel, NeverLeft, true },
        { "no route, as GrpcChannel says it", Rpc(StatusCode.Unavailable, new SocketException((int)SocketError.HostUnreachable)), Channel, NeverLeft, true },
        { "connect refused, as the handler says it", Rpc(StatusCode.Unavailable, Http(HttpRequestError.ConnectionError, new SocketException((int)SocketError.ConnectionRefused))), Channel, NeverLeft, true },
        { "name not found", Rpc(StatusCode.Unavailable, Http(HttpRequestError.NameResolutionError)), Channel, NeverLeft, true },
        { "TLS failed", Rpc(StatusCode.Unavailable, Http(HttpRequestError.SecureConnectionError)), Channel, NeverLeft, true },
        { "connect timed out", Rpc(StatusCode.Unavailable, new TimeoutException()), Channel, NeverLeft, true },
        { "a time-out of the user's", Rpc(StatusCode.Internal, new TimeoutException()), Channel, Maybe, true },
        { "connection closed", Rpc(StatusCode.Unavailable, Http(HttpRequestError.ResponseEnded, new HttpIOException(HttpRequestError.ResponseEnded))), Channel, Maybe, true },
        { "connection reset", Rpc(StatusCode.Unavailable, Http(HttpRequestError.Unknown, new IOException("", new SocketException((int)SocketError.ConnectionReset)))), Channel, Maybe, true },
        { "connection reset, bare", Rpc(StatusCode.Unavailable, new SocketException((int)SocketError.ConnectionReset)), Channel, Maybe, true },
        { "connection reset while it was made", Rpc(StatusCode.Unavailable, new SocketException((int)SocketError.ConnectionReset), "Error connecting to subchannel."), Channel, NeverLeft, true },
        { "connection broken under a writer", new IOException("", new SocketException((int)SocketError.ConnectionReset)), Channel, Maybe, true },
        { "no answer to a keep-alive ping of the handler's", Rpc(StatusCode.Internal, Protocol(1)), Channel, Maybe, true },
        { "connection closed in good order under the call", Rpc(StatusCode.Internal, Protocol(0)), Channel, Maybe, true },
        { "stream refused", Rpc(StatusCode.Unavailable, Protocol(7)), Server, NeverLeft, true },
        { "stream reset, CANCEL", Rpc(StatusCode.Cancelled, Protocol(8)), Server, Maybe, true },
        { "stream reset, INTERNAL_ERROR", Rpc(StatusCode.Internal, Protocol(2)), Server, Maybe, true },
        { "stream reset, ENHANCE_YOUR_CALM", Rpc(StatusCode.ResourceExhausted, Protocol(11)), Server, Maybe, true },
        { "no trailers", Rpc(StatusCode.Cancelled, detail: "No grpc-status found on response."), Server, Maybe, true },
        { "a gateway without a server", Rpc(StatusCode.Unavailable, detail: "Bad gRPC response. HTTP status code: 502"), Server, Maybe, true },
        { "the server's Unavailable", Rpc(StatusCode.Unavailable), Server, Maybe, true },
        { "the server's Internal", Rpc(StatusCode.Internal), Server, Maybe, false },
        { "the server's ResourceExhausted", Rpc(StatusCode.ResourceExhausted), Server, Maybe, false },
        { "the server's Cancelled", Rpc(StatusCode.Cancelled), Caller, Maybe, false },
        { "the deadline", Rpc(StatusCode.DeadlineExceeded), Caller, Maybe, false },
        { "the deadline, told by a reset", Rpc(StatusCode.DeadlineExceeded, Protocol(8)), Caller, Maybe, false },
        { "the caller's token", Rpc(StatusCode.Cancelled, new OperationCanceledException()), Caller, Maybe, false },
        { "the caller's token, which broke the transport", Rpc(StatusCode.Cancelled, new IOException("", new OperationCanceledException())), Caller, Maybe, false },
        { "the caller's token, thrown as it is", new OperationCanceledException(), Caller, Maybe, false },
        { "a marshaller", Rpc(StatusCode.Internal, new FormatException()), Caller, Maybe, false },
        { "credentials that could not connect", Rpc(StatusCode.Unavailable, Marked(Http(HttpRequestError.ConnectionError))), Caller, NeverLeft, false },
        { "credentials that throw a status", Marked(Rpc(StatusCode.Unavailable)), Caller, NeverLeft, false },
        { "no channel could be made", new NoChannelException(new Status(StatusCode.Unavailable, "")), Channel, NeverLeft, true },
        { "no channel became free", new NoChannelException(new Status(StatusCode.ResourceExhausted, "")), Caller, NeverLeft, false },
    };

    public static TheoryData<string?, string?, TimeSpan?> Pushbacks => new()
    {
        // grpc-retry-pushback-ms, grpc-internal-drop-request, what is asked for
        { null, null, null },
        { "0", null, TimeSpan.Zero },
        { "250", null, TimeSpan.FromMilliseconds(250) },
        { "-1", null, Timeout.InfiniteTimeSpan },
        { "soon", null, Timeout.InfiniteTimeSpan },
        { "", null, Timeout.InfiniteTimeSpan },
        { "99999999999", null, Timeout.InfiniteTimeSpan },
        { null, "True", Timeout.InfiniteTimeSpan },
        { null, "False", null },
        { null, "perhaps", null },
    };

    [Theory]
    [MemberData(nameof(Table), DisableDiscoveryEnumeration = true)]
    public void Judge(string what, Exception exception, object origin, bool neverLeft, bool isTransient)
    {
        var expected = new CallFault((FaultOrigin)origin, neverLeft, isTransient);
        Assert.Equal((what, expected), (what, CallFaults.Judge(exception)));
        Assert.Equal((what, expected), (what, CallFaults.Judge(exception, ConnectionFact.Unknown)));
    }

    // Another client's look the same: of one that a handler of the user's has used, perhaps once the server had answered.
    [Theory]
    [InlineData("Unharmed")]
    [InlineData("UnharmedOrSilent")]
    [InlineData("Lost")]
    [InlineData("NotConnected")]
    [InlineData("NotCompatible")]
    public void WhatIsSeenOfTheTransport_OnlyItsOwnExceptionsSayThatTheCallNeverLeft(string fact)
    {
        Func<Exception>[] failures =
        [
            static () => Http(HttpRequestError.ConnectionError),
            static () => Http(HttpRequestError.NameResolutionError),
            static () => Http(HttpRequestError.SecureConnectionError),
            static () => Http(HttpRequestError.ProxyTunnelError),
            static () => Http(HttpRequestError.VersionNegotiationError),
            static () => Protocol(7),
        ];
        foreach (var failure in failures)
        {
            var (others, own) = (failure(), failure());
            Assert.False(TransportExceptions.Note(own));
            Assert.False(NeverLeftOf(Rpc(StatusCode.Unavailable, others)), others.ToString());
            Assert.True(NeverLeftOf(Rpc(StatusCode.Unavailable, own)), own.ToString());
            Assert.True(NeverLeftOf(Rpc(StatusCode.Unavailable, new InvalidOperationException("of a handler", own))), own.ToString());
            Assert.True(NeverLeftOf(others), "The writer of a request stream throws what the transport threw.");
        }

        bool NeverLeftOf(Exception exception) => CallFaults.Judge(exception, Enum.Parse<ConnectionFact>(fact)).NeverLeft;
    }

    [Theory]
    [MemberData(nameof(Pushbacks))]
    public void Pushback(string? milliseconds, string? drop, TimeSpan? expected)
    {
        var trailers = new Metadata();
        if (milliseconds is not null)
        {
            trailers.Add("grpc-retry-pushback-ms", milliseconds);
        }

        if (drop is not null)
        {
            trailers.Add("grpc-internal-drop-request", drop);
        }

        Assert.Equal(expected, CallFaults.Pushback(new RpcException(new Status(StatusCode.Unavailable, ""), trailers)));
    }

    [Fact]
    public void AnAnswer_IsWhatCameFromAServer()
    {
        Assert.Equal(FaultOrigin.Server, CallFaults.Judge(Rpc(StatusCode.NotFound)).Origin);
        Assert.NotEqual(FaultOrigin.Server, CallFaults.Judge(Rpc(StatusCode.Unavailable, new IOException())).Origin);
        Assert.NotEqual(FaultOrigin.Server, CallFaults.Judge(new IOException()).Origin);
    }

    private static RpcException Rpc(StatusCode status, Exception? cause = null, string detail = "") => new(new Status(status, detail, cause));

    private static HttpRequestException Http(HttpRequestError error, Exception? inner = null) => new(error, "", inner);

    private static HttpRequestException Protocol(long code) => Http(HttpRequestError.HttpProtocolError, new HttpProtocolException(code, "", null));

    private static Exception Marked(Exception exception)
    {
        CallFaults.MarkAsCallers(exception);
        return exception;
    }
}

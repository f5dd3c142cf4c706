using System.Globalization;
using System.Net.Sockets;
using System.Runtime.CompilerServices;

namespace PoolingInvoker;

/// <summary>
/// Whose fault was it, and is it safe to try again. Pure functions of the exception that an attempt ended with, and of what happened to the
/// connections of its channel.
/// </summary>
internal static class CallFaults
{
    private const string PushbackTrailer = "grpc-retry-pushback-ms"; // gRFC A6
    private const string DropTrailer = "grpc-internal-drop-request"; // of the balancer of Grpc.Net.Client

    // How Grpc.Net.Client says that a response ended before its status (as Cancelled, and with no exception inside), and that the channel could
    // not connect. A server can say the latter of a server behind it, but with no exception inside.
    private const string NoStatus = "No grpc-status found on response.";
    private const string NotConnected = "Error connecting to subchannel.";

    private const long NoError = 0; // the codes of RFC 9113, section 7
    private const long ProtocolError = 1;
    private const long RefusedStream = 7;

    // What was found of an exception where the facts were at hand, for those who see the exception alone.
    private static readonly ConditionalWeakTable<Exception, Verdict> Verdicts = [];
    private static readonly ConditionalWeakTable<Exception, object> ThrownByCallers = [];

    /// <summary>The remembered verdict, or what the exception alone says.</summary>
    public static CallFault Judge(Exception exception) =>
        Verdicts.TryGetValue(exception, out var verdict) ? verdict.Fault : Judge(exception, ConnectionFact.Unknown);

    /// <summary>The attempt that ended with this exception, or null: then it came from a strategy, or there was no attempt.</summary>
    public static object? AttemptOf(Exception exception) => Verdicts.TryGetValue(exception, out var verdict) ? verdict.Attempt : null;

    /// <summary>The verdict on an exception, while this happened to the connections of the channel.</summary>
    public static CallFault Judge(Exception exception, ConnectionFact fact)
    {
        var isThrownByCaller = IsThrownByCaller(exception); // as call credentials, which come before the request
        var neverLeft = exception is NoChannelException || isThrownByCaller
            || (exception is not RpcException { StatusCode: StatusCode.DeadlineExceeded } && IsNeverLeft(exception, fact));
        var (origin, isTransient) = (exception, TransportFailure(Cause(exception))) switch
        {
            (NoChannelException { IsTransient: true }, _) => (FaultOrigin.Channel, true),
            (NoChannelException or RpcException { StatusCode: StatusCode.DeadlineExceeded }, _) => (FaultOrigin.Caller, false),
            _ when isThrownByCaller => (FaultOrigin.Caller, false),
            (_, HttpProtocolException { ErrorCode: not (NoError or ProtocolError) }) => (FaultOrigin.Server, true),

            // The handler broke the connection over what it had read, or the data of the call did not get as far as that.
            (_, not null) when fact == ConnectionFact.Unharmed => (FaultOrigin.Caller, false),
            (_, not null and not HttpProtocolException) when fact == ConnectionFact.UnharmedOrSilent => (FaultOrigin.Caller, false),
            (_, not null) => (FaultOrigin.Channel, fact != ConnectionFact.NotCompatible),
            (RpcException { StatusCode: StatusCode.Cancelled, Status: { DebugException: null, Detail: NoStatus } }, _) => (FaultOrigin.Server, true),
            (RpcException { StatusCode: not StatusCode.Cancelled and var status, Status.DebugException: null }, _) =>
                (FaultOrigin.Server, status == StatusCode.Unavailable),
            (RpcException { StatusCode: StatusCode.Unavailable, Status.DebugException: not (OperationCanceledException or IOException) }, _)
                when fact == ConnectionFact.Unknown => (FaultOrigin.Server, true),
            _ => (FaultOrigin.Caller, false),
        };
        return new CallFault(origin, neverLeft, isTransient);
    }

    /// <summary>The first verdict, which is remembered. A call with headers over which servers break connections is not sent again.</summary>
    public static CallFault JudgeOnce(Exception exception, ConnectionFact fact, Metadata? headers, object attempt) => Verdicts.GetValue(exception, thrown =>
    {
        var fault = Judge(thrown, fact);
        return new Verdict(headers is not null && headers.Any(HasControls) ? fault with { IsTransient = false } : fault, attempt);
    }).Fault;

    /// <summary>Whether there was no connection: a call that waits for ready waits for it.</summary>
    public static bool IsNotConnected(Exception exception) =>
        Judge(exception) is { Origin: FaultOrigin.Channel, NeverLeft: true, IsTransient: true }
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
    public static void MarkAsCallers(Exception exception) => ThrownByCallers.AddOrUpdate(exception, exception.GetType());

    // No channel, no connection, or a stream that the server refused (RFC 9113, section 8.7: it has not been processed). Where the transport is
    // seen it has to say so itself.
    private static bool IsNeverLeft(Exception exception, ConnectionFact fact)
    {
        var cause = Cause(exception);

        // Grpc.Net.Client connects by itself over a transport of the user's own: its socket errors are bare. On a connection that was made they
        // come wrapped in an IOException.
        return fact == ConnectionFact.Unknown
            ? IsRefused(cause)
                || cause is SocketException { SocketErrorCode: not (SocketError.ConnectionReset or SocketError.ConnectionAborted) }
                || exception is RpcException { StatusCode: StatusCode.Unavailable, Status: { Detail: NotConnected, DebugException: not null } }
                || (cause is TimeoutException && exception is RpcException { StatusCode: StatusCode.Unavailable })
            : IsRefused(cause) && (exception is not RpcException || TransportExceptions.IsOne(cause));
    }

    private static bool IsRefused(Exception? exception) => exception
        is HttpProtocolException { ErrorCode: RefusedStream }
        or HttpRequestException
        {
            HttpRequestError: HttpRequestError.NameResolutionError or HttpRequestError.ConnectionError
            or HttpRequestError.SecureConnectionError or HttpRequestError.ProxyTunnelError or HttpRequestError.VersionNegotiationError,
        }
        || (exception?.InnerException is { } inner && IsRefused(inner));

    // RFC 9113, section 8.2.1: a field value must not contain NUL, CR or LF.
    private static bool HasControls(Metadata.Entry entry) => !entry.IsBinary && entry.Value.AsSpan().IndexOfAny('\0', '\r', '\n') >= 0;

    private static bool IsThrownByCaller(Exception exception) =>
        ThrownByCallers.TryGetValue(exception, out _)
        || (exception is RpcException { Status.DebugException: { } cause } && ThrownByCallers.TryGetValue(cause, out _));

    // The writer of a request stream throws what the transport threw; all else comes inside of an RpcException.
    private static Exception? Cause(Exception exception) => exception switch
    {
        RpcException rpc => rpc.Status.DebugException,
        IOException or HttpRequestException => exception,
        _ => null,
    };

    // A protocol error (a reset stream, a connection that was closed in good order) or else the outermost failure of the transport.
    private static Exception? TransportFailure(Exception? exception, Exception? outermost = null) => exception switch
    {
        null => outermost,
        OperationCanceledException => null, // the caller's doing, whatever it broke
        HttpProtocolException => exception,
        _ => TransportFailure(exception.InnerException, outermost ?? (IsOfTransport(exception) ? exception : null)),
    };

    private static bool IsOfTransport(Exception exception) =>
        exception is HttpIOException or HttpRequestException or SocketException or TimeoutException
        || exception.GetType() == typeof(IOException); // others are those of parsers

    private sealed record Verdict(CallFault Fault, object Attempt);
}

/// <summary>Whose doing it was that an attempt failed.</summary>
internal enum FaultOrigin
{
    Caller, // it ended the call, let its deadline pass, or its callbacks threw: no other attempt would end otherwise
    Server, // or a proxy before it, over a connection that works: it answered, or reset the stream
    Channel, // there was no connection, or it broke
}

/// <summary>What an outcome says.</summary>
/// <param name="Origin">Whose doing it was.</param>
/// <param name="NeverLeft">Whether the request provably reached no method of a server: sending it again cannot run it twice.</param>
/// <param name="IsTransient">Whether another attempt could end otherwise: the transport failed, or the server is not available.</param>
internal readonly record struct CallFault(FaultOrigin Origin, bool NeverLeft, bool IsTransient);

using System.Diagnostics.Metrics;
using System.Net;
using System.Net.Sockets;
using System.Security.Authentication;

namespace PoolingInvoker;

/// <summary>
/// Opens transports for one channel as its handler would: through a proxy, with TLS, with the user's callbacks. Each attempt is a request on
/// a handler of its own, which is cancelled when the transport stands, so that nothing of it shows in the user's telemetry.
/// </summary>
/// <param name="handler">The handler of the channel, before its first request.</param>
/// <param name="name">What the channel is to, for the server and for TLS.</param>
/// <param name="address">The name, or one of the endpoints that it has.</param>
internal sealed class ChannelDialer(SocketsHttpHandler handler, Uri name, Uri address)
{
    // What gRPC gives an attempt at the least (connection-backoff.md, MIN_CONNECT_TIMEOUT).
    private static readonly TimeSpan DefaultTimeout = TimeSpan.FromSeconds(20);

    // The transport of the channel puts its own in their place.
    private readonly Func<SocketsHttpConnectionContext, CancellationToken, ValueTask<Stream>> _connect = handler.ConnectCallback ?? ConnectAsync;
    private readonly Func<SocketsHttpPlaintextStreamFilterContext, CancellationToken, ValueTask<Stream>>? _filter = handler.PlaintextStreamFilter;
    private readonly bool _useProxy = handler.UseProxy;

    /// <summary>How long an attempt may take, with TLS and the SETTINGS of the server.</summary>
    public TimeSpan Timeout { get; } = handler.ConnectTimeout > TimeSpan.Zero ? handler.ConnectTimeout : DefaultTimeout;

    /// <summary>Where the connections of the channel go, and by which name.</summary>
    public (Uri Address, string? Host) Own => (address, address == name ? null : name.Authority);

    /// <summary>How long a connection may wait for its first request: as long as it likes, where the handler keeps none after it.</summary>
    public TimeSpan IdleTimeout { get; } =
        handler.PooledConnectionIdleTimeout > TimeSpan.Zero ? handler.PooledConnectionIdleTimeout : TimeSpan.MaxValue;

    /// <summary>Whether the handler breaks a connection on which its pings are not answered.</summary>
    public bool HandlerPings => handler.KeepAlivePingDelay != System.Threading.Timeout.InfiniteTimeSpan;

    /// <summary>Where a connection goes that is not for the name of the channel: a redirect, or the host of a call, asked for it.</summary>
    public (Uri Address, string? Host)? Elsewhere(SocketsHttpConnectionContext context)
    {
        var request = context.InitialRequestMessage;
        var host = name.HostNameType == UriHostNameType.IPv6 ? name.Host : name.IdnHost; // as the handler says it
        return context.DnsEndPoint.Port != name.Port || !string.Equals(context.DnsEndPoint.Host, host, StringComparison.OrdinalIgnoreCase)
            ? (new Uri(request.RequestUri!.GetLeftPart(UriPartial.Authority)), request.Headers.Host)
            : name.Scheme == Uri.UriSchemeHttps && request.Headers.Host is { } other
            ? (address, other)
            : null;
    }

    /// <summary>Connects as a handler does that has no ConnectCallback.</summary>
    public static async ValueTask<Stream> ConnectAsync(SocketsHttpConnectionContext context, CancellationToken cancellationToken)
    {
        var socket = new Socket(SocketType.Stream, ProtocolType.Tcp) { NoDelay = true };
        try
        {
            await socket.ConnectAsync(context.DnsEndPoint, cancellationToken).ConfigureAwait(false);
            return new NetworkStream(socket, ownsSocket: true);
        }
        catch
        {
            socket.Dispose();
            throw;
        }
    }

    /// <summary>What an attempt failed with, without the wrapping of the handler.</summary>
    public static Exception Cause(Exception exception) => exception is HttpRequestException
    {
        HttpRequestError: HttpRequestError.ConnectionError or HttpRequestError.SecureConnectionError or HttpRequestError.NameResolutionError,
        InnerException: { } cause,
    } ? cause : exception;

    /// <summary>
    /// Whether another attempt would fail as well: the certificate is refused, the server does not speak HTTP/2, or a proxy refuses its client
    /// (RFC 9110, 4xx).
    /// </summary>
    public static bool IsForGood(Exception exception) =>
        exception is AuthenticationException or HttpProtocolException
            or HttpRequestException { HttpRequestError: HttpRequestError.VersionNegotiationError }
            or HttpRequestException { HttpRequestError: HttpRequestError.ProxyTunnelError, StatusCode: >= HttpStatusCode.BadRequest and < HttpStatusCode.InternalServerError }
        || (exception.InnerException is { } inner && IsForGood(inner));

    /// <summary>Opens a transport; gives it, what the user's filter has made of it, and the socket below, where it is known.</summary>
    public async Task<(Stream Transport, Stream Plaintext, Socket? Socket)> DialAsync((Uri Address, string? Host)? elsewhere, CancellationToken cancellationToken)
    {
        var (to, host) = elsewhere ?? Own;
        var opened = new TaskCompletionSource<(Stream Transport, Stream Plaintext, Socket? Socket)>(TaskCreationOptions.RunContinuationsAsynchronously);
        Socket? socket = null;
        using var ended = CancellationTokenSource.CreateLinkedTokenSource(cancellationToken);
        using var requests = new Requests(new SocketsHttpHandler
        {
            SslOptions = handler.SslOptions,
            UseProxy = _useProxy,
            Proxy = handler.Proxy,
            DefaultProxyCredentials = handler.DefaultProxyCredentials,
            ConnectCallback = ConnectAsync,
            ActivityHeadersPropagator = null,
            MeterFactory = new SilentMeters(),
            PlaintextStreamFilter = FilterAsync,
        });
        using var request = new HttpRequestMessage(HttpMethod.Get, to) { Version = HttpVersion.Version20, VersionPolicy = HttpVersionPolicy.RequestVersionExact };
        request.Headers.Host = host;
        try
        {
            using var response = await requests.SendAsync(request, ended.Token).ConfigureAwait(false);
        }
        catch (Exception) when (!opened.TrySetCanceled(cancellationToken)) // It is the dialer that cancelled the request.
        {
        }

        return await opened.Task.ConfigureAwait(false);

        // The handler would go on with an attempt for a while after its request is cancelled.
        async ValueTask<Stream> ConnectAsync(SocketsHttpConnectionContext context, CancellationToken token)
        {
            using var either = CancellationTokenSource.CreateLinkedTokenSource(token, cancellationToken);
            var stream = await _connect(context, either.Token).ConfigureAwait(false);
            socket = (stream as NetworkStream)?.Socket;
            cancellationToken.UnsafeRegister(static stream => (stream as Stream)?.Dispose(), stream);
            return stream;
        }

        async ValueTask<Stream> FilterAsync(SocketsHttpPlaintextStreamFilterContext context, CancellationToken token)
        {
            if (context.NegotiatedHttpVersion < HttpVersion.Version20)
            {
                return context.PlaintextStream; // the request fails, and says so
            }

            var plaintext = _filter is null ? context.PlaintextStream : await _filter(context, token).ConfigureAwait(false);
            if (opened.TrySetResult((context.PlaintextStream, plaintext, socket)))
            {
                await ended.CancelAsync().ConfigureAwait(false);
            }
            else
            {
                await plaintext.DisposeAsync().ConfigureAwait(false);
            }

            // The transport does not go with the handler, which never learns of it: whatever it were given would end with an exception.
            return await new TaskCompletionSource<Stream>().Task.ConfigureAwait(false);
        }
    }

    // An HttpMessageInvoker would tell the EventSource of HTTP.
    private sealed class Requests(SocketsHttpHandler inner) : DelegatingHandler(inner)
    {
        public new Task<HttpResponseMessage> SendAsync(HttpRequestMessage request, CancellationToken cancellationToken) => base.SendAsync(request, cancellationToken);
    }

    // The instruments of a meter that is disposed are never published.
    private sealed class SilentMeters : IMeterFactory
    {
        public Meter Create(MeterOptions options)
        {
            using var meter = new Meter(options);
            return meter;
        }

        public void Dispose()
        {
        }
    }
}

using System.Collections.Concurrent;
using System.Net;
using System.Runtime.CompilerServices;
using Grpc.Net.Client;
using static PoolingInvoker.ChannelPoolOptions;

namespace PoolingInvoker;

/// <summary>
/// Makes the channels of a pool, each with a handler of its own, so that a channel is a connection: for one address, for the endpoints that
/// one name has, or for a list of addresses.
/// </summary>
internal sealed class AddressChannelPolicy : IChannelFactory, IDisposable
{
    private readonly bool _pins;
    private readonly ConditionalWeakTable<object, object> _transports = [];
    private readonly CookieContainer _cookies = new(); // of all channels: a server may know its client by one
    private readonly ConcurrentQueue<Prepared> _prepared = new();

    // With a name that pins, as one of dns: does, each channel goes to one of the endpoints that it has.
    public AddressChannelPolicy(Uri address, ChannelPoolOptions options, bool pins = false)
    {
        var isDns = address.Scheme == DnsEndpoints.Scheme;
        _pins = pins || isDns;
        Options = options;

        // The callbacks run twice before the first channel is made: a handler that they share shows here, and not under load,
        // when a second channel is needed. Both results are used.
        var prepared = Prepare();
        _prepared.Enqueue(prepared); // and is not looked at there: what was looked at stays in a ConcurrentQueue
        if (options.MaxPoolSize > 1)
        {
            _prepared.Enqueue(Prepare());
        }

        var first = prepared.Options;
        ThrowsOperationCanceled = first.ThrowOperationCanceledOnCancellation;
        Address = isDns ? DnsEndpoints.NameOf(address, Tls.IsIn(first.Credentials)) : address;
        Target = Address.Authority;
        Check(Address, first);
        if (first.ServiceConfig?.MethodConfigs.Any(static config => config.RetryPolicy is not null || config.HedgingPolicy is not null) ?? false)
        {
            Log.ServiceConfigRetries();
        }
    }

    public AddressChannelPolicy(IReadOnlyList<ChannelEndpoint> list, ChannelPoolOptions options)
        : this(list[0].Address!, options) => Target = string.Join(',', list);

    public ChannelPoolOptions Options { get; }
    public Uri Address { get; } // what channels are to, for the server and for TLS; of a list the first one
    public string Target { get; }
    public bool ThrowsOperationCanceled { get; }
    private PoolingInvokerLog Log => new(Options.LoggerFactory, Options.Name ?? Target);
    public string WhyLimitIsUnknown => "the transport is not the pool's own, or not HTTP/2";

    public static Uri ParseAddress(string address)
    {
        ArgumentNullException.ThrowIfNull(address);
        return Uri.TryCreate(address, UriKind.Absolute, out var uri)
            ? uri
            : throw new ArgumentException(
                $"The address '{address}' is not an absolute URI. It needs a scheme, a host and, if it is not the default, a port, as in 'http://users:5000'.",
                nameof(address));
    }

    public static Uri Checked(Uri address) => address.IsAbsoluteUri && (address.Scheme == Uri.UriSchemeHttp || address.Scheme == Uri.UriSchemeHttps) && address.Host.Length > 0
        ? address
        : throw new ArgumentException(
            $"The address '{address.OriginalString}' has no scheme that the pool can dial. It must begin with 'http://' or 'https://', as in 'http://users:5000'; ForAddress takes 'dns:///', too.",
            nameof(address));

    public (GrpcChannel Channel, ChannelTransport? Transport) Create(ChannelEndpoint? endpoint) =>
        endpoint is null ? Create(Address, Address, Address)
        : endpoint.Address is not { } own ? Create(Address, Address, endpoint.ToUri(Address.Scheme))
        : endpoint.Service is { } service ? Create(service, own, endpoint.ToUri(own.Scheme))
        : Create(own, own, own);

    // What the channel is to for the application; for the server and for TLS; for a proxy, and where it connects.
    private (GrpcChannel Channel, ChannelTransport? Transport) Create(Uri service, Uri name, Uri address)
    {
        var (options, handler, speaksHttp2, isWrapped) = _prepared.TryDequeue(out var prepared) ? prepared : Prepare();
        ChannelTransport? transport = null;
        if (service != name)
        {
            Insert(options, new EndpointHandler(handler!, service, name, host: null));
        }

        if (handler is not null && speaksHttp2)
        {
            transport = new ChannelTransport(Options.TimeProvider) { IsWrapped = isWrapped };
            transport.Supply(handler, name, address);
            int? redirections = RedirectHandler.TakeFrom(handler);
            if (isWrapped)
            {
                Insert(options, new RedirectHandler(handler, redirections.Value));
                redirections = null;
            }

            options.HttpHandler = new SendOnceHandler(options.HttpHandler!, handler, redirections, transport.Refusals);
        }
        else if (address != service)
        {
            // HTTP/1.1 makes a connection for each call, which nothing is seen of. With a ConnectCallback the channel dials nothing.
            handler!.ConnectCallback ??= ChannelDialer.ConnectAsync;
            Insert(options, new EndpointHandler(handler, name, address, name.Authority));
        }

        return (GrpcChannel.ForAddress(service, options), transport);
    }

    public void Dispose() => DropPrepared();

    public void DropPrepared()
    {
        while (_prepared.TryDequeue(out var prepared))
        {
            try
            {
                using var client = prepared.Options.DisposeHttpClient ? prepared.Options.HttpClient : null;
                using var handler = prepared.Options.DisposeHttpClient ? prepared.Options.HttpHandler : null;
            }
            catch (Exception exception) // Dispose runs user handlers. What they throw does not reach who disposes or refreshes the pool.
            {
                Log.CloseFailed(Target, exception);
            }
        }
    }

    // What a channel cannot be made with shows here, as with a bare channel. The handler is changed by the channel that it is given to.
    private static void Check(Uri address, GrpcChannelOptions options)
    {
        var (handler, disposes) = (options.HttpHandler, options.DisposeHttpClient);
        var standIn = handler is null ? null : new SocketsHttpHandler { ConnectCallback = ChannelDialer.ConnectAsync };
        (options.HttpHandler, options.DisposeHttpClient) = (standIn, standIn is not null);
        GrpcChannel.ForAddress(address, options).Dispose();
        (options.HttpHandler, options.DisposeHttpClient) = (handler, disposes);
    }

    private Prepared Prepare()
    {
        // One connection a channel: the pool decides when there is another one.
        var handler = new SocketsHttpHandler { EnableMultipleHttp2Connections = false, CookieContainer = _cookies };
        Options.ConfigureHandler?.Invoke(handler);
        var options = new GrpcChannelOptions { HttpHandler = handler, DisposeHttpClient = true, LoggerFactory = Options.LoggerFactory };
        Options.Configure(options);
        if (options.HttpClient is not null && options.HttpHandler == handler)
        {
            options.HttpHandler = null;
        }

        // What dials: the innermost handler, or the client.
        var transport = HandlersOf(options).LastOrDefault() ?? (object?)options.HttpClient ?? throw new ArgumentException(
            "Pool.ConfigureChannel took the handler away and gave no HttpHandler and no HttpClient in its place. Set one of them, or leave HttpHandler as it is.",
            nameof(options));
        if (transport != handler)
        {
            handler.Dispose();
        }

        Require(
            _transports.TryAdd(transport, transport),
            $"Pool.ConfigureChannel gave two channels the same {transport.GetType().Name}. Channels that share a handler share its "
            + "connections, so that the pool would not be one: make a new handler in each call of ConfigureChannel, change the pool's "
            + "own one in Pool.ConfigureHandler, or set Pool.MaxPoolSize to 1.");

        // The pool directs connections by the ConnectCallback of a SocketsHttpHandler, which HTTP/3 does not use.
        var sockets = transport as SocketsHttpHandler;
        var undirected = transport is HttpClient ? "an HttpClient"
            : sockets is null ? $"a handler of type {transport.GetType().Name}"
            : options.HttpVersion?.Major >= 3 ? $"HttpVersion {options.HttpVersion}"
            : null;
        Require(
            !_pins || undirected is null,
            "A pool over several endpoints needs a SocketsHttpHandler of HTTP/2 or HTTP/1.1, whose connections it can direct, and "
            + $"Pool.ConfigureChannel set {undirected}. Change the pool's own handler in Pool.ConfigureHandler, set HttpHandler to a "
            + "SocketsHttpHandler or one around it, leave HttpVersion null, or make a pool of one address.");
        var balancer = sockets is null ? null : options.ServiceConfig?.LoadBalancingConfigs.FirstOrDefault();
        Require(
            balancer is null,
            $"Pool.ConfigureChannel set a ServiceConfig with the load balancer '{balancer?.PolicyName}'. The pool balances by itself, and "
            + "each of its channels goes to one endpoint: leave LoadBalancingConfigs empty.");
        var speaksHttp2 = (options.HttpVersion is null || options.HttpVersion == HttpVersion.Version20)
            && !HandlersOf(options).Any(static handler => handler.GetType().Name == "GrpcWebHandler");
        return new Prepared(options, sockets, speaksHttp2, IsWrapped: options.HttpHandler != transport);
    }

    // From the outermost to the innermost.
    private static IEnumerable<HttpMessageHandler> HandlersOf(GrpcChannelOptions options)
    {
        for (var handler = options.HttpHandler; handler is not null; handler = (handler as DelegatingHandler)?.InnerHandler)
        {
            yield return handler;
        }
    }

    // Around the innermost handler, below those of the user's.
    private static void Insert(GrpcChannelOptions options, DelegatingHandler handler)
    {
        if (HandlersOf(options).OfType<DelegatingHandler>().LastOrDefault() is { } above)
        {
            above.InnerHandler = handler;
        }
        else
        {
            options.HttpHandler = handler;
        }
    }

    // Whether channel credentials are those of TLS, as they say themselves.
    private sealed class Tls : ChannelCredentialsConfiguratorBase
    {
        private bool _isSecure;

        public static bool IsIn(ChannelCredentials? credentials)
        {
            var tls = new Tls();
            credentials?.InternalPopulateConfiguration(tls, credentials);
            return tls._isSecure;
        }

        public override void SetInsecureCredentials(object state) => _isSecure = false;

        public override void SetSslCredentials(object state, string? roots, KeyCertificatePair? pair, VerifyPeerCallback? verify) =>
            _isSecure = true;

        public override void SetCompositeCredentials(object state, ChannelCredentials channel, CallCredentials call) =>
            channel.InternalPopulateConfiguration(this, channel);
    }

    private sealed record Prepared(GrpcChannelOptions Options, SocketsHttpHandler? Handler, bool SpeaksHttp2, bool IsWrapped);
}

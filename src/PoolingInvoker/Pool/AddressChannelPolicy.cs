using System.Net;
using System.Runtime.CompilerServices;
using Grpc.Net.Client;
using Microsoft.Extensions.ObjectPool;

namespace PoolingInvoker;

/// <summary>
/// Makes the channels of a pool for one address, each with a handler of its own, so that a channel is a connection.
/// </summary>
internal sealed class AddressChannelPolicy : IPooledObjectPolicy<GrpcChannel>, IDisposable
{
    private readonly Uri _address;
    private readonly ChannelPoolOptions _options;
    private readonly ConditionalWeakTable<object, object> _transports = [];
    private readonly ConditionalWeakTable<object, ChannelTransport> _watched = [];
    private readonly Queue<GrpcChannelOptions> _prepared = new();

    public AddressChannelPolicy(Uri address, ChannelPoolOptions options)
    {
        _address = address;
        _options = options;

        // The callbacks run twice before the first channel is made: a handler that they share shows here, and not under load,
        // when a second channel is needed. Both results are used.
        _prepared.Enqueue(Prepare());
        if (options.MaxPoolSize > 1)
        {
            _prepared.Enqueue(Prepare());
        }

        var first = _prepared.Peek();
        ThrowsOperationCanceled = first.ThrowOperationCanceledOnCancellation;
        HasServiceConfigRetries = first.ServiceConfig?.MethodConfigs.Any(static config => config.RetryPolicy is not null || config.HedgingPolicy is not null) ?? false;
    }

    public string Target => _address.Authority;

    /// <summary>Whether the channels retry or hedge by themselves.</summary>
    public bool HasServiceConfigRetries { get; }

    public bool ThrowsOperationCanceled { get; }

    public static Uri ParseAddress(string address)
    {
        ArgumentNullException.ThrowIfNull(address);
        return Uri.TryCreate(address, UriKind.Absolute, out var uri)
            ? uri
            : throw new ArgumentException(
                $"The address '{address}' is not an absolute URI. It needs a scheme, a host and, if it is not the default, a port, as in 'http://users:5000'.",
                nameof(address));
    }

    public static void CheckAddress(Uri address)
    {
        ArgumentNullException.ThrowIfNull(address);
        if (!address.IsAbsoluteUri || (address.Scheme != Uri.UriSchemeHttp && address.Scheme != Uri.UriSchemeHttps) || address.Host.Length == 0)
        {
            throw new ArgumentException(
                $"The address '{address.OriginalString}' has no scheme that the pool can dial. It must begin with 'http://' or 'https://', as in 'http://users:5000'.",
                nameof(address));
        }
    }

    public GrpcChannel Create()
    {
        GrpcChannelOptions? options;
        lock (_prepared)
        {
            _prepared.TryDequeue(out options);
        }

        options ??= Prepare();
        var channel = GrpcChannel.ForAddress(_address, options);
        if (_watched.TryGetValue(options, out var transport))
        {
            _watched.Add(channel, transport);
        }

        return channel;
    }

    /// <summary>What is seen of the connections of a channel; null if its transport is the user's own.</summary>
    public ChannelTransport? TransportOf(GrpcChannel channel) => _watched.TryGetValue(channel, out var transport) ? transport : null;

    public bool Return(GrpcChannel obj) => true;

    public void Dispose()
    {
        lock (_prepared)
        {
            while (_prepared.TryDequeue(out var options))
            {
                if (options.DisposeHttpClient)
                {
                    options.HttpHandler?.Dispose();
                    options.HttpClient?.Dispose();
                }
            }
        }
    }

    private GrpcChannelOptions Prepare()
    {
        // One connection a channel: the pool decides when there is another one.
        var handler = new SocketsHttpHandler { EnableMultipleHttp2Connections = false };
        _options.ConfigureHandler?.Invoke(handler);
        var options = new GrpcChannelOptions { HttpHandler = handler, DisposeHttpClient = true, LoggerFactory = _options.LoggerFactory };
        _options.Configure(options);
        if (options.HttpClient is not null && options.HttpHandler == handler)
        {
            options.HttpHandler = null;
        }

        var transport = Transport(options);
        if (transport != handler)
        {
            handler.Dispose();
        }
        else if (SpeaksHttp2(options))
        {
            var watched = new ChannelTransport();
            watched.Watch(handler);
            _watched.Add(options, watched);
            if (options.HttpHandler is { } outermost)
            {
                options.HttpHandler = new SendOnceHandler(outermost);
            }
        }

        RequireOwn(transport);
        return options;
    }

    private static bool SpeaksHttp2(GrpcChannelOptions options)
    {
        for (var handler = options.HttpHandler; handler is DelegatingHandler { InnerHandler: var inner }; handler = inner)
        {
            if (handler.GetType().Name == "GrpcWebHandler")
            {
                return false;
            }
        }

        return options.HttpVersion is null || options.HttpVersion == HttpVersion.Version20;
    }

    // What dials: the innermost handler, or the client.
    private static object Transport(GrpcChannelOptions options)
    {
        var handler = options.HttpHandler;
        while (handler is DelegatingHandler { InnerHandler: { } inner })
        {
            handler = inner;
        }

        return handler ?? (object?)options.HttpClient ?? throw new ArgumentException(
            "Pool.ConfigureChannel took the handler away and gave no HttpHandler and no HttpClient in its place. Set one of them, or leave HttpHandler as it is.",
            nameof(options));
    }

    private void RequireOwn(object transport)
    {
        if (!_transports.TryAdd(transport, transport))
        {
            throw new ArgumentException(
                $"Pool.ConfigureChannel gave two channels the same {transport.GetType().Name}. Channels that share a handler share its connections, "
                + "so that the pool would not be one: make a new handler in each call of ConfigureChannel, change the pool's own one in "
                + "Pool.ConfigureHandler, or set Pool.MaxPoolSize to 1.");
        }
    }
}

using Microsoft.Extensions.Http;

namespace PoolingInvoker;

/// <summary>All that makes the handlers of one client: those that were added, its primary one, logging, filters.</summary>
internal sealed class HandlerRecipe
{
    private const string DiscoveryHandler = "Microsoft.Extensions.ServiceDiscovery.Http.ResolvingHttpDelegatingHandler";
    private const string ResilienceHandler = "Microsoft.Extensions.Http.Resilience.ResilienceHandler";

    private readonly Action<HttpMessageHandlerBuilder> _make;

    /// <param name="name">The client.</param>
    /// <param name="make">Fills a builder.</param>
    /// <param name="made">One that it has filled.</param>
    public HandlerRecipe(string name, Action<HttpMessageHandlerBuilder> make, HttpMessageHandlerBuilder made)
    {
        (Name, _make) = (name, make);
        var sockets = SocketsIn(made.PrimaryHandler);
        PrimaryType = made.PrimaryHandler.GetType();
        ConnectionLifetime = sockets?.PooledConnectionLifetime ?? Timeout.InfiniteTimeSpan;
        var hasDiscovery = made.AdditionalHandlers.Any(static handler => IsA(handler, DiscoveryHandler));
        (HasDiscovery, Pins) = (hasDiscovery, hasDiscovery && sockets is not null);
        HasResilience = made.AdditionalHandlers.Any(static handler => IsA(handler, ResilienceHandler));
    }

    public string Name { get; }
    public Type PrimaryType { get; }
    public TimeSpan ConnectionLifetime { get; }
    public bool HasDiscovery { get; }
    public bool HasResilience { get; }

    /// <summary>Whether the channels of the pool go to the endpoints that service discovery finds, and its handler has nothing left to do.</summary>
    public bool Pins { get; }

    /// <summary>The handler that connects, if the pool can see and direct what it does.</summary>
    public static SocketsHttpHandler? SocketsIn(HttpMessageHandler handler)
    {
        while (handler is DelegatingHandler { InnerHandler: { } inner })
        {
            handler = inner;
        }

        return handler as SocketsHttpHandler;
    }

    public void Fill(HttpMessageHandlerBuilder builder)
    {
        builder.Name = Name;
        _make(builder);
        if (Pins && builder.AdditionalHandlers.FirstOrDefault(static handler => IsA(handler, DiscoveryHandler)) is { } discovery)
        {
            builder.AdditionalHandlers.Remove(discovery);
            discovery.Dispose();
        }

        if (SocketsIn(builder.PrimaryHandler) is { } sockets)
        {
            // One connection a channel, which the pool replaces.
            sockets.EnableMultipleHttp2Connections = false;
            sockets.PooledConnectionLifetime = sockets.PooledConnectionLifetime > TimeSpan.Zero ? Timeout.InfiniteTimeSpan : sockets.PooledConnectionLifetime;
        }
    }

    // Both are of packages that the app may not have.
    private static bool IsA(DelegatingHandler handler, string name)
    {
        for (var type = handler.GetType(); type is not null; type = type.BaseType)
        {
            if (type.FullName == name)
            {
                return true;
            }
        }

        return false;
    }
}

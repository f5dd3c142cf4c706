using System.Collections.Concurrent;
using System.Runtime.CompilerServices;
using Grpc.Net.ClientFactory;
using Microsoft.Extensions.DependencyInjection;
using Microsoft.Extensions.Http;
using Microsoft.Extensions.Options;

namespace PoolingInvoker;

/// <summary>
/// How the HTTP client factory makes the handlers of each pooled client. It makes them once, for the channel of the client factory, which never
/// connects; what it did then is done again for each channel of the pool.
/// </summary>
internal sealed class HandlerRecipes(IEnumerable<PooledClient> clients, IServiceProvider provider)
{
    private readonly HashSet<string> _names = [.. clients.Select(static client => client.Name)];
    private readonly ConcurrentDictionary<string, HandlerRecipe> _recipes = new();
    private readonly ConditionalWeakTable<HttpMessageHandler, object> _primaries = []; // those that somebody has

    public HandlerRecipe Of(string name)
    {
        if (!_recipes.ContainsKey(name))
        {
            provider.GetRequiredService<IHttpMessageHandlerFactory>().CreateHandler(name);
        }

        if (provider.GetServices<IHttpMessageHandlerBuilderFilter>().First() is var first and not Filter)
        {
            throw new InvalidOperationException(
                $"The filter {first.GetType().Name} was put before that of the channel pool of the gRPC client '{name}', and what it adds to the HTTP handlers would be "
                + "missing on the channels of the pool. Register it with services.AddSingleton<IHttpMessageHandlerBuilderFilter, …>(), or call AddChannelPool after it.");
        }

        return _recipes[name];
    }

    /// <summary>Takes the primary handler for one channel. One that another has is refused: its connections would be shared.</summary>
    public void Take(HttpMessageHandler primary, string name)
    {
        if (!_primaries.TryAdd(primary, primary))
        {
            throw new InvalidOperationException(
                $"ConfigurePrimaryHttpMessageHandler of the gRPC client '{name}' gives the same {primary.GetType().Name} each time. Each channel of a pool needs "
                + "one of its own: make a new one in its callback, as in ConfigurePrimaryHttpMessageHandler(() => new SocketsHttpHandler()), or register its type as transient.");
        }
    }

    private void Note(HttpMessageHandlerBuilder builder, Action<HttpMessageHandlerBuilder> make)
    {
        if (builder.Name is { } name && _names.Contains(name))
        {
            _primaries.TryAdd(builder.PrimaryHandler, builder.PrimaryHandler);
            _recipes[name] = new HandlerRecipe(name, make, builder);
            LeaveToApp(builder.PrimaryHandler, name);
        }
    }

    // The channel of the client factory makes the connections of its handler, with which an HttpClient of the same name could then make none. As
    // with service discovery it is told not to. Addresses of other schemes need it to.
    private void LeaveToApp(HttpMessageHandler primary, string name)
    {
        var address = provider.GetRequiredService<IOptionsMonitor<GrpcClientFactoryOptions>>().Get(name).Address;
        if (primary is SocketsHttpHandler sockets && (address?.Scheme == Uri.UriSchemeHttp || address?.Scheme == Uri.UriSchemeHttps))
        {
            sockets.Properties["__GrpcLoadBalancingDisabled"] = true;
        }
    }

    /// <summary>The outermost filter of the factory: what it is given is the whole of the recipe.</summary>
    internal sealed class Filter(HandlerRecipes recipes) : IHttpMessageHandlerBuilderFilter
    {
        public Action<HttpMessageHandlerBuilder> Configure(Action<HttpMessageHandlerBuilder> next) => builder =>
        {
            next(builder);
            recipes.Note(builder, next);
        };
    }
}

using Grpc.Net.Client;
using Grpc.Net.ClientFactory;
using Microsoft.Extensions.DependencyInjection;
using Microsoft.Extensions.Logging;

namespace PoolingInvoker;

/// <summary>Makes the options of each channel of a client's pool as the client factory makes those of its one channel.</summary>
internal sealed class ClientChannels(GrpcClientFactoryOptions client, HandlerRecipe recipe, IServiceProvider provider)
{
    private readonly HandlerRecipes _recipes = provider.GetRequiredService<HandlerRecipes>();

    /// <summary>The same options for channels of the client. Those that are given may be those of several.</summary>
    public ChannelPoolOptions Over(ChannelPoolOptions given)
    {
        var copy = OptionsCopy.Of(given);
        copy.ConfigureHandler = null;
        copy.ConfigureChannel = channel => Configure(channel, given.ConfigureHandler, given.ConfigureChannel);
        return copy;
    }

    private void Configure(GrpcChannelOptions channel, Action<SocketsHttpHandler>? configureHandler, Action<GrpcChannelOptions>? configureChannel)
    {
        var handlers = new ChannelHandlers(recipe, _recipes, provider);
        try
        {
            if (configureHandler is not null)
            {
                configureHandler(HandlerRecipe.SocketsIn(handlers.Primary) ?? throw new ArgumentException(
                    $"Pool.ConfigureHandler changes a SocketsHttpHandler, and the primary handler is a {handlers.Primary.GetType().Name}. Change it where it is made, in ConfigurePrimaryHttpMessageHandler."));
            }

            // As in the client factory, with its order.
            (channel.HttpHandler, channel.LoggerFactory, channel.ServiceProvider) = (handlers.Outermost, provider.GetService<ILoggerFactory>(), handlers.Services);
            foreach (var configure in client.ChannelOptionsActions)
            {
                configure(channel);
            }

            configureChannel?.Invoke(channel);
        }
        catch
        {
            handlers.Free();
            throw;
        }

        if (channel.HttpHandler is { } handler)
        {
            channel.HttpHandler = handlers.FreedWith(handler);
            channel.DisposeHttpClient = true;
        }
        else
        {
            // The channel has an HttpClient, with which nothing of these can go.
            channel.ServiceProvider = channel.ServiceProvider == handlers.Services ? provider : channel.ServiceProvider;
            handlers.Free();
        }
    }
}

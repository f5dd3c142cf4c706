using Microsoft.Extensions.DependencyInjection;
using Microsoft.Extensions.Http;
using Microsoft.Extensions.Options;

namespace PoolingInvoker;

/// <summary>The handlers of one channel, and the scope whose services they are made of.</summary>
internal sealed class ChannelHandlers
{
    private readonly AsyncServiceScope _scope;

    public ChannelHandlers(HandlerRecipe recipe, HandlerRecipes recipes, IServiceProvider provider)
    {
        _scope = provider.CreateAsyncScope();
        try
        {
            var suppressScope = provider.GetRequiredService<IOptionsMonitor<HttpClientFactoryOptions>>().Get(recipe.Name).SuppressHandlerScope;
            var builder = (suppressScope ? provider : Services).GetRequiredService<HttpMessageHandlerBuilder>();
            recipe.Fill(builder);
            recipes.Take(builder.PrimaryHandler, recipe.Name);
            (Outermost, Primary) = (builder.Build(), builder.PrimaryHandler);
        }
        catch
        {
            Free(_scope);
            throw;
        }
    }

    public HttpMessageHandler Outermost { get; }
    public HttpMessageHandler Primary { get; }
    public IServiceProvider Services => _scope.ServiceProvider;

    /// <summary>Frees both with a handler: that of the channel, which may be around these or in their place.</summary>
    public DelegatingHandler FreedWith(HttpMessageHandler handler)
    {
        if (!IsIn(handler))
        {
            Outermost.Dispose();
        }

        return new ScopeHandler(handler, _scope);
    }

    public void Free()
    {
        Outermost.Dispose();
        Free(_scope);
    }

    private bool IsIn(HttpMessageHandler handler)
    {
        while (handler != Outermost && handler is DelegatingHandler { InnerHandler: { } inner })
        {
            handler = inner;
        }

        return handler == Outermost || handler is not (SocketsHttpHandler or HttpClientHandler); // what another type has in it nobody knows
    }

    // Services that can only be disposed asynchronously may be among them, and nobody waits for them.
    private static async void Free(AsyncServiceScope scope)
    {
        try
        {
            await scope.DisposeAsync().ConfigureAwait(false);
        }
        catch (Exception exception) when (exception is not OutOfMemoryException) // It is a service's, and the channel is gone.
        {
        }
    }

    private sealed class ScopeHandler(HttpMessageHandler inner, AsyncServiceScope scope) : DelegatingHandler(inner)
    {
        private bool _isFree;

        protected override void Dispose(bool disposing)
        {
            base.Dispose(disposing);
            if (disposing && !_isFree)
            {
                _isFree = true;
                Free(scope);
            }
        }
    }
}

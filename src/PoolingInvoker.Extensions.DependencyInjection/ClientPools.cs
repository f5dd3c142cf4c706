using System.Collections.Concurrent;
using Grpc.Net.ClientFactory;
using Microsoft.Extensions.DependencyInjection;
using Microsoft.Extensions.Options;
using Microsoft.Extensions.ServiceDiscovery;

namespace PoolingInvoker;

/// <summary>The pools of all clients. Each is made when it is asked for; all are drained, side by side, with the container.</summary>
internal sealed class ClientPools(IServiceProvider provider) : IAsyncDisposable, IDisposable
{
    private readonly ConcurrentDictionary<string, Lazy<PoolingCallInvoker>> _invokers = new();
    private readonly ConcurrentDictionary<string, (Uri Given, Uri Rewritten)> _rewritten = new();
    private readonly ConcurrentBag<PoolConfiguration> _configurations = [];

    /// <summary>Gives the client factory an address that its channel takes, and keeps the one that was given.</summary>
    public Uri Rewrite(string name, Uri address)
    {
        var rewritten = ClientAddress.WithOneScheme(address);
        _rewritten[name] = (address, rewritten);
        return rewritten;
    }

    public PoolingCallInvoker InvokerOf(string name)
    {
        var made = _invokers.GetOrAdd(name, static (name, self) => new Lazy<PoolingCallInvoker>(() => self.Make(name)), this);
        try
        {
            return made.Value;
        }
        catch
        {
            _invokers.TryRemove(KeyValuePair.Create(name, made)); // the next who asks may have better luck
            throw;
        }
    }

    /// <summary>The pool of a client, if it has been made.</summary>
    public PoolingCallInvoker? MadeOf(string name) => _invokers.TryGetValue(name, out var made) && made.IsValueCreated ? made.Value : null;

    public async ValueTask DisposeAsync()
    {
        StopWatching();
        await Task.WhenAll(_invokers.Values.Where(static made => made.IsValueCreated).Select(static made => made.Value.DisposeAsync().AsTask())).ConfigureAwait(false);
    }

    public void Dispose()
    {
        StopWatching();
        foreach (var made in _invokers.Values.Where(static made => made.IsValueCreated))
        {
            made.Value.Dispose();
        }
    }

    private void StopWatching()
    {
        foreach (var configuration in _configurations)
        {
            configuration.Dispose();
        }
    }

    private PoolingCallInvoker Make(string name)
    {
        var configuration = new PoolConfiguration(name, provider);
        var client = provider.GetRequiredService<IOptionsMonitor<GrpcClientFactoryOptions>>().Get(name);
        var recipe = provider.GetRequiredService<HandlerRecipes>().Of(name);
        var channels = new ClientChannels(client, recipe, provider);
        try
        {
            var options = configuration.Read();
            Warn(name, recipe, options);
            options.Pool = channels.Over(options.Pool);
            var invoker = Make(AddressOf(name, client), recipe, options);
            try
            {
                configuration.Follow(invoker, channels);
            }
            catch // what tells of changes is the app's
            {
                configuration.Dispose();
                invoker.Dispose();
                throw;
            }

            _configurations.Add(configuration);
            return invoker;
        }
        catch (Exception exception) when (exception is ArgumentException or OptionsValidationException)
        {
            throw new InvalidOperationException(PoolOptionsValidation.CannotBeMade(name, exception.Message), exception);
        }
    }

    private static void Warn(string name, HandlerRecipe recipe, PoolingCallInvokerOptions options)
    {
        if (recipe.HasResilience && options.Pool.LoggerFactory is { } loggers)
        {
            new ClientLog(loggers).ResilienceHandler(name);
        }
    }

    private PoolingCallInvoker Make(Uri address, HandlerRecipe recipe, PoolingCallInvokerOptions options)
    {
        if (recipe.Pins && provider.GetService<ServiceEndpointResolver>() is { } resolver)
        {
            var service = address.GetLeftPart(UriPartial.Authority);
            return PoolingCallInvoker.ForAddresses(ClientAddress.WithOneScheme(address).OriginalString, token => resolver.GetEndpointsAsync(service, token), options);
        }

        return !ClientAddress.IsForDiscovery(address) ? PoolingCallInvoker.ForAddress(address, options) : throw new ArgumentException(
            recipe.HasDiscovery
                ? $"its address is '{address.OriginalString}', and its primary handler a {recipe.PrimaryType.Name}, whose connections cannot be directed to the endpoints of "
                    + "the service. Use a SocketsHttpHandler, or an address that begins with 'http://' or 'https://'."
                : $"its address is '{address.OriginalString}', which only service discovery understands. Add it with AddServiceDiscovery() on the client, or in "
                    + "ConfigureHttpClientDefaults, or use an address that begins with 'http://' or 'https://'.");
    }

    private Uri AddressOf(string name, GrpcClientFactoryOptions client)
    {
        var address = client.Address ?? throw new InvalidOperationException(
            $@"The gRPC client '{name}' has no address. Set one where it is registered: services.AddGrpcClient<TClient>(o => o.Address = new Uri(""http://users:5000"")).");
        return _rewritten.TryGetValue(name, out var known) && known.Rewritten == address ? known.Given : address;
    }
}

using Microsoft.Extensions.DependencyInjection;

namespace PoolingInvoker;

/// <summary>A pool, by the name that the page gives it; without one if it has not been made.</summary>
internal sealed record NamedPool(string Name, ChannelPool? Pool);

/// <summary>The pools of a page: those given by hand, then those of the clients of the container.</summary>
internal sealed class PoolList(ChannelPoolsPageOptions options, IServiceProvider provider)
{
    public IEnumerable<NamedPool> Pools
    {
        get
        {
            var clients = provider.GetService<PooledClients>();
            return clients is null ? options.Pools : options.Pools.Concat(clients.Names
                .Where(name => options.Pools.All(given => given.Name != name))
                .Select(name => new NamedPool(name, clients.TryGet(name, out var invoker) ? invoker.Pool : null)));
        }
    }
}

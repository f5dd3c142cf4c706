using System.Diagnostics.CodeAnalysis;

namespace PoolingInvoker;

/// <summary>
/// The gRPC clients of a container that have a pool, for who shows or counts them all. It is a singleton service where <c>AddChannelPool</c> has been
/// called. It makes no pool.
/// </summary>
public sealed class PooledClients
{
    private readonly ClientPools _pools;

    internal PooledClients(ClientPools pools, IEnumerable<PooledClient> clients) =>
        (_pools, Names) = (pools, [.. clients.Select(static client => client.Name).Distinct()]);

    /// <summary>Gets the names of the clients, in the order in which they were added.</summary>
    public IReadOnlyList<string> Names { get; }

    /// <summary>Gets the pool of a client, if it has been made: it is with the first client, or with the first who asks for the keyed service.</summary>
    /// <param name="name">The name of the client.</param>
    /// <param name="invoker">The invoker over the pool.</param>
    /// <returns>Whether there is one.</returns>
    public bool TryGet(string name, [NotNullWhen(true)] out PoolingCallInvoker? invoker)
    {
        ArgumentNullException.ThrowIfNull(name);
        invoker = _pools.MadeOf(name);
        return invoker is not null;
    }
}

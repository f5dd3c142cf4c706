namespace PoolingInvoker;

/// <summary>Which pools a page of <c>MapChannelPools</c> shows beside those of the container.</summary>
public sealed class ChannelPoolsPageOptions
{
    private readonly List<NamedPool> _pools = [];

    internal IReadOnlyList<NamedPool> Pools => _pools;

    /// <summary>Adds a pool that is not one of <c>AddChannelPool</c>, such as that of a <see cref="PoolingCallInvoker"/>.</summary>
    /// <param name="pool">The pool. It stays with who made it.</param>
    /// <param name="name">The name that the page gives it, if it is not <see cref="ChannelPool.Name"/>. No two pools have the same one.</param>
    /// <returns>These options.</returns>
    /// <exception cref="ArgumentException">There is a pool of that name.</exception>
    public ChannelPoolsPageOptions Add(ChannelPool pool, string? name = null)
    {
        ArgumentNullException.ThrowIfNull(pool);
        name ??= pool.Name;
        if (_pools.Exists(other => other.Name == name))
        {
            throw new ArgumentException($"There is a pool with the name '{name}' on this page. Give each another name.", nameof(name));
        }

        _pools.Add(new NamedPool(name, pool));
        return this;
    }
}

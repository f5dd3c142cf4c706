using System.Runtime.InteropServices;

namespace PoolingInvoker;

/// <summary>The pools of one meter. One that is dropped is collected; what it has counted stays.</summary>
internal sealed class MeteredPools
{
    private const int Few = 16;

    private readonly object _lock = new();
    private readonly Dictionary<PoolIdentity, PoolTally> _gone = [];
    private List<(WeakReference<PoolMetrics> Pool, PoolIdentity Identity, PoolTally Tally)> _pools = [];
    private int _many = Few;

    public void Add(PoolMetrics pool)
    {
        lock (_lock)
        {
            if (_pools.Count >= _many)
            {
                TakeLiving();
                _many = Math.Max(Few, 2 * _pools.Count);
            }

            _pools.Add((new WeakReference<PoolMetrics>(pool, trackResurrection: true), pool.Identity, pool.Tally)); // a finalizer may count
        }
    }

    /// <summary>Those that are there, and what those counted that are not.</summary>
    public (IReadOnlyList<PoolMetrics> Pools, IReadOnlyList<(PoolIdentity Identity, PoolTally Tally)> Gone) Read()
    {
        lock (_lock)
        {
            return (TakeLiving(), [.. _gone.Select(static gone => (gone.Key, gone.Value))]);
        }
    }

    private List<PoolMetrics> TakeLiving()
    {
        List<PoolMetrics> living = [];
        _pools = [.. _pools.Where(one =>
        {
            if (one.Pool.TryGetTarget(out var pool))
            {
                living.Add(pool);
                return true;
            }

            (CollectionsMarshal.GetValueRefOrAddDefault(_gone, one.Identity, out _) ??= new PoolTally()).Add(one.Tally);
            return false;
        })];
        return living;
    }
}

/// <summary>What tells the pools of a meter apart: their name, and the server as it is configured.</summary>
internal readonly record struct PoolIdentity(string Name, string Server, int? Port);

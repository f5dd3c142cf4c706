namespace PoolingInvoker;

/// <summary>
/// The endpoints of a pool that has several. A channel goes to the one with the fewest channels. Each pool has an order of its own for
/// them, drawn at random, and stable whatever comes and goes (rendezvous hashing): with more endpoints than channels each client uses a
/// part of them, and many clients together all of them evenly. Guarded by the lock of the pool.
/// </summary>
internal sealed class PoolEndpoints(TimeProvider time, Random random)
{
    // How many endpoints a pool uses that needs fewer channels: enough that a thousand clients load three hundred servers evenly.
    public const int SubsetSize = 50;

    private readonly int _seed = random.Next();
    private readonly Dictionary<ChannelEndpoint, PoolEndpoint> _known = []; // those that are gone but have channels, too
    private List<PoolEndpoint> _inOrder = [];

    public int Count => _inOrder.Count;
    public bool MayDial => _inOrder.Exists(static endpoint => endpoint.MayDial);

    /// <summary>Whether some of those that are to be used cannot be reached, or have too few channels, or channels are left elsewhere.</summary>
    public bool IsUneven(int channels) =>
        _known.Count > _inOrder.Count || InUse(channels).Any(static endpoint => endpoint.IsFailing) || Imbalance(channels) is not null;

    public void Update(IReadOnlyList<ChannelEndpoint> list)
    {
        foreach (var endpoint in list.Where(endpoint => !_known.ContainsKey(endpoint)))
        {
            var backoff = new ReconnectBackoff(time, random, first: TimeSpan.FromSeconds(1), longest: TimeSpan.FromSeconds(30));
            _known.Add(endpoint, new PoolEndpoint(endpoint, HashCode.Combine(_seed, endpoint), backoff));
        }

        var listed = list.ToHashSet();
        foreach (var (endpoint, known) in _known)
        {
            known.IsGone = !listed.Contains(endpoint);
            if (known is { IsGone: true, Channels: 0 })
            {
                _known.Remove(endpoint);
            }
        }

        _inOrder = [.. _known.Values.Where(static known => !known.IsGone).OrderBy(static known => known.Rank)];
        foreach (var known in _known.Values)
        {
            known.HasOthers = _known.Count > 1;
        }
    }

    /// <summary>Chooses where the next of so many channels goes, and counts it there. Else it is the one that failed first.</summary>
    public PoolEndpoint Take(int channels, PoolEndpoint? inPlaceOf)
    {
        var chosen = Best(InUse(channels)) ?? Best(_inOrder) ?? _inOrder.MinBy(endpoint => (!endpoint.MayDial, Others(endpoint), endpoint.FailedAt))!;
        chosen.Channels++;
        return chosen;

        int Others(PoolEndpoint endpoint) => endpoint.Channels - (endpoint == inPlaceOf ? 1 : 0);

        // Of several that where the channel is whose place it takes, unless it could not be reached there; or the first in order.
        PoolEndpoint? Best(IEnumerable<PoolEndpoint> among) => among
            .Where(endpoint => endpoint.MayDial && !(endpoint == inPlaceOf && endpoint.IsFailing))
            .MinBy(endpoint => (Others(endpoint), endpoint != inPlaceOf));
    }

    public void Leave(PoolEndpoint endpoint)
    {
        endpoint.Channels--;
        if (endpoint is { IsGone: true, Channels: 0 })
        {
            _known.Remove(endpoint.Endpoint);
        }
    }

    /// <summary>From where to where a channel should move, so that they are even.</summary>
    public (PoolEndpoint From, PoolEndpoint To)? Imbalance(int channels)
    {
        var from = _inOrder.MaxBy(static endpoint => endpoint.Channels);
        var to = InUse(channels).Where(static endpoint => endpoint.MayDial).MinBy(static endpoint => endpoint.Channels);
        return from is not null && to is not null && from.Channels - to.Channels > 1 ? (from, to) : null;
    }

    private IEnumerable<PoolEndpoint> InUse(int channels) => _inOrder.Take(Math.Max(1, channels));
}

/// <summary>One of the endpoints of a pool. Guarded by the lock of the pool.</summary>
internal sealed class PoolEndpoint(ChannelEndpoint endpoint, int rank, ReconnectBackoff backoff)
{
    public ChannelEndpoint Endpoint => endpoint;
    public int Rank => rank; // where it stands in the order of this pool
    public int Channels { get; set; } // how many go there, with those that are being made, and without those that drain
    public int Leases { get; set; } // how many are out on those
    public bool IsGone { get; set; } // whether it is not in the list any more
    public bool HasOthers { get; set; } // whether channels may go elsewhere, too
    public bool IsFailing => backoff.Pause > TimeSpan.Zero; // whether it could not be reached the last time
    public long FailedAt => backoff.DialedAt;
    public bool MayDial => backoff.MayDial;
    public void Failed() => backoff.Dialed();
    public void Reached() => backoff.Reset();
}

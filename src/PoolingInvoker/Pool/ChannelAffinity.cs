namespace PoolingInvoker;

/// <summary>
/// Where calls with a key go. Each key has an order of its own for all endpoints, the same for all clients, and for the channels of each
/// (rendezvous hashing): where one goes only its keys move, and one that comes takes its share of each other. The first that is good, and
/// not much busier than the others, is the choice. Guarded by the lock of the pool.
/// </summary>
/// <remarks>
/// Keys share so many buckets that none shows. The first choice of a bucket is kept until a channel comes or goes, so that a pick looks at
/// one channel, however many there are; where that one gives way it looks at all.
/// </remarks>
internal sealed class ChannelAffinity(ActiveChannels active, Func<ChannelPoolOptions> options, PoolTally tally)
{
    private const int Buckets = 1 << 13;

    private PooledChannel?[]? _first; // the first choice of each bucket, once it has been asked for
    private (long Calls, long Moved) _told;
    private int _version; // of the channels, when the first of these was chosen

    public PoolEndpoints? Endpoints { get; set; } // of a pool that has several

    /// <summary>What the pool knows of a key: the same number on all clients, and 0 where there is no key.</summary>
    public static ulong KeyOf(string? text)
    {
        if (string.IsNullOrEmpty(text))
        {
            return 0;
        }

        var hash = 0xCBF29CE484222325; // FNV-1a, over UTF-16
        foreach (var letter in text)
        {
            hash = (hash ^ letter) * 0x100000001B3;
        }

        return Math.Max(1, Mix(hash));
    }

    /// <summary>The finalizer of MurmurHash3.</summary>
    public static ulong Mix(ulong value)
    {
        value = (value ^ (value >> 33)) * 0xFF51AFD7ED558CCD;
        value = (value ^ (value >> 33)) * 0xC4CEB9FE1A85EC53;
        return value ^ (value >> 33);
    }

    /// <param name="key">The key.</param>
    /// <param name="avoid">What is not chosen.</param>
    public PooledChannel? Pick(ulong key, PooledChannel? avoid)
    {
        var priority = Endpoints is { IsShared: true } shared ? shared.PriorityOf(Mix(~BucketOf(key))) : null;
        var among = Endpoints is { IsWeighted: true } weighted ? weighted.GoodWeight(priority) : Math.Max(1, priority?.Good ?? (active.Good - active.OnStandby));
        var most = options().AffinityLoadFactor * (priority?.Share ?? 1) * (active.Calls + active.Streams + 1) / among;
        return First(key) is { IsGood: true } first && first != avoid && !IsBusy(first, most) ? first : Best(BucketOf(key), ChannelStanding.Doubtful, most, avoid);
    }

    public void Count(ulong key, PooledChannel leased)
    {
        if (key != 0)
        {
            tally.CountAffinity(isMove: First(key) != leased);
        }
    }

    /// <summary>How many there have been since this was asked for the last time.</summary>
    public (long Calls, long Moved) TakeMoves()
    {
        var told = _told;
        _told = (tally.AffinityCalls, tally.AffinityMoves);
        return (_told.Calls - told.Calls, _told.Moved - told.Moved);
    }

    private static ulong BucketOf(ulong key) => key % Buckets;

    private PooledChannel? First(ulong key)
    {
        _first ??= new PooledChannel?[Buckets];
        if (_version != active.Version)
        {
            _version = active.Version;
            Array.Clear(_first);
        }

        return _first[BucketOf(key)] ??= Best(BucketOf(key), ChannelStanding.Full + 1, most: double.PositiveInfinity, avoid: null);
    }

    // Below what a channel should carry anyway none is busy. The most is for each channel, or for each part of the weights.
    private bool IsBusy(PooledChannel channel, double most) =>
        channel.Leases >= Math.Max(options().TargetConcurrentCallsPerChannel ?? 1, Math.Ceiling(channel.Server is { IsWeighted: true } server ? most * server.Weight / Math.Max(1, server.Good) : most));

    // Of two numbers drawn alike the one with twice the weight is the higher one two times of three.
    private static ulong ScoreOf(PoolEndpoint? server, ulong bucket) => server is null ? 0
        : Mix(server.Hash ^ Mix(bucket)) is var score && !server.IsWeighted ? score
        : (ulong)(Math.Pow((score + 1.0) / Math.Pow(2, 64), 1.0 / server.Weight) * Math.Pow(2, 63));

    private PooledChannel? Best(ulong bucket, ChannelStanding end, double most, PooledChannel? avoid)
    {
        PooledChannel? best = null;
        (bool IsOfPriority, ulong Endpoint, ulong Own) highest = default;
        var priority = Endpoints is { HasPriorities: true } prioritized ? prioritized.PriorityOf(Mix(~bucket)) : null;
        for (var standing = 0; standing < (int)end; standing++)
        {
            foreach (var channel in active.ByStanding[standing])
            {
                if (channel != avoid && !IsBusy(channel, most))
                {
                    var score = (priority?.Has(channel) ?? true, ScoreOf(channel.Server, bucket), Mix((bucket << 32) + (uint)channel.Seat));
                    if (best is null || score.CompareTo(highest) > 0)
                    {
                        (best, highest) = (channel, score);
                    }
                }
            }
        }

        return best;
    }
}

namespace PoolingInvoker;

/// <summary>One of the endpoints of a pool. Guarded by the lock of the pool.</summary>
internal sealed class PoolEndpoint(ChannelEndpoint endpoint, PoolPriority priority, int seed, ReconnectBackoff backoff, TimeProvider time) : CallShare
{
    private int _good;
    private int _channels;
    private long? _reachedAt; // when it was reached again

    public ChannelEndpoint Endpoint => endpoint;
    public PoolPriority Priority { get; set; } = priority;
    public ulong Rank => ChannelAffinity.Mix(Hash ^ (uint)seed); // where it stands in the order of this pool
    public ulong Hash { get; } = ChannelAffinity.KeyOf(endpoint.ToString()); // the same for all clients
    public int Leases { get; set; } // how many are out on those
    public override int Good => _good;
    public int Weight { get; set; } = 1; // its share of the calls of its priority
    public bool IsWeighted { get; set; } // whether others have another one
    public override double Share => Priority.Share > 0 ? Weight : 0;
    public double Portion => Weight * Priority.Portion; // its share of the channels
    public bool IsGone { get; set; } // whether it is not in the list any more
    public bool HasOthers { get; set; } // whether channels may go elsewhere, too
    public bool IsFailing => backoff.Pause > TimeSpan.Zero; // whether it could not be reached the last time
    public bool IsSilent { get; set; } // whether all its channels are, at the last look
    public bool IsRecovering { get; private set; }
    public long FailedAt => backoff.DialedAt;
    public bool MayDial => backoff.MayDial;

    public int Channels // how many go there, with those that are being made, and without those that drain
    {
        get => _channels;
        set
        {
            Priority.Channels += value - _channels;
            _channels = value;
        }
    }

    public override bool Has(PooledChannel channel) => channel.Server == this;

    public void CountGood(int more)
    {
        _good += more;
        Priority.CountGood(more);
    }

    public void Serve()
    {
        Served += IsWeighted ? 1.0 / Weight : 0;
        Priority.Serve();
    }

    public void Failed()
    {
        backoff.Dialed();
        (_reachedAt, IsRecovering, Priority.HasChanged) = (null, false, true);
    }

    public void Reached()
    {
        if (IsFailing)
        {
            (_reachedAt, Priority.HasChanged) = (time.GetTimestamp(), true);
        }

        backoff.Reset();
    }

    /// <summary>How well it is, from 0 to 1.</summary>
    public double Recovered(TimeSpan delay)
    {
        var well = _reachedAt is { } moment ? PrioritySplit.Recovered(time.GetElapsedTime(moment), delay) : 1;
        IsRecovering = well < 1;
        return well;
    }
}

namespace PoolingInvoker;

/// <summary>
/// What a <see cref="ChannelPool"/> holds at one moment, and what it has done so far. The numbers belong together: they are
/// taken under the lock of the pool.
/// </summary>
public readonly record struct ChannelPoolStatistics
{
    /// <summary>Gets the number of channels that take calls, or are being made. Never more than <see cref="ChannelPoolOptions.MaxPoolSize"/>.</summary>
    public int Channels { get; init; }

    /// <summary>Gets how many of <see cref="Channels"/> carry no call.</summary>
    public int IdleChannels { get; init; }

    /// <summary>Gets the number of channels that take no new calls and close when their last call is over.</summary>
    public int DrainingChannels { get; init; }

    /// <summary>Gets the number of leases that are out, explicit ones included, on draining channels too.</summary>
    public int CallsInFlight { get; init; }

    /// <summary>Gets the number of calls that wait for room on a channel.</summary>
    public int CallsWaiting { get; init; }

    /// <summary>Gets how many channels the pool keeps: <see cref="ChannelPoolOptions.MinPoolSize"/>, or more where it has more endpoints.</summary>
    public int MinPoolSize { get; init; }

    /// <summary>Gets how many channels there are at the most: <see cref="ChannelPoolOptions.MaxPoolSize"/>, which may change.</summary>
    public int MaxPoolSize { get; init; }

    /// <summary>Gets the number of leases taken so far: one for each attempt of a call, and those that are explicit.</summary>
    public long LeasesTaken { get; init; }

    /// <summary>Gets the number of channels made so far.</summary>
    public long ChannelsCreated { get; init; }

    /// <summary>Gets how many channels were made to take the place of one that failed or grew old.</summary>
    public long ChannelsReplaced { get; init; }

    /// <summary>Gets how many channels were given up because nothing came from them any more, nor an answer to a probe.</summary>
    public long ChannelsGivenUp { get; init; }

    /// <summary>Gets the number of attempts of calls with a key (<see cref="PoolingCallInvoker.WithAffinity"/>) that have had a channel.</summary>
    public long AffinityCalls { get; init; }

    /// <summary>
    /// Gets how many of <see cref="AffinityCalls"/> went to another channel than that of their key, because it was full, much busier than the
    /// others, silent, failing or being replaced, or because the attempt before had been on it.
    /// </summary>
    public long AffinityMoves { get; init; }

    /// <summary>Gets the number of attempts that were not the first of their call.</summary>
    public long Retries { get; init; }

    /// <summary>Gets how many of <see cref="Retries"/> were hedges: made beside an attempt of the call, and not after it.</summary>
    public long Hedges { get; init; }

    /// <summary>Gets the number of leases whose call object was dropped without an end and collected, and that were taken back.</summary>
    public long LeaksReclaimed { get; init; }
}

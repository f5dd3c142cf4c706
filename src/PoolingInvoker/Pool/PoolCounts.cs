namespace PoolingInvoker;

/// <summary>What a pool holds at one moment, and what it has done so far, as users and metrics are told.</summary>
internal sealed class PoolCounts(PoolState state)
{
    public ChannelPoolStatistics GetStatistics()
    {
        using var section = state.Enter();
        return Count();
    }

    public IReadOnlyList<PooledChannelSnapshot> GetChannels()
    {
        using var section = state.Enter();
        return Look();
    }

    /// <summary>Both in one section.</summary>
    public PoolReading? Read()
    {
        using var section = state.Enter(isReading: true);
        return state is { IsDisposed: true, Channels.Count: 0 } ? null : new(Count(), Look(), state.Metrics.CopyEvents());
    }

    private IReadOnlyList<PooledChannelSnapshot> Look() =>
        [.. state.Channels.Values.OrderBy(static channel => channel.Id).Select(channel => channel.ToSnapshot(state.Since(channel.CreatedAt)))];

    private ChannelPoolStatistics Count()
    {
        var tally = state.Metrics.Tally;
        var hedges = tally.Hedges;
        return new ChannelPoolStatistics
        {
            Channels = state.Count,
            IdleChannels = state.Active.Count(static channel => channel.Leases == 0),
            DrainingChannels = state.Draining,
            CallsInFlight = state.Leases,
            CallsWaiting = state.Waiters.Count,
            MinPoolSize = state.Minimum,
            MaxPoolSize = state.Options.MaxPoolSize,
            LeasesTaken = state.Taken,
            ChannelsCreated = state.Created,
            ChannelsReplaced = state.Replaced,
            ChannelsGivenUp = state.GivenUp,
            AffinityCalls = tally.AffinityCalls,
            AffinityMoves = tally.AffinityMoves,
            Retries = tally.Retries + hedges,
            Hedges = hedges,
            LeaksReclaimed = tally.Leaks,
        };
    }
}

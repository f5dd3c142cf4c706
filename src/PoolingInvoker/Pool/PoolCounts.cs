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
        return state is { IsDisposed: true, Channels.Count: 0 } ? null : new(Count(), Look(), state.Metrics.Tally.CopyEvents());
    }

    private IReadOnlyList<PooledChannelSnapshot> Look() =>
        [.. state.Channels.Values.OrderBy(static channel => channel.Id).Select(channel => channel.ToSnapshot(state.Since(channel.CreatedAt)))];

    private ChannelPoolStatistics Count() => state.Metrics.Tally.AddTo(new ChannelPoolStatistics
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
    });
}

namespace PoolingInvoker;

/// <summary>What a pool holds at one moment, and what it has done so far, as users and metrics are told.</summary>
internal sealed class PoolCounts
{
    private readonly PoolState _state;

    public PoolCounts(PoolState state)
    {
        _state = state;
        state.Metrics.Read = Read;
    }

    public ChannelPoolStatistics GetStatistics()
    {
        using var section = _state.Enter();
        return Count();
    }

    public IReadOnlyList<PooledChannelSnapshot> GetChannels()
    {
        using var section = _state.Enter();
        return Look();
    }

    // Both in one section.
    private PoolReading? Read()
    {
        using var section = _state.Enter(isReading: true);
        return _state is { IsDisposed: true, Channels.Count: 0 } ? null : new(Count(), Look(), _state.Metrics.Tally.CopyEvents());
    }

    private IReadOnlyList<PooledChannelSnapshot> Look() =>
        [.. _state.Channels.Values.OrderBy(static channel => channel.Id).Select(channel => channel.ToSnapshot(_state.Since(channel.CreatedAt)))];

    private ChannelPoolStatistics Count() => _state.Metrics.Tally.AddTo(new ChannelPoolStatistics
    {
        Channels = _state.Count,
        IdleChannels = _state.Active.Count(static channel => channel.Leases == 0),
        DrainingChannels = _state.Draining,
        CallsInFlight = _state.Leases,
        CallsWaiting = _state.Waiters.Count,
        MinPoolSize = _state.Minimum,
        MaxPoolSize = _state.Options.MaxPoolSize,
        LeasesTaken = _state.Taken,
        ChannelsCreated = _state.Created,
        ChannelsReplaced = _state.Replaced,
        ChannelsGivenUp = _state.GivenUp,
    });
}

namespace PoolingInvoker;

/// <summary>What a server says on a connection of one of the channels.</summary>
internal sealed class ConnectionEvents(PoolState state, ChannelConnector connector, PooledChannel channel)
{
    public void Watch(ChannelTransport? transport)
    {
        transport?.SettingsCame += ServerTakes;
        transport?.GoAwayCame += ServerGoes;
        transport?.ConnectionLost += ConnectionLost;
    }

    public void ServerTakes(int maxStreams)
    {
        using var section = state.Enter(PoolReason.CallsNeedIt);
        if (channel.Announced != maxStreams)
        {
            state.After(() => state.Log.LimitAnnounced(channel, maxStreams));
        }

        channel.Announced = maxStreams;
        channel.IsGoing = false; // it is another connection
        connector.Announced = maxStreams > 0 ? maxStreams : connector.Announced; // that is for now, and of this connection
        channel.IsUntried = false;
        channel.FoundAlive();
        state.Active.Update(channel);
    }

    /// <summary>The calls on the channel are about to fail. Those that are sent again go elsewhere from now on. One that stands by is to be connected.</summary>
    public void ConnectionLost()
    {
        using var section = state.Enter();
        if (channel is { Leases: > 0 } or { StandsBy: true, Index: >= 0 })
        {
            channel.Signal(ChannelSignal.ChannelFailed);
            state.Active.Update(channel);
        }
    }

    public void ServerGoes()
    {
        using var section = state.Enter(isReading: true);
        var isIdle = channel is { Leases: 0, StandsBy: false } && state.Waiters.Count == 0;
        if (channel.State == PooledChannelState.Refreshing)
        {
            channel.State = PooledChannelState.Replacing; // by the one that is being connected
            state.Active.Update(channel);
        }
        else if (channel.State != PooledChannelState.Active || channel.Index < 0 || state.IsDisposed)
        {
            channel.IsGoing = channel.State == PooledChannelState.Connecting; // whoever brings it up sees to it
        }
        else if (isIdle && state.Count > state.Minimum)
        {
            state.Retire(channel, PoolReason.ServerGoing);
        }
        else
        {
            connector.Replace(channel, PoolReason.ServerGoing, countsAsDial: false, isIdle);
        }
    }
}

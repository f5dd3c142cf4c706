namespace PoolingInvoker;

/// <summary>What becomes of a channel that is looked at by the maintenance.</summary>
internal enum UpkeepAction
{
    Keep,
    Close, // it takes no more calls, and none takes its place
    Renew, // another one takes its place, and connects with its first call: a NAT may have forgotten the idle connection
}

/// <summary>Closes and renews channels that are idle, replaces those that are old, and sets those aside that the load does not need.</summary>
internal sealed class PoolUpkeep : IDisposable
{
    // How long a handler keeps a connection that carries nothing, as a rule: it is not there any more, and need not be refreshed.
    private static readonly TimeSpan IdleConnection = TimeSpan.FromMinutes(1);

    private readonly PoolState _state;
    private readonly ChannelConnector _connector;
    private readonly PoolGrowth _growth;
    private readonly LeaseLeakDetector? _leakDetector;
    private readonly PoolTimer? _timer;

    public PoolUpkeep(PoolState state, ChannelConnector connector, PoolGrowth growth, LeaseLeakDetector? leakDetector)
    {
        (_state, _connector, _growth, _leakDetector) = (state, connector, growth, leakDetector);

        // All channels are refreshed within a third of their lifetime, a few at each maintenance.
        TimeSpan[] ages = [state.Options.PooledChannelIdleTimeout, state.Options.PooledChannelLifetime / 6, state.Options.LeakDetectionThreshold];
        var shortest = ages.Where(static age => age > TimeSpan.Zero).DefaultIfEmpty(Timeout.InfiniteTimeSpan).Min();
        var period = TimeSpan.FromMilliseconds(Math.Clamp(shortest.TotalMilliseconds / 10, 1, 30_000));
        _timer = shortest == Timeout.InfiniteTimeSpan ? null : new PoolTimer(state, this, static upkeep => ((PoolUpkeep)upkeep).Run(), period);
    }

    /// <summary>What becomes of a channel that carries no call, where there are more channels than the minimum (<paramref name="isSpare"/>) or not.</summary>
    public static UpkeepAction Decide(TimeSpan idleFor, TimeSpan timeout, bool isSpare, bool wasConnected) =>
        timeout == Timeout.InfiniteTimeSpan || idleFor < timeout ? UpkeepAction.Keep
        : isSpare ? UpkeepAction.Close
        : wasConnected ? UpkeepAction.Renew
        : UpkeepAction.Keep;

    public void Dispose() => _timer?.Dispose();

    private void Run()
    {
        CloseIdle();
        using (_state.Enter())
        {
            RefreshOld();
            SetAside();
        }

        _leakDetector?.Report();
    }

    private void CloseIdle()
    {
        var timeout = _state.Options.PooledChannelIdleTimeout;
        var reason = $"it carried no call for {timeout}";
        using var section = _state.Enter("calls need it"); // somebody waits if a channel was idle because its server takes nothing
        for (var i = _state.Active.Count - 1; i >= 0; i--)
        {
            var channel = _state.Active[i];
            var action = channel is not { State: PooledChannelState.Active, Leases: 0 } ? UpkeepAction.Keep
                : Decide(IdleFor(channel), timeout, _state.Count > _state.Minimum, channel.Transport is { ConnectionsMade: > 0 });
            if (action == UpkeepAction.Close)
            {
                _state.Retire(channel, reason);
            }
            else if (action == UpkeepAction.Renew)
            {
                _connector.Replace(channel, reason, countsAsDial: false, isIdle: true);
            }
        }
    }

    // Few at a time, the oldest first, so that a pool whose channels were made together is not made anew at one stroke.
    private void RefreshOld()
    {
        var old = _state.Active
            .Where(channel => channel.State == PooledChannelState.Active && channel.Lifetime != Timeout.InfiniteTimeSpan && Age(channel.CreatedAt) >= channel.Lifetime)
            .OrderBy(static channel => channel.CreatedAt)
            .Take(_state.Moves)
            .ToList();
        foreach (var channel in old)
        {
            _connector.Refresh(channel, $"it was older than {channel.Lifetime}", isIdle: channel.Leases == 0 && IdleFor(channel) > IdleConnection);
        }
    }

    // Spare channels that are not needed again close when they have been idle for long enough. They are of the endpoints with most.
    private void SetAside()
    {
        var wanted = Math.Max(_state.Minimum - _state.Active.OfStreams, _growth.TakePeak());
        var spare = _state.Active.Where(static channel => channel.Standing == ChannelStanding.Calls)
            .GroupBy(static channel => channel.Server)
            .SelectMany(static channels => channels.Select(static (channel, rank) => (channel, rank)))
            .OrderByDescending(static ranked => ranked.rank)
            .Take(_state.Active.OfCalls - wanted)
            .Select(static ranked => ranked.channel)
            .ToList();
        foreach (var channel in spare)
        {
            channel.IsSpare = true;
            _state.Active.Update(channel);
        }
    }

    private TimeSpan IdleFor(PooledChannel channel) => Age(channel.IdleSince);

    private TimeSpan Age(long since) => _state.Time.GetElapsedTime(since, _state.Now);
}

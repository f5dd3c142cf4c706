namespace PoolingInvoker;

/// <summary>What becomes of a channel that is looked at by the maintenance.</summary>
internal enum UpkeepAction
{
    Keep,
    Close, // it takes no more calls, and none takes its place
    Renew, // another one takes its place, and connects with its first call: a NAT may have forgotten the idle connection
}

/// <summary>Closes and renews channels that are idle, replaces those that are old, and sets those aside that the load does not need.</summary>
internal sealed class PoolUpkeep
{
    // How long a handler keeps a connection that carries nothing, as a rule: it is not there any more, and need not be refreshed.
    private static readonly TimeSpan IdleConnection = TimeSpan.FromMinutes(1);

    private readonly PoolState _state;
    private readonly ChannelConnector _connector;
    private readonly PoolGrowth _growth;
    private readonly LeaseLeakDetector? _leakDetector;
    private readonly PoolTimer _timer;
    private TimeSpan _period;

    public PoolUpkeep(PoolState state, ChannelConnector connector, PoolGrowth growth, LeaseLeakDetector? leakDetector)
    {
        (_state, _connector, _growth, _leakDetector) = (state, connector, growth, leakDetector);
        _period = PeriodFor(state.Options);
        _timer = new PoolTimer(state, this, static upkeep => ((PoolUpkeep)upkeep).Run(), _period);
    }

    /// <summary>What becomes of a channel that carries no call, where there are more channels than the minimum (<paramref name="isSpare"/>) or not.</summary>
    public static UpkeepAction Decide(TimeSpan idleFor, TimeSpan timeout, bool isSpare, bool wasConnected) =>
        timeout == Timeout.InfiniteTimeSpan || idleFor < timeout ? UpkeepAction.Keep
        : isSpare ? UpkeepAction.Close
        : wasConnected ? UpkeepAction.Renew
        : UpkeepAction.Keep;

    /// <summary>The options have changed. Under the lock.</summary>
    public void Reschedule()
    {
        if (PeriodFor(_state.Options) is var period && period != _period)
        {
            _period = period;
            _timer.Repeat(_state, period);
        }
    }

    // All channels are refreshed within a third of their lifetime, a few at each maintenance.
    private static TimeSpan PeriodFor(ChannelPoolOptions options)
    {
        TimeSpan[] ages = [options.PooledChannelIdleTimeout, options.PooledChannelLifetime / 6, options.LeakDetectionThreshold];
        var shortest = ages.Where(static age => age > TimeSpan.Zero).DefaultIfEmpty(Timeout.InfiniteTimeSpan).Min();
        return shortest == Timeout.InfiniteTimeSpan ? shortest : TimeSpan.FromMilliseconds(Math.Clamp(shortest.TotalMilliseconds / 10, 1, 30_000));
    }

    private void Run()
    {
        using (_state.Enter(PoolReason.CallsNeedIt)) // somebody waits if a channel was idle because its server takes nothing
        {
            CloseIdle();
            RefreshOld();
            SetAside();
            if (_state.Affinity.TakeMoves() is { Moved: > 0 } last)
            {
                _state.Diary.AffinityMoved(PoolReason.AffinityMoved(last.Moved, last.Calls));
            }
        }

        _leakDetector?.Report();
    }

    private void CloseIdle()
    {
        var timeout = _state.Options.PooledChannelIdleTimeout;
        var reason = PoolReason.Idle(timeout);
        foreach (var channel in _state.Active.Reverse()) // a copy
        {
            var action = channel is not { State: PooledChannelState.Active, Leases: 0 } ? UpkeepAction.Keep
                : Decide(_state.Since(channel.IdleSince), timeout, _state.Count > _state.Minimum && !channel.StandsBy, channel.Transport is { ConnectionsMade: > 0 });
            if (action == UpkeepAction.Close)
            {
                _state.Retire(channel, reason);
            }
            else if (action == UpkeepAction.Renew && channel.StandsBy)
            {
                _connector.Refresh(channel, reason); // it is to be connected
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
            .Where(channel => channel.State == PooledChannelState.Active && channel.Lifetime != Timeout.InfiniteTimeSpan && _state.Since(channel.CreatedAt) >= channel.Lifetime)
            .OrderBy(static channel => channel.CreatedAt)
            .Take(_state.Moves)
            .ToList();
        foreach (var channel in old)
        {
            _connector.Refresh(channel, PoolReason.TooOld(channel.Lifetime), isIdle: channel is { Leases: 0, StandsBy: false } && _state.Since(channel.IdleSince) > IdleConnection);
        }
    }

    // Spare channels that are not needed again close when they have been idle for long enough. They are of the endpoints with most.
    private void SetAside()
    {
        var wanted = Math.Max(_state.Minimum - _state.Active.OnStandby - _state.Active.OfStreams, _growth.TakePeak());
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
}

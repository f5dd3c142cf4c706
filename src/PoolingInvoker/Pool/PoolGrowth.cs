namespace PoolingInvoker;

/// <summary>
/// Adds channels: where there are fewer than the minimum, where calls wait, and where for a while channels have carried more than
/// TargetConcurrentCallsPerChannel (see <see cref="ChannelTarget"/>), or calls had to share one with streams that last.
/// </summary>
internal sealed class PoolGrowth
{
    private static readonly TimeSpan LoadPeriod = TimeSpan.FromMilliseconds(50);
    private static readonly TimeSpan ForgetsSharing = TimeSpan.FromMinutes(1);

    private readonly PoolState _state;
    private readonly ChannelConnector _connector;
    private readonly PoolTimer _waitersTimer;
    private readonly PoolTimer _loadTimer;
    private long _returns;
    private (long Returns, long At) _waitersSample;
    private (long Picks, long Calls, long Streams) _loadSum; // as arriving calls saw it, since the last sample
    private (double Calls, double Streams) _previousLoad;
    private (int Now, int Before) _peak; // calls at a time, since the last maintenance and the one before
    private (long Since, long Last)? _sharing; // while calls share channels with streams that last, because there is no other

    public PoolGrowth(PoolState state, ChannelConnector connector)
    {
        (_state, _connector) = (state, connector);
        _waitersTimer = new PoolTimer(state, this, static growth => ((PoolGrowth)growth).LookAtWaiters());
        _loadTimer = new PoolTimer(state, this, static growth => ((PoolGrowth)growth).SampleLoad());
        state.Grow = because => Grow(because);
        state.WillGrow = () => _waitersTimer.IsStarted;
    }

    public int Places => _state.IsDisposed ? 0
        : GrowthPolicy.Places(_state.Options.MaxPoolSize, _state.Active.Count, _state.Creating, _connector.LastConnectFailed && _state.Balancer is not { MayDialElsewhere: true }, _state.Backoff.MayDial);

    public int Needed => Math.Max(1, ChannelsFor(Math.Max(_peak.Now, _peak.Before))); // by the calls of late

    private int? OwnLimit => _state.Options.MaxConcurrentCallsPerChannel;
    private long ExpectedCapacity => Math.Max(1, Math.Min(OwnLimit ?? int.MaxValue, _connector.Announced ?? OwnLimit ?? PooledChannel.FallbackCapacity));
    private bool MayGrow => !_state.IsDisposed && _state.Count < _state.Options.MaxPoolSize;

    /// <summary>
    /// Reserves the channels that are missing now, and begins to make them: for a call also those below the minimum, and one for the calls
    /// after it where it got nothing and does not wait.
    /// </summary>
    public void Grow(PoolReason because, bool isCall = false, bool isRefused = false)
    {
        if (Places == 0)
        {
            WatchWaiters(_connector.LastConnectFailed);
            return;
        }

        var below = Math.Max(isCall ? _state.Minimum - _state.Count : 0, isRefused && _state.Creating + _state.Waiters.Count == 0 ? 1 : 0);
        Create(Math.Max(below, MissingForWaiters(returnsPerSecond: null)), because);
    }

    public void CountReturn() => _returns++;

    public void CountLease()
    {
        var active = _state.Active;
        _peak.Now = Math.Max(_peak.Now, active.Calls);
        if (active.OfCalls > 0)
        {
            _sharing = null;
        }
        else if (active is { Calls: > 0, Streams: > 0 })
        {
            _sharing = (_sharing is { } sharing && _state.Since(sharing.Last) < ForgetsSharing ? sharing.Since : _state.Now, _state.Now);
        }

        if (_loadTimer.IsStarted)
        {
            _loadSum = (_loadSum.Picks + 1, _loadSum.Calls + active.Calls, _loadSum.Streams + active.Streams);
        }
        else if (active is { AreCrowded: true, Spare: 0 } && MayGrow)
        {
            (_previousLoad, _loadSum) = (default, default);
            _loadTimer.Start(_state, LoadPeriod);
        }
    }

    /// <summary>How many channels the calls of late needed.</summary>
    public int TakePeak()
    {
        var needed = Needed;
        _peak = (_state.Active.Calls, _peak.Now);
        return needed;
    }

    /// <summary>Compares the load with that of the last sample: what both needed is made.</summary>
    internal void SampleLoad()
    {
        using var section = _state.Enter();
        _loadTimer.IsStarted = false;
        var active = _state.Active;
        (double Calls, double Streams) load = _loadSum.Picks == 0
            ? (active.Calls, active.Streams)
            : ((double)_loadSum.Calls / _loadSum.Picks, (double)_loadSum.Streams / _loadSum.Picks);
        var lasting = ChannelsFor(Math.Min(load.Calls, _previousLoad.Calls)) + ChannelsFor(Math.Min(load.Streams, _previousLoad.Streams));
        if (_sharing is { } sharing && _state.Since(sharing.Since) >= 2 * LoadPeriod)
        {
            lasting = Math.Max(lasting, active.OfStreams + 1); // the calls are few, but come again and again
        }

        Create(
            lasting - (_state.Count - active.Aside),
            PoolReason.Crowded(_state.Options.TargetConcurrentCallsPerChannel));
        (_previousLoad, _loadSum) = (load, default);
        if (MayGrow && ChannelsFor(load.Calls) + ChannelsFor(load.Streams) > _state.Count - active.Aside)
        {
            _loadTimer.Start(_state, LoadPeriod);
        }
    }

    private int ChannelsFor(double load) => _state.Active.Target.ChannelsFor(load, ExpectedCapacity);

    private long MissingForWaiters(double? returnsPerSecond)
    {
        var channels = _state.Active.Count;
        if (_state.Waiters.Count == 0 || (_connector.LastCreationFailed && channels > 0))
        {
            return 0;
        }

        var isMissing = _state.Waiters.Count > (_state.Creating + _state.Replacing) * ExpectedCapacity;

        // Another connection to a server that has taken nothing from the first on would bring no more. Of one that takes no more on a connection it
        // may lead to another server.
        var blocked = isMissing ? _state.Active.Count(static channel => channel is { Capacity: 0, HasTaken: false }) : 0;
        var load = new WaitingLoad(_state.Waiters.Count, channels, _state.Creating, _state.Replacing, blocked, ExpectedCapacity, _connector.ConnectTime);
        var (add, looksAgain) = GrowthPolicy.ForWaiters(load, returnsPerSecond);
        WatchWaiters(looksAgain);
        return add;
    }

    private void Create(long count, PoolReason because)
    {
        for (count = Math.Min(count, Places); count > 0; count--)
        {
            _connector.BeginCreating(because);
        }
    }

    private void WatchWaiters(bool on)
    {
        if (on && _state.Waiters.Count > 0 && !_waitersTimer.IsStarted)
        {
            _waitersSample = (_returns, _state.Now);
            _waitersTimer.Start(_state, GrowthPolicy.WaitersPause(_connector.ConnectTime));
        }
    }

    private void LookAtWaiters()
    {
        using var section = _state.Enter();
        _waitersTimer.IsStarted = false;
        var elapsed = _state.Since(_waitersSample.At).TotalSeconds;
        Create(MissingForWaiters(elapsed > 0 ? (_returns - _waitersSample.Returns) / elapsed : 0), PoolReason.CallsWait);
        WatchWaiters(MayGrow);
    }
}

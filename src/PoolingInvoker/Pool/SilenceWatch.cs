namespace PoolingInvoker;

/// <summary>
/// Finds black holes: channels on which calls wait, and from which nothing comes. A channel whose calls have waited for ProbeDelay, while
/// not a byte has come from its connection, is suspect, and is asked for a sign of life, with a ping as a rule. If it gives none within
/// ProbeTimeout it is given up: its connection is broken, so that its calls end as they do when a server dies, and a channel on which a
/// server answers takes its place. That takes more evidence (<see cref="SilencePolicy.Judge"/>), so that nothing is cut when the network or
/// this process stands still. And a server that stood still wakes up on all channels in any order: the suspect has the last word, after the
/// others.
/// </summary>
internal sealed class SilenceWatch : IDisposable
{
    private static readonly TimeSpan Penalty = TimeSpan.FromSeconds(1); // how long a channel is spared whose server has failed a call

    private readonly PoolState _state;
    private readonly ChannelConnector _connector;
    private readonly FreshChannels _fresh;
    private readonly ChannelPoolOptions _options;
    private readonly PoolTimer _timer;
    private readonly TimeSpan _period;
    private readonly TimeSpan _lastWord; // how long a suspect has for it, at the least
    private bool _asksFresh;
    private long _freshAnsweredAt = long.MinValue;

    public SilenceWatch(PoolState state, ChannelConnector connector)
    {
        (_state, _connector, _fresh, _options) = (state, connector, new FreshChannels(state, connector), state.Options);
        _timer = new PoolTimer(state, this, static watch => ((SilenceWatch)watch).Look());
        _period = Probes && _options.ProbeDelay < Penalty ? TimeSpan.FromMilliseconds(Math.Max(10, _options.ProbeDelay.TotalMilliseconds / 4)) : Penalty / 4;
        _lastWord = _options.ProbeTimeout < PoolState.FirstPause ? _options.ProbeTimeout : PoolState.FirstPause;
    }

    private bool Probes => _options.ProbeDelay != Timeout.InfiniteTimeSpan;

    public void Dispose() => _timer.Dispose();

    /// <summary>Looks at the channels from now on, until there are no calls.</summary>
    public void Start()
    {
        if (_timer.IsStarted || _state.IsDisposed)
        {
            return;
        }

        foreach (var channel in _state.Channels.Values)
        {
            channel.Pulse.IsNotSilent(_state.Now); // nobody has looked for a while, nor had reason to
        }

        _timer.Start(_period);
    }

    private void Look()
    {
        using var section = _state.Enter(); // a channel may take more by now
        _timer.IsStarted = false;
        var goesOn = false;
        foreach (var channel in _state.Channels.Values)
        {
            goesOn |= Look(channel) | ReplaceBroken(channel);
        }

        if (goesOn && !_state.IsDisposed)
        {
            _timer.Start(_period);
        }
    }

    // Says whether there will be something to see at the next look.
    private bool Look(PooledChannel channel)
    {
        if (channel.Health == ChannelHealth.Penalized && Since(channel.PenalizedAt) >= Penalty)
        {
            channel.Signal(ChannelSignal.PenaltyOver);
        }

        _state.Active.LookAtStreams(channel);
        channel.IsUntried &= Since(channel.CreatedAt) < ChannelConnector.PatienceAlone;
        var pulse = channel.Pulse;
        if (!pulse.IsProbed) // what comes now may be the answer to the probe
        {
            pulse.Look(_state.Now);
            if (IsToBeAsked(channel))
            {
                pulse.IsProbed = true;
                channel.Signal(ChannelSignal.Silent);
                _state.After(() => _state.Work.Begin(() => ProbeAsync(channel)));
            }
        }

        _state.Active.Update(channel);
        return pulse.Calls > 0 || channel.Health == ChannelHealth.Penalized;
    }

    // Calls keep away from a broken channel while there are good ones, and no call would find that it may be replaced by now.
    private bool ReplaceBroken(PooledChannel channel)
    {
        if (_state.Active.Good == 0)
        {
            return false;
        }

        if (channel.ReasonToReplace(_state.Backoff, thorough: false) is { } reason)
        {
            _connector.Replace(channel, reason);
        }

        return channel.Index >= 0 && (channel.Health == ChannelHealth.Broken || channel.BrokenState(thorough: false) is not null);
    }

    // A channel over a transport of the user's own can be asked with a call of theirs alone.
    private bool IsToBeAsked(PooledChannel channel)
    {
        var (pulse, transport) = (channel.Pulse, channel.Transport);
        return Probes && channel.Health != ChannelHealth.GivenUp && (transport is not null || _options.Probe is not null)
            && (pulse.AskedInVainAt is not { } asked || Since(asked) >= _options.ProbeDelay)
            && (Since(pulse.WaitsSince) >= SilencePolicy.Patience(_options.ProbeDelay, pulse.Probes, transport is { HasConnections: false }, pings: transport is not null)
                || Since(pulse.SilentSince) >= SilencePolicy.RarePing);
    }

    private async Task ProbeAsync(PooledChannel channel)
    {
        _state.Log.Suspected(channel);
        var pulse = channel.Pulse;
        var began = _state.Time.GetTimestamp();
        var answers = await IsAnsweredAsync(channel).ConfigureAwait(false);
        SilenceVerdict verdict;
        using (_state.Enter())
        {
            // What a look sees has happened since the look before.
            var since = began + (long)(_period.TotalSeconds * _state.Time.TimestampFrequency);
            pulse.IsProbed = false;
            verdict = SilencePolicy.Judge(
                answers || pulse.ShowsLife,
                _state.IsDisposed ? 0 : pulse.Calls,
                Since(began),
                _options.ProbeTimeout,
                freshAnswered: _freshAnsweredAt >= began,
                _state.Active.Count(other => other != channel && other.Pulse.LivesSince(since)),
                _state.Active.Count(static other => other.Pulse.IsSuspect),
                _state.Active.Count);
            if (verdict == SilenceVerdict.Lives)
            {
                ProbeAnswered(channel);
            }
            else if (verdict != SilenceVerdict.Unknown)
            {
                pulse.AskedInVainAt = _state.Now;
            }

            if (verdict == SilenceVerdict.AskFresh && (_asksFresh || channel.State != PooledChannelState.Active))
            {
                verdict = SilenceVerdict.Unknown;
            }

            _asksFresh |= verdict == SilenceVerdict.AskFresh;
        }

        if (verdict == SilenceVerdict.GiveUp)
        {
            await LastWordAsync(channel, _lastWord).ConfigureAwait(false);
            GiveUp(channel, fresh: null);
        }
        else if (verdict == SilenceVerdict.AskFresh)
        {
            try
            {
                await AskFreshAsync(channel).ConfigureAwait(false);
            }
            finally
            {
                using var section = _state.Enter();
                _asksFresh = false;
            }
        }
    }

    // At the limit of its streams a channel answers a ping alone; over a transport of the user's own there is the probe alone.
    private async Task<bool> IsAnsweredAsync(PooledChannel channel)
    {
        using var timeout = new CancellationTokenSource(_options.ProbeTimeout, _state.Time);
        List<Task<bool>> asking = [];
        if (channel.Transport is { } transport)
        {
            asking.Add(IsPingedAsync(transport.PingAsync(timeout.Token)));
        }

        if (_options.Probe is not null)
        {
            asking.Add(_options.IsAnsweredAsync(channel.CallInvoker, timeout.Token));
        }

        return await FreshChannels.FirstAsync(asking).ConfigureAwait(false);

        static async Task<bool> IsPingedAsync(Task pinging) => await ChannelConnector.FailureOfAsync(pinging).ConfigureAwait(false) is null;
    }

    // The ping has been sent, and its answer may come as long as the connection stands. A call was ended with its time.
    private async Task LastWordAsync(PooledChannel channel, TimeSpan patience)
    {
        using var timeout = new CancellationTokenSource(patience, _state.Time);
        if (_options.Probe is null || !await _options.IsAnsweredAsync(channel.CallInvoker, timeout.Token).ConfigureAwait(false))
        {
            await Task.Delay(Timeout.InfiniteTimeSpan, _state.Time, timeout.Token).ConfigureAwait(ConfigureAwaitOptions.SuppressThrowing);
            return;
        }

        using var section = _state.Enter();
        ProbeAnswered(channel);
    }

    private void ProbeAnswered(PooledChannel channel)
    {
        channel.Pulse.ProbeAnswered(_state.Now);
        _state.Active.Update(channel);
    }

    // What lies unread is an answer that this process has not got to.
    private static bool IsSilent(PooledChannel channel) =>
        channel is { Health: not ChannelHealth.GivenUp, Pulse.IsSilentStill: true, Transport: not { HasUnread: true } };

    // It takes no more calls, those that it has end, and a fresh one takes its place: the one that is there, or the next on which a server
    // answers.
    private void GiveUp(PooledChannel channel, PooledChannel? fresh)
    {
        using var section = _state.Enter();
        if (!IsSilent(channel))
        {
            _state.Discard(fresh);
            return;
        }

        var evidence = fresh is null ? "nor an answer to a probe" : "and a server answered on a fresh one";
        var reason = $"nothing has come from it for {Since(channel.Pulse.SilentSince).TotalSeconds:0.#} s, {evidence}";
        channel.Signal(ChannelSignal.GivenUp);
        if (fresh is null || fresh.Server != channel.Server)
        {
            _state.Balancer?.CouldNotReach(channel);
        }

        if (channel.State != PooledChannelState.Active || _state.IsDisposed)
        {
            _state.Discard(fresh);
        }
        else
        {
            _connector.MarkReplacing(channel, countsAsDial: false);
            if (fresh is not null)
            {
                Join(channel, fresh, reason);
            }
            else
            {
                _state.After(() => _state.Work.Begin(() => ReplaceAsync(channel, reason)));
            }
        }

        _state.GivenUp++;
        _state.Diary.GivenUp(channel, reason);
        _state.After(() => channel.Transport?.Abort(reason));
    }

    // What is made in place of a silent channel may lead to the same server. When there are no calls, or some that have nowhere else to go,
    // it goes on as one whose connection is broken.
    private async Task ReplaceAsync(PooledChannel silent, string reason)
    {
        var fresh = await _fresh.FindAsync(silent, () => _state is { Leases: > 0, Waiters.Count: 0 }).ConfigureAwait(false);
        using var section = _state.Enter("calls need it");
        Join(silent, fresh, reason);
    }

    private void Join(PooledChannel silent, PooledChannel? fresh, string reason)
    {
        var error = fresh is null ? new TimeoutException("No server answered on a fresh channel.") : (Exception?)null;
        fresh?.FoundAlive();
        _connector.Join(silent, fresh, ref error, reason, connectedIn: null);
    }

    // No channel shows life, or few do: is it them, or is it everything? Fresh channels tell, as long as calls wait. If a server answers on
    // one all that were asked in vain are given up. One that stood still answers all of them as it goes on, in any order.
    private async Task AskFreshAsync(PooledChannel silent)
    {
        var isWaiting = () => silent is { Pulse: { IsSuspect: true, Calls: > 0 }, State: PooledChannelState.Active };
        if (await _fresh.FindAsync(inPlaceOf: null, isWaiting).ConfigureAwait(false) is not { } fresh)
        {
            return;
        }

        List<PooledChannel> suspects;
        TimeSpan took;
        using (_state.Enter())
        {
            _freshAnsweredAt = _state.Now;
            took = TimeSpan.FromTicks(Math.Clamp(Since(fresh.CreatedAt).Ticks, _lastWord.Ticks, _options.ProbeTimeout.Ticks));
            suspects = [.. _state.Channels.Values.Where(static channel => channel.Pulse.IsSilentStill)];
        }

        await Task.WhenAll(suspects.Select(channel => LastWordAsync(channel, took))).ConfigureAwait(false);
        GiveUp(silent, fresh);
        suspects.ForEach(channel => GiveUp(channel, fresh: null));
    }

    private TimeSpan Since(long moment) => _state.Time.GetElapsedTime(moment, _state.Now);
}

namespace PoolingInvoker;

/// <summary>
/// Finds black holes: channels on which calls wait, and from which nothing comes. A channel whose calls have waited for ProbeDelay, while
/// not a byte has come from its connection, is suspect, and is asked for a sign of life, with a ping as a rule. If it gives none within
/// ProbeTimeout it is given up: its connection is broken, so that its calls end as they do when a server dies, and a channel on which a
/// server answers takes its place. That takes more evidence (<see cref="SilencePolicy.Judge"/>), so that nothing is cut when the network or
/// this process stands still. And a server that stood still wakes up on all channels in any order: the suspect has the last word, after the
/// others.
/// </summary>
internal sealed class SilenceWatch
{
    private const int FreshAtATime = 3;
    private static readonly TimeSpan Penalty = TimeSpan.FromSeconds(1); // how long a channel is spared whose server has failed a call

    private readonly PoolState _state;
    private readonly ChannelConnector _connector;
    private readonly PoolTimer _timer;
    private bool _asksFresh;
    private long _freshAnsweredAt = long.MinValue;

    public SilenceWatch(PoolState state, ChannelConnector connector)
    {
        (_state, _connector) = (state, connector);
        _timer = new PoolTimer(state, this, static watch => ((SilenceWatch)watch).Look());
    }

    private ChannelPoolOptions Options => _state.Options;
    private TimeSpan Period => Probes && Options.ProbeDelay < Penalty ? TimeSpan.FromMilliseconds(Math.Max(10, Options.ProbeDelay.TotalMilliseconds / 4)) : Penalty / 4;
    private TimeSpan LastWord => Options.ProbeTimeout < PoolState.FirstPause ? Options.ProbeTimeout : PoolState.FirstPause; // how long a suspect has for it, at the least
    private bool Probes => Options.ProbeDelay != Timeout.InfiniteTimeSpan;

    /// <summary>Looks at the channels from now on, until there are no calls.</summary>
    public void Start()
    {
        if (_timer.IsStarted)
        {
            return;
        }

        foreach (var channel in _state.Channels.Values)
        {
            channel.Pulse.IsNotSilent(_state.Now); // nobody has looked for a while, nor had reason to
        }

        _timer.Start(_state, Period);
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

        if (goesOn)
        {
            _timer.Start(_state, Period);
        }
    }

    // Says whether there will be something to see at the next look.
    private bool Look(PooledChannel channel)
    {
        if (channel.Health == ChannelHealth.Penalized && _state.Since(channel.PenalizedAt) >= Penalty)
        {
            channel.Signal(ChannelSignal.PenaltyOver);
        }

        _state.Active.LookAtStreams(channel);
        channel.IsUntried &= _state.Since(channel.CreatedAt) < ChannelConnector.PatienceAlone;
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

    // Calls keep away from a broken channel while there are good ones, and no call would find that it may be replaced by now. In place of one
    // that was given up a server is looked for while there are calls.
    private bool ReplaceBroken(PooledChannel channel)
    {
        if (_state.Active.Good == 0 || (channel.Health == ChannelHealth.GivenUp && _state.Leases == 0))
        {
            return false;
        }

        if (channel.ReasonToReplace(_state.Backoff, thorough: false) is { } reason)
        {
            _connector.Replace(channel, reason);
        }

        return channel.Index >= 0 && (channel.Health >= ChannelHealth.Broken || channel.BrokenState(thorough: false) is not null);
    }

    // A channel over a transport of the user's own can be asked with a call of theirs alone.
    private bool IsToBeAsked(PooledChannel channel)
    {
        var (pulse, transport) = (channel.Pulse, channel.Transport);
        return Probes && channel.Health != ChannelHealth.GivenUp && (transport is not null || Options.ProbeCallback is not null)
            && (pulse.AskedInVainAt is not { } asked || _state.Since(asked) >= Options.ProbeDelay)
            && (_state.Since(pulse.WaitsSince) >= SilencePolicy.Patience(Options.ProbeDelay, pulse.Probes, transport is { HasConnections: false }, pings: transport is not null)
                || _state.Since(pulse.SilentSince) >= SilencePolicy.RarePing);
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
            var since = began + (long)(Period.TotalSeconds * _state.Time.TimestampFrequency);
            pulse.IsProbed = false;
            verdict = SilencePolicy.Judge(
                answers || pulse.ShowsLife,
                _state.IsDisposed ? 0 : pulse.Calls,
                _state.Since(began),
                Options.ProbeTimeout,
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

        if (verdict is SilenceVerdict.Lives or SilenceVerdict.Unknown)
        {
            return;
        }

        // No channel shows life, or few do: is it them, or is it everything? Fresh channels tell, as often as one is asked in vain. If a server
        // answers on one all that were asked in vain are given up. One that stood still answers all of them as it goes on, in any order.
        List<PooledChannel> suspects = [channel];
        var (fresh, patience) = ((PooledChannel?)null, LastWord);
        if (verdict == SilenceVerdict.AskFresh)
        {
            fresh = await FirstFreshAsync().ConfigureAwait(false);
            using var section = _state.Enter();
            _asksFresh = false;
            if (fresh is null)
            {
                return;
            }

            _freshAnsweredAt = _state.Now;
            patience = TimeSpan.FromTicks(Math.Clamp(_state.Since(fresh.CreatedAt).Ticks, LastWord.Ticks, Options.ProbeTimeout.Ticks));
            suspects.AddRange(_state.Channels.Values.Where(other => other.Pulse.IsSilentStill && other != channel));
        }

        await Task.WhenAll(suspects.Select(suspect => LastWordAsync(suspect, patience))).ConfigureAwait(false);
        foreach (var suspect in suspects)
        {
            GiveUp(suspect, suspect == channel ? fresh : null);
        }
    }

    // At the limit of its streams a channel answers a ping alone; over a transport of the user's own there is the probe alone.
    private async Task<bool> IsAnsweredAsync(PooledChannel channel)
    {
        using var timeout = new CancellationTokenSource();
        using var timer = timeout.CancelAfter(Options.ProbeTimeout, _state.Time);
        List<Task<bool>> asking = [];
        if (channel.Transport is { } transport)
        {
            asking.Add(IsPingedAsync(transport.PingAsync(timeout.Token)));
        }

        if (Options.ProbeCallback is not null)
        {
            asking.Add(Options.IsAnsweredAsync(channel.CallInvoker, timeout.Token));
        }

        return await FirstAsync(asking).ConfigureAwait(false);

        static async Task<bool> IsPingedAsync(Task pinging) => await pinging.FailureAsync().ConfigureAwait(false) is null;
    }

    // The ping has been sent, and its answer may come as long as the connection stands. A call was ended with its time.
    private async Task LastWordAsync(PooledChannel channel, TimeSpan patience)
    {
        using var timeout = new CancellationTokenSource();
        using var timer = timeout.CancelAfter(patience, _state.Time);
        if (Options.ProbeCallback is null || !await Options.IsAnsweredAsync(channel.CallInvoker, timeout.Token).ConfigureAwait(false))
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

    // It takes no more calls, those that it has end, and a fresh one takes its place: the one that is there, or the next on which a server
    // answers.
    private void GiveUp(PooledChannel channel, PooledChannel? fresh)
    {
        using var section = _state.Enter();
        if (channel is { Health: ChannelHealth.GivenUp } or { Pulse.IsSilentStill: false } or { Transport.HasUnread: true })
        {
            // What lies unread is an answer that this process has not got to.
            _state.Discard(fresh);
            return;
        }

        var reason = PoolReason.Silent(_state.Since(channel.Pulse.SilentSince), isAnsweredElsewhere: fresh is not null);
        channel.Signal(ChannelSignal.GivenUp, reason);
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
            _connector.Replace(channel, reason, countsAsDial: false, by: fresh);
        }

        _state.GivenUp++;
        _state.Diary.GivenUp(channel, reason);
        _state.After(() =>
        {
            channel.Transport?.Abort(reason.Words);
            channel.Breakable?.Break(reason.Words);
        });
    }

    private async Task<PooledChannel?> FirstFreshAsync()
    {
        var asking = Enumerable.Range(0, FreshAtATime).Select(_ => CreateFreshAsync()).ToList();
        var first = await FirstAsync(asking).ConfigureAwait(false);
        asking.ForEach(late => late.ContinueWith(asked => Discard(asked.Result), TaskScheduler.Default));
        return first;
    }

    // A channel that has not joined, on which a server has answered.
    private async Task<PooledChannel?> CreateFreshAsync()
    {
        var fresh = _state.IsDisposed ? null : _connector.Create(inPlaceOf: null, out _);
        if (fresh is null || await _connector.FailureOfAsync(fresh, _connector.AnswerAsync(fresh)).ConfigureAwait(false) is null)
        {
            return fresh;
        }

        Discard(fresh);
        return null;
    }

    private void Discard(PooledChannel? fresh)
    {
        using var section = _state.Enter();
        _state.Discard(fresh);
    }

    // The first outcome that says something; others are taken out as they come.
    private static async Task<T?> FirstAsync<T>(List<Task<T>> asking)
    {
        T? outcome = default;
        while (asking.Count > 0 && EqualityComparer<T>.Default.Equals(outcome, default))
        {
            var asked = await Task.WhenAny(asking).ConfigureAwait(false);
            asking.Remove(asked);
            outcome = await asked.ConfigureAwait(false);
        }

        return outcome;
    }
}

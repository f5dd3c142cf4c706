namespace PoolingInvoker;

// Black holes: channels on which calls wait, and from which nothing comes.
//
// Every so often all channels are looked at. One whose calls have waited for ProbeDelay, while not a byte has come from its connection, is
// suspect: it is chosen only when there is no good one, and it is asked for a sign of life, with a ping as a rule. If something comes
// within ProbeTimeout its methods are slow, and it is good again. If not it is given up: replaced, and its connection broken, so that its
// calls end as they do when a server dies, and are sent again where that is safe.
//
// It is not given up on its own evidence. Another channel must have shown life while it was asked; and when there is none, or most of the
// pool is suspect, a fresh channel is asked first: only if a server answers on that one the old one goes. So nothing is cut when it is the
// network or the program itself that stands still. And when it was the server, others may have shown life a moment before the suspect could:
// it has the last word, after them.
//
// Where all calls are streams under way nothing needs to come, and nobody waits: there the ping is sent after five minutes of silence.
//
// What is made in place of a silent channel may lead to the same server. It gets no calls before a server has answered on it, as long as
// there are good channels.
public partial class ChannelPool
{
    private const int FreshAtATime = 3;

    // How long a channel is spared whose server has failed a call.
    private static readonly TimeSpan Penalty = TimeSpan.FromSeconds(1);

    // Servers take it ill to be pinged often in a silence of theirs: grpc-go and C++ close the connection at the fourth ping in less than
    // 5 minutes each.
    private const int PingsInASilence = 3;
    private static readonly TimeSpan RarePing = TimeSpan.FromMinutes(5.1);

    private static readonly TimeSpan FirstPause = TimeSpan.FromSeconds(0.1);
    private static readonly TimeSpan LongestPause = TimeSpan.FromSeconds(1);

    // How long a suspect has for its last word, at the least.
    private TimeSpan LastWord => _options.ProbeTimeout < FirstPause ? _options.ProbeTimeout : FirstPause;

    private readonly PoolTimer _watch;
    private bool _isWatching;
    private bool _asksFresh;
    private long _givenUp;
    private long _freshAnsweredAt = long.MinValue;

    private bool Probes => _options.ProbeDelay != Timeout.InfiniteTimeSpan;

    private TimeSpan WatchPeriod => Probes && _options.ProbeDelay < Penalty
        ? TimeSpan.FromMilliseconds(Math.Max(10, _options.ProbeDelay.TotalMilliseconds / 4))
        : Penalty / 4;

    // The watch runs while there are calls: it stops by itself, and whoever takes a lease starts it.
    private void StartWatching()
    {
        if (Volatile.Read(ref _isWatching))
        {
            return;
        }

        lock (_lock)
        {
            if (_isWatching || _disposed)
            {
                return;
            }

            _isWatching = true;
            var now = _time.GetTimestamp();
            foreach (var channel in _channels.Values)
            {
                channel.Pulse.IsNotSilent(now); // nobody has looked for a while, nor had reason to
            }
        }

        _watch.Start(WatchPeriod);
    }

    private void Look()
    {
        using (Enter()) // a channel may take more by now
        {
            var goesOn = false;
            var now = _time.GetTimestamp();
            foreach (var channel in _channels.Values)
            {
                goesOn |= LookUnsynchronized(channel, now) | ReplaceBrokenUnsynchronized(channel);
            }

            _isWatching = goesOn && !_disposed;
            if (_isWatching)
            {
                _watch.Start(WatchPeriod);
            }
        }
    }

    // Whether there will be something to see at the next look.
    private bool LookUnsynchronized(PooledChannel channel, long now)
    {
        if (channel.FailingSince is { } since && _time.GetElapsedTime(since, now) >= Penalty)
        {
            channel.FailingSince = null;
        }

        _active.LookAtStreams(channel);
        channel.IsUntried &= _time.GetElapsedTime(channel.CreatedAt, now) < ConnectPatienceAlone;
        var pulse = channel.Pulse;
        if (!pulse.IsProbed) // what comes now may be the answer to the probe
        {
            pulse.Look(now);
            if (MayBeProbed(channel)
                && (pulse.AskedInVainAt is not { } asked || _time.GetElapsedTime(asked, now) >= _options.ProbeDelay)
                && (_time.GetElapsedTime(pulse.WaitsSince, now) >= PatienceWith(channel) || _time.GetElapsedTime(pulse.SilentSince, now) >= RarePing))
            {
                pulse.IsProbed = pulse.IsSuspect = true;
                BeginProbingUnsynchronized(channel);
            }
        }

        _active.Update(channel);
        return pulse.Calls > 0 || channel.FailingSince is not null;
    }

    // Calls keep away from a broken channel while there are good ones, so no call would find that it may be replaced by now.
    private bool ReplaceBrokenUnsynchronized(PooledChannel channel)
    {
        if (_active.Good > 0 && ReasonToReplaceUnsynchronized(channel, thorough: false) is { } reason)
        {
            ReplaceUnsynchronized(channel, reason);
        }

        return _active.Good > 0 && channel.Index >= 0 && (channel.Failed || channel.BrokenState(thorough: false) is not null);
    }

    private void BeginProbingUnsynchronized(PooledChannel channel) => AfterUnsynchronized(() => BeginWork(() => ProbeAsync(channel)));

    // A channel over a transport of the user's own can be asked with a call of theirs alone.
    private bool MayBeProbed(PooledChannel channel) =>
        Probes && !channel.Pulse.IsGivenUp && (channel.Transport is not null || _options.Probe is not null);

    private TimeSpan PatienceWith(PooledChannel channel)
    {
        if (channel.Transport is { HasConnections: false } && _options.ProbeDelay < ConnectPatience)
        {
            return ConnectPatience;
        }

        var probes = channel.Pulse.Probes;
        var patience = _options.ProbeDelay * Math.Pow(4, Math.Min(probes, PingsInASilence));
        return probes >= PingsInASilence && channel.Transport is not null && patience < RarePing ? RarePing : patience;
    }

    private void ServerAnsweredUnsynchronized(PooledChannel channel, bool fails)
    {
        channel.Pulse.CountAnswer();
        channel.Pulse.IsSuspect = channel.IsOnProbation = false;
        channel.FailingSince = fails ? _time.GetTimestamp() : channel.FailingSince;
        channel.Failed &= fails;
        channel.IsAlive = !fails;
        channel.Streak = fails ? 0 : channel.Streak + 1;
        if (!channel.Proven)
        {
            channel.Proven = true;
            _backoff.Reset();
        }
    }

    // A server is there: it has sent its SETTINGS, or an answer.
    private void FoundAliveUnsynchronized(PooledChannel channel)
    {
        channel.IsAlive = true;
        channel.IsOnProbation = false;
        channel.Server?.Reached();
        _active.Update(channel);
    }

    /// <summary>A call has begun to be answered, and will go on.</summary>
    internal void Answered(ChannelLease lease, PooledChannel channel)
    {
        lock (_lock)
        {
            if (!lease.IsAnswered)
            {
                lease.IsAnswered = true;
                channel.Pulse.Answering++;
                channel.Pulse.CountAnswer();
            }
        }
    }

    // Nothing is known of the calls on a lease that was taken by hand.
    private ChannelLease ByHand(ChannelLease lease)
    {
        var channel = lease.Pooled;
        lock (_lock)
        {
            lease.IsByHand = true;
            channel.Pulse.ByHand++;
            channel.Pulse.Started--;
        }

        return lease;
    }

    private async Task ProbeAsync(PooledChannel channel)
    {
        _log.Suspected(channel);
        var pulse = channel.Pulse;
        var began = _time.GetTimestamp();
        var answers = await IsAnsweredAsync(channel).ConfigureAwait(false);
        var givesUp = false;
        var asksFresh = false;
        lock (_lock)
        {
            var now = _time.GetTimestamp();
            pulse.IsProbed = false;
            if (answers || pulse.ShowsLife)
            {
                // Its methods are slow. It is good again, and left alone for longer.
                pulse.ProbeAnswered(now);
                _active.Update(channel);
            }
            else if (_time.GetElapsedTime(began, now) <= 2 * _options.ProbeTimeout && pulse.Calls > 0 && !_disposed)
            {
                // Otherwise it is the program that stood still, or nobody waits any more.
                pulse.AskedInVainAt = now;
                givesUp = _freshAnsweredAt >= began || OthersLiveUnsynchronized(channel, began);
                asksFresh = !givesUp && !_asksFresh && channel.State == PooledChannelState.Active;
                _asksFresh |= asksFresh;
            }
        }

        if (givesUp)
        {
            await LastWordAsync(channel, LastWord).ConfigureAwait(false);
            GiveUp(channel);
        }
        else if (asksFresh)
        {
            try
            {
                await AskFreshAsync(channel).ConfigureAwait(false);
            }
            finally
            {
                lock (_lock)
                {
                    _asksFresh = false;
                }
            }
        }
    }

    // A ping, and the call of the user's if there is one: at the limit of its streams a channel can answer only the one, and the other may
    // be all that can be asked.
    private async Task<bool> IsAnsweredAsync(PooledChannel channel)
    {
        using var timeout = new CancellationTokenSource(_options.ProbeTimeout, _time);
        List<Task<bool>> asking = [];
        if (channel.Transport is not null)
        {
            asking.Add(PingAsync(channel, timeout.Token));
        }

        if (_options.Probe is not null)
        {
            asking.Add(_options.IsAnsweredAsync(channel.CallInvoker, timeout.Token));
        }

        while (asking.Count > 0)
        {
            var asked = await Task.WhenAny(asking).ConfigureAwait(false);
            if (await asked.ConfigureAwait(false))
            {
                return true;
            }

            asking.Remove(asked);
        }

        return false;

        static async Task<bool> PingAsync(PooledChannel channel, CancellationToken cancellationToken)
        {
            try
            {
                await channel.Transport!.PingAsync(cancellationToken).ConfigureAwait(false);
                return true;
            }
            catch (OperationCanceledException)
            {
                return false;
            }
        }
    }

    // The ping has been sent, and its answer may come as long as the connection stands. A call was ended with its time.
    private async Task LastWordAsync(PooledChannel channel, TimeSpan patience)
    {
        using var timeout = new CancellationTokenSource(patience, _time);
        if (_options.Probe is null || !await _options.IsAnsweredAsync(channel.CallInvoker, timeout.Token).ConfigureAwait(false))
        {
            await Task.Delay(Timeout.InfiniteTimeSpan, _time, timeout.Token).ConfigureAwait(ConfigureAwaitOptions.SuppressThrowing);
            return;
        }

        lock (_lock)
        {
            channel.Pulse.ProbeAnswered(_time.GetTimestamp());
            _active.Update(channel);
        }
    }

    // Whether a server is there for a fresh channel: it has sent its SETTINGS, and answers the probe of the user's, if there is one.
    private async Task<bool> IsAnsweredByCallAsync(PooledChannel channel)
    {
        using var timeout = new CancellationTokenSource(_options.ProbeTimeout, _time);
        var connecting = channel.ConnectAsync(timeout.Token);
        return await FailureOfAsync(connecting).ConfigureAwait(false) is null
            && await _options.IsAnsweredAsync(channel.CallInvoker, timeout.Token).ConfigureAwait(false)
            && await FailureOfAsync(PrimeChannelAsync(channel)).ConfigureAwait(false) is null;
    }

    // Whether it is this channel, and not all: others have shown life while it was asked, and they are not few.
    private bool OthersLiveUnsynchronized(PooledChannel channel, long began)
    {
        // What a look sees has happened since the look before.
        var since = began + (long)(WatchPeriod.TotalSeconds * _time.TimestampFrequency);
        var others = 0;
        var suspects = 0;
        for (var i = 0; i < _active.Count; i++)
        {
            others += _active[i] != channel && _active[i].Pulse.LivesSince(since) ? 1 : 0;
            suspects += _active[i].Pulse.IsSuspect ? 1 : 0;
        }

        return others > 0 && suspects * 4 <= _active.Count * 3;
    }

    private void GiveUp(PooledChannel channel)
    {
        bool replaces;
        using (Enter())
        {
            // What lies unread is an answer that this process has not got to.
            if (channel.Pulse.IsGivenUp || !channel.Pulse.IsSilentStill || channel.Transport is { HasUnread: true })
            {
                return;
            }

            channel.Pulse.IsGivenUp = true;
            CouldNotReachUnsynchronized(channel);
            replaces = channel.State == PooledChannelState.Active && !_disposed;
            if (replaces)
            {
                BeginReplacingUnsynchronized(channel, countsAsDial: false);
            }
        }

        var reason = $"nothing has come from it for {_time.GetElapsedTime(channel.Pulse.SilentSince).TotalSeconds:0.#} s, nor an answer to a probe";
        if (replaces && ReplaceUnconnected(channel, reason, onProbation: true) is { } created)
        {
            BeginWork(() => TryOutAsync(created));
        }

        using (Enter())
        {
            BreakUnsynchronized(channel, reason);
        }
    }

    private void BreakUnsynchronized(PooledChannel channel, string reason)
    {
        _givenUp++;
        _diary.GivenUp(channel, reason);
        AfterUnsynchronized(() => channel.Transport?.Abort());
    }

    // A channel on probation has no calls that would show whether a server is there. While there are calls on others it is tried out, and
    // replaced by the next one if there is none: one dial in ProbeTimeout and a pause, of 0.1 s at first and 1 s later.
    private async Task TryOutAsync(PooledChannel channel)
    {
        for (var pause = FirstPause; ; pause = pause * 2 < LongestPause ? pause * 2 : LongestPause)
        {
            if (await IsAnsweredByCallAsync(channel).ConfigureAwait(false))
            {
                using (Enter())
                {
                    FoundAliveUnsynchronized(channel);
                }

                return;
            }

            await Task.Delay(pause, _time).ConfigureAwait(false);
            using (Enter())
            {
                if (channel is not { IsAlive: false, State: PooledChannelState.Active } || _leases == 0 || _disposed)
                {
                    return;
                }

                BeginReplacingUnsynchronized(channel, countsAsDial: false);
            }

            if (ReplaceUnconnected(channel, "no server answered on it", onProbation: true) is { } next)
            {
                channel.Transport?.Abort();
                channel = next;
            }
        }
    }

    // No channel shows life, or few do: is it them, or is it everything? Fresh channels tell, a few at a time, as long as calls wait. If a
    // server answers on one, it takes the place of the silent one, and the others that were asked in vain are given up, too.
    private async Task AskFreshAsync(PooledChannel silent)
    {
        for (var pause = FirstPause; ; pause = pause * 2 < LongestPause ? pause * 2 : LongestPause)
        {
            var began = _time.GetTimestamp();
            var fresh = await FirstAnsweredAsync().ConfigureAwait(false);
            List<PooledChannel> suspects = [];
            if (fresh is not null)
            {
                lock (_lock)
                {
                    _freshAnsweredAt = _time.GetTimestamp();
                    suspects = [.. _channels.Values.Where(static channel => channel.Pulse.IsSilentStill)];
                }

                // A server that stood still answers all of them as it goes on, in any order.
                var took = TimeSpan.FromTicks(Math.Clamp(_time.GetElapsedTime(began).Ticks, LastWord.Ticks, _options.ProbeTimeout.Ticks));
                await Task.WhenAll(suspects.Select(channel => LastWordAsync(channel, took))).ConfigureAwait(false);
            }

            bool goesOn;
            using (Enter())
            {
                goesOn = fresh is null && !_disposed && silent is { Pulse: { IsSuspect: true, Calls: > 0 }, State: PooledChannelState.Active };
                if (fresh is not null && !_disposed && silent is { Pulse: { IsSilentStill: true, IsGivenUp: false }, State: PooledChannelState.Active, Transport: not { HasUnread: true } })
                {
                    fresh.IsAlive = true;
                    silent.Pulse.IsGivenUp = true;
                    if (silent.Server != fresh.Server)
                    {
                        CouldNotReachUnsynchronized(silent);
                    }

                    var reason = $"nothing has come from it for {_time.GetElapsedTime(silent.Pulse.SilentSince).TotalSeconds:0.#} s, and a server answered on a fresh one";
                    PublishInPlaceOfUnsynchronized(silent, fresh, reason);
                    BreakUnsynchronized(silent, reason);
                }
                else
                {
                    DiscardUnsynchronized(fresh);
                }
            }

            suspects.ForEach(GiveUp);
            if (!goesOn)
            {
                return;
            }

            await Task.Delay(pause, _time).ConfigureAwait(false);
        }
    }

    private async Task<PooledChannel?> FirstAnsweredAsync()
    {
        if (Volatile.Read(ref _disposed))
        {
            return null;
        }

        var asking = Enumerable.Range(0, FreshAtATime).Select(_ => AskAsync()).ToList();
        PooledChannel? first = null;
        while (first is null && asking.Count > 0)
        {
            var asked = await Task.WhenAny(asking).ConfigureAwait(false);
            asking.Remove(asked);
            first = await asked.ConfigureAwait(false);
        }

        asking.ForEach(late => late.ContinueWith(
            asked =>
            {
                if (asked.Result is { } unwanted)
                {
                    DisposeChannel(unwanted);
                }
            },
            TaskScheduler.Default));
        return first;

        async Task<PooledChannel?> AskAsync()
        {
            var fresh = CreateChannel(out _);
            if (fresh is null || await IsAnsweredByCallAsync(fresh).ConfigureAwait(false))
            {
                return fresh;
            }

            DisposeChannel(fresh);
            return null;
        }
    }
}

namespace PoolingInvoker;

// Black holes: channels on which calls wait, and from which nothing comes.
//
// Every so often all channels are looked at. One whose calls have waited for ProbeDelay, while not a byte has come from its connection, is
// suspect: it is chosen only when there is no good one, and it is asked for a sign of life, with a ping as a rule. If something comes
// within ProbeTimeout its methods are slow, and it is good again. If not it is given up: replaced, and its connection broken, so that its
// calls end as they do when a server dies, and are sent again where that is safe.
//
// It is not given up on its own evidence. Another channel must have shown life since it fell silent; and when there is none, or most of the
// pool is suspect, a fresh channel is asked first: only if a server answers on that one the old one goes. So nothing is cut when it is the
// network or the program itself that stands still.
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

    private readonly ITimer _watch;
    private bool _isWatching;
    private bool _asksFresh;
    private long _givenUp;

    private bool Probes => _options.ProbeDelay != Timeout.InfiniteTimeSpan;

    private TimeSpan WatchPeriod => (Probes && _options.ProbeDelay < Penalty ? _options.ProbeDelay : Penalty) / 4;

    private ITimer NewWatch()
    {
        using (ExecutionContext.SuppressFlow())
        {
            return _time.CreateTimer(
                static state =>
                {
                    if (((WeakReference<ChannelPool>)state!).TryGetTarget(out var pool))
                    {
                        pool.Look();
                    }
                },
                new WeakReference<ChannelPool>(this),
                Timeout.InfiniteTimeSpan,
                Timeout.InfiniteTimeSpan);
        }
    }

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
        }

        _watch.Change(WatchPeriod, Timeout.InfiniteTimeSpan);
    }

    private void Look()
    {
        List<PooledChannel> silent = [];
        bool goesOn;
        lock (_lock)
        {
            goesOn = false;
            foreach (var channel in _channels.Values)
            {
                goesOn |= LookUnsynchronized(channel, silent);
            }

            goesOn &= !_disposed;
            _isWatching = goesOn;
            AssertLawsUnsynchronized();
        }

        if (goesOn)
        {
            _watch.Change(WatchPeriod, Timeout.InfiniteTimeSpan);
        }

        silent.ForEach(channel => _ = ProbeAsync(channel));
    }

    // Whether there will be something to see at the next look.
    private bool LookUnsynchronized(PooledChannel channel, List<PooledChannel> silent)
    {
        var now = _time.GetTimestamp();
        if (channel.FailingSince is { } since && _time.GetElapsedTime(since, now) >= Penalty)
        {
            channel.FailingSince = null;
        }

        if (channel.IsProbed)
        {
            return true; // what comes now may be the answer to the probe
        }

        var seen = (channel.SignsOfLife, channel.Started);
        var lives = seen.SignsOfLife != channel.Seen.SignsOfLife;
        var waits = channel.UnansweredLeases > 0 || seen.Started != channel.Seen.Started;
        channel.Seen = seen;
        if (lives)
        {
            ShowsLifeUnsynchronized(channel, now);
            channel.Probes = 0;
        }

        if (!waits)
        {
            channel.WaitsSince = now;
        }

        if (channel.Leases == 0)
        {
            channel.SilentSince = now;
        }

        if (Probes && MayBeProbed(channel)
            && (_time.GetElapsedTime(channel.WaitsSince, now) >= PatienceWith(channel) || _time.GetElapsedTime(channel.SilentSince, now) >= RarePing))
        {
            channel.IsProbed = true;
            channel.IsSuspect = true;
            silent.Add(channel);
        }

        _active.Update(channel);
        return channel.Leases > 0 || channel.IsSuspect || channel.FailingSince is not null;
    }

    private static void ShowsLifeUnsynchronized(PooledChannel channel, long now)
    {
        channel.LivedAt = channel.SilentSince = channel.WaitsSince = now;
        channel.IsSuspect = channel.IsOnProbation = false;
    }

    // A channel over a transport of the user's own can be asked with a call of theirs alone.
    private bool MayBeProbed(PooledChannel channel) => channel.Transport is not null || _options.Probe is not null;

    private TimeSpan PatienceWith(PooledChannel channel)
    {
        var patience = _options.ProbeDelay * Math.Pow(4, Math.Min(channel.Probes, PingsInASilence));
        return channel.Probes >= PingsInASilence && _options.Probe is null && patience < RarePing ? RarePing : patience;
    }

    private void ServerAnsweredUnsynchronized(PooledChannel channel, bool fails)
    {
        channel.Answered++;
        channel.FailingSince = fails ? _time.GetTimestamp() : channel.FailingSince;
        channel.Failed &= fails;
        channel.IsAlive = !fails;
        channel.IsSuspect = channel.IsOnProbation = false;
        if (!channel.Proven)
        {
            channel.Proven = true;
            _backoff.Reset();
        }
    }

    // Something has come on a connection for the first time: before any call is answered, the SETTINGS of the server.
    private void IsAlive(PooledChannel channel)
    {
        lock (_lock)
        {
            channel.IsAlive = true;
            channel.IsOnProbation = false;
            _active.Update(channel);
        }
    }

    /// <summary>A call has begun to be answered, and will go on.</summary>
    internal void Answered(ChannelLease lease, PooledChannel channel)
    {
        lock (_lock)
        {
            if (!lease.IsAnswered)
            {
                lease.IsAnswered = true;
                channel.AnsweredLeases++;
                channel.Answered++;
            }
        }
    }

    private async Task ProbeAsync(PooledChannel channel)
    {
        _log.Suspected(channel);
        var before = channel.SignsOfLife;
        var answers = await IsAnsweredAsync(channel, _options.Probe is null).ConfigureAwait(false);
        var givesUp = false;
        var asksFresh = false;
        lock (_lock)
        {
            channel.IsProbed = false;
            channel.Probes++;
            if (answers || channel.SignsOfLife != before)
            {
                // Its methods are slow. It is good again, and left alone for longer.
                channel.Seen = (channel.SignsOfLife, channel.Started);
                ShowsLifeUnsynchronized(channel, _time.GetTimestamp());
                _active.Update(channel);
            }
            else if (!_disposed)
            {
                givesUp = OthersLiveUnsynchronized(channel);
                asksFresh = !givesUp && !_asksFresh && channel.State == PooledChannelState.Active;
                _asksFresh |= asksFresh;
            }
        }

        if (givesUp)
        {
            GiveUp(channel);
        }
        else if (asksFresh)
        {
            await AskFreshAsync(channel).ConfigureAwait(false);
        }
    }

    private async Task<bool> IsAnsweredAsync(PooledChannel channel, bool byPing)
    {
        using var timeout = new CancellationTokenSource(_options.ProbeTimeout, _time);
        if (!byPing)
        {
            return await _options.IsAnsweredAsync(channel.CallInvoker, timeout.Token).ConfigureAwait(false);
        }

        try
        {
            await channel.Transport!.PingAsync(timeout.Token).ConfigureAwait(false);
            return true;
        }
        catch (OperationCanceledException)
        {
            return false;
        }
    }

    // Whether it is this channel, and not all: others have shown life since it fell silent, and they are not few.
    private bool OthersLiveUnsynchronized(PooledChannel channel)
    {
        var others = 0;
        var suspects = 0;
        for (var i = 0; i < _active.Count; i++)
        {
            others += _active[i] != channel && _active[i].LivedAt > channel.SilentSince ? 1 : 0;
            suspects += _active[i].IsSuspect ? 1 : 0;
        }

        return others > 0 && suspects * 4 <= _active.Count * 3;
    }

    private void GiveUp(PooledChannel channel)
    {
        bool replaces;
        lock (_lock)
        {
            replaces = channel.State == PooledChannelState.Active && !_disposed;
            if (replaces)
            {
                BeginReplacingUnsynchronized(channel);
            }
        }

        var reason = $"nothing has come from it for {_time.GetElapsedTime(channel.SilentSince).TotalSeconds:0.#} s, nor an answer to a probe";
        if (replaces && Replace(channel, reason, andLease: false, onProbation: true) is { } created)
        {
            _ = TryOutAsync(created);
        }

        Break(channel, reason);
    }

    private void Break(PooledChannel channel, string reason)
    {
        Interlocked.Increment(ref _givenUp);
        _log.GivenUp(channel, reason);
        channel.Transport?.Abort();
    }

    // A channel on probation has no calls that would show whether a server is there.
    private async Task TryOutAsync(PooledChannel channel)
    {
        for (var pause = FirstPause; ; pause = pause * 2 < LongestPause ? pause * 2 : LongestPause)
        {
            var answers = await IsAnsweredAsync(channel, byPing: false).ConfigureAwait(false);
            lock (_lock)
            {
                if (answers || channel.IsAlive)
                {
                    channel.IsAlive = true;
                    channel.IsOnProbation = false;
                    _active.Update(channel);
                }

                if (channel.IsAlive || channel.State != PooledChannelState.Active || _disposed)
                {
                    return;
                }
            }

            await Task.Delay(pause, _time).ConfigureAwait(false);
            lock (_lock)
            {
                if (channel.State != PooledChannelState.Active || _disposed)
                {
                    return;
                }

                BeginReplacingUnsynchronized(channel);
            }

            if (Replace(channel, "no server answered on it", andLease: false, onProbation: true) is not { } next)
            {
                continue;
            }

            channel.Transport?.Abort();
            channel = next;
        }
    }

    // No channel shows life, or few do: is it them, or is it everything? Fresh channels tell, a few at a time. If a server answers on one
    // it takes the place of the silent one.
    private async Task AskFreshAsync(PooledChannel silent)
    {
        for (var pause = FirstPause; ; pause = pause * 2 < LongestPause ? pause * 2 : LongestPause)
        {
            var fresh = await FirstAnsweredAsync().ConfigureAwait(false);
            bool isOver;
            var replaces = false;
            var closes = false;
            lock (_lock)
            {
                isOver = fresh is not null || _disposed || !silent.IsSuspect || silent.State != PooledChannelState.Active;
                replaces = fresh is not null && !_disposed && silent is { IsSuspect: true, State: PooledChannelState.Active };
                _asksFresh &= !isOver;
                if (replaces)
                {
                    // Statement order is important: the pool is never without either of them.
                    fresh!.IsAlive = true;
                    fresh.LivedAt = _time.GetTimestamp();
                    PublishUnsynchronized(fresh);
                    _replaced++;
                    StartDrainingUnsynchronized(silent);
                    closes = silent.Leases == 0;
                    if (closes)
                    {
                        CloseUnsynchronized(silent);
                    }

                    ServeWaitersUnsynchronized();
                }

                AssertLawsUnsynchronized();
            }

            if (replaces)
            {
                var reason = $"nothing has come from it for {_time.GetElapsedTime(silent.SilentSince).TotalSeconds:0.#} s, and a server answered on a fresh one";
                _log.Replaced(fresh!, silent, reason);
                Break(silent, reason);
            }
            else if (fresh is not null)
            {
                DisposeChannel(fresh);
            }

            if (closes)
            {
                DisposeChannel(silent);
            }

            if (isOver)
            {
                return;
            }

            await Task.Delay(pause, _time).ConfigureAwait(false);
        }
    }

    private async Task<PooledChannel?> FirstAnsweredAsync()
    {
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
            if (fresh is null || await IsAnsweredAsync(fresh, byPing: false).ConfigureAwait(false))
            {
                return fresh;
            }

            DisposeChannel(fresh);
            return null;
        }
    }
}

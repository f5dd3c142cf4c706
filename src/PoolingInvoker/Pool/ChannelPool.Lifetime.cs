namespace PoolingInvoker;

// Warm-up, age, idleness, and the end.
public partial class ChannelPool
{
    // How long the handler keeps a connection that carries nothing, as a rule: it is not there any more, and need not be refreshed.
    private static readonly TimeSpan IdleConnection = TimeSpan.FromMinutes(1);

    private readonly PoolTimer? _maintenance;
    private (int Now, int Before) _mostCalls; // at a time, since the last maintenance and the one before

    /// <summary>
    /// Makes channels up to <see cref="ChannelPoolOptions.MinPoolSize"/> and connects all that there are, in parallel. Channels over a
    /// transport of the user's own are made, but cannot be connected ahead of their first call.
    /// </summary>
    /// <param name="cancellationToken">Ends the wait; what is connected stays connected.</param>
    /// <exception cref="HttpRequestException">
    /// Fewer than <see cref="ChannelPoolOptions.MinPoolSize"/> channels could connect on their first attempt, or none. What else failed is told
    /// by <see cref="ChannelPoolOptions.OnEvent"/> and the log: of several endpoints not all need be there.
    /// </exception>
    /// <exception cref="InvalidOperationException">The policy did not make a channel, and there is none. What <see cref="ChannelPoolOptions.ConfigureChannel"/> throws is thrown as it is.</exception>
    /// <exception cref="ObjectDisposedException">The pool is disposed.</exception>
    public async Task ConnectAsync(CancellationToken cancellationToken = default)
    {
        if (_endpointWatcher is not null)
        {
            await _endpointWatcher.FirstAsync(cancellationToken).ConfigureAwait(false);
        }

        TaskCompletionSource? underWay;
        bool triesOthers;
        do
        {
            List<PooledChannel> unconnected;
            int connected;
            int creates;
            using (Enter())
            {
                // What others are making is waited for, and seen to if it fails.
                ObjectDisposedException.ThrowIf(_disposed, this);
                underWay = _creating > 0 && _active.Count < MinimumUnsynchronized
                    ? _nextCreated ??= new TaskCompletionSource(TaskCreationOptions.RunContinuationsAsynchronously)
                    : null;
                creates = Math.Max(0, MinimumUnsynchronized - _active.Count - _creating);
                _creating += creates;
                unconnected = [.. _active.Where(static channel => channel.Transport is not { HasConnections: true })];
                connected = _active.Count - unconnected.Count;
            }

            var outcomes = await Task.WhenAll(
            [
                .. Enumerable.Range(0, creates).Select(_ => DoAsync(() => CreateAsync("the pool warms up to MinPoolSize"))),
                .. unconnected.Select(channel => DoAsync(async () => (await FailureOfAsync(ConnectChannelAsync(channel)).ConfigureAwait(false), true))),
            ]).WaitAsync(cancellationToken).ConfigureAwait(false);
            triesOthers = ThrowIfFailed(outcomes, connected);
            if (underWay is not null)
            {
                await underWay.Task.WaitAsync(cancellationToken).ConfigureAwait(false);
            }
        }
        while (underWay is not null || triesOthers);

        // Or says whether there are endpoints left that may be better.
        bool ThrowIfFailed((Exception? Error, bool IsMade)[] outcomes, int connected)
        {
            var failed = outcomes.Where(static outcome => outcome.Error is not null).ToList();
            if (failed.Count == 0 || connected + outcomes.Length - failed.Count >= Math.Max(1, _options.MinPoolSize))
            {
                return false;
            }

            lock (_lock)
            {
                if (failed.TrueForAll(static outcome => outcome.IsMade) && _endpoints is { MayDial: true } && _active.Count + _creating < MinimumUnsynchronized)
                {
                    return true;
                }
            }

            throw failed.Find(static outcome => !outcome.IsMade).Error ?? new HttpRequestException(
                HttpRequestError.ConnectionError,
                $"{failed.Count} of {outcomes.Length} channels could not connect to {Target}: {failed[0].Error!.Message}",
                failed.Count == 1 ? failed[0].Error : new AggregateException(failed.Select(static outcome => outcome.Error!)));
        }
    }

    /// <summary>
    /// Lets no more calls in, tells those that wait, waits up to <see cref="ChannelPoolOptions.DrainTimeout"/> for calls in flight, and
    /// closes all channels, which cancels the calls that are left.
    /// </summary>
    public async ValueTask DisposeAsync()
    {
        BeginDispose();
        try
        {
            await _closed.Task.WaitAsync(_options.DrainTimeout, _time).ConfigureAwait(false);
        }
        catch (TimeoutException)
        {
            // The calls that are left are cancelled.
        }

        Dispose(disposing: true);
        GC.SuppressFinalize(this);
    }

    /// <summary>As <see cref="DisposeAsync"/>, but without waiting: calls in flight are cancelled.</summary>
    public void Dispose()
    {
        BeginDispose();
        Dispose(disposing: true);
        GC.SuppressFinalize(this);
    }

    /// <summary>Closes all channels.</summary>
    /// <param name="disposing">Whether this is a dispose; the pool has no finalizer.</param>
    protected virtual void Dispose(bool disposing)
    {
        using (Enter())
        {
            _channels.Values.Where(static channel => channel.State == PooledChannelState.Draining).ToList().ForEach(CloseUnsynchronized);
        }

        (_policy as AddressChannelPolicy)?.Dispose();
    }

    private void BeginDispose()
    {
        using (Enter())
        {
            if (_disposed)
            {
                return;
            }

            _disposed = true;
            while (_waiters.Count > 0)
            {
                _waiters.Dequeue().SetException(Disposed());
            }

            while (_active.Count > 0)
            {
                DrainUnsynchronized(_active[_active.Count - 1]);
            }
        }

        try
        {
            _closing.Cancel();
        }
        catch (AggregateException)
        {
            // Of the callbacks of a priming call, which has no part in the rest.
        }

        _maintenance?.Dispose();
        _watch.Dispose();
        _lineWatch.Dispose();
        _crowdWatch.Dispose();
        _balanceWatch.Dispose();
        _endpointWatcher?.Dispose();
    }

    private PoolTimer? StartMaintenance()
    {
        // All channels are refreshed within a third of their lifetime, a few at each maintenance.
        TimeSpan[] ages = [_options.PooledChannelIdleTimeout, _options.PooledChannelLifetime / 6, _options.LeakDetectionThreshold];
        var shortest = ages.Where(static age => age > TimeSpan.Zero).DefaultIfEmpty(Timeout.InfiniteTimeSpan).Min();
        if (shortest == Timeout.InfiniteTimeSpan)
        {
            return null;
        }

        var period = TimeSpan.FromMilliseconds(Math.Clamp(shortest.TotalMilliseconds / 10, 1, 30_000));

        return new PoolTimer(this, static pool => pool.Maintain(), period);
    }

    private void Maintain()
    {
        CloseIdle();
        RefreshOld();
        SetAside();
        _leakDetector?.Report();
    }

    // Above the minimum they are closed. Others get a new channel in their place, as a rule unconnected: what lay between may have forgotten
    // a connection that carried nothing for so long.
    private void CloseIdle()
    {
        if (_options.PooledChannelIdleTimeout == Timeout.InfiniteTimeSpan)
        {
            return;
        }

        var reason = $"it carried no call for {_options.PooledChannelIdleTimeout}";
        using (Enter("calls need it")) // somebody waits if a channel was idle because its server takes nothing
        {
            for (var i = _active.Count - 1; i >= 0; i--)
            {
                var channel = _active[i];
                if (channel is not { State: PooledChannelState.Active, Leases: 0 } || _time.GetElapsedTime(channel.IdleSince) < _options.PooledChannelIdleTimeout)
                {
                    continue;
                }

                if (_active.Count + _creating > MinimumUnsynchronized)
                {
                    RetireUnsynchronized(channel, reason);
                }
                else if (channel.Transport is { ConnectionsMade: > 0 })
                {
                    ReplaceUnsynchronized(channel, reason, countsAsDial: false, isIdle: true);
                }
            }
        }
    }

    // How many channels may be replaced beside those that are: few at a time.
    private int MovesUnsynchronized => Math.Max(1, _active.Count / 10) - _replacing;

    // Few at a time, the oldest first, so that a pool whose channels were made together is not made anew at one stroke.
    private void RefreshOld()
    {
        if (_options.PooledChannelLifetime == Timeout.InfiniteTimeSpan)
        {
            return;
        }

        using (Enter())
        {
            var old = _active.Where(channel => channel.State == PooledChannelState.Active && _time.GetElapsedTime(channel.CreatedAt) >= channel.Lifetime)
                .OrderBy(static channel => channel.CreatedAt)
                .Take(MovesUnsynchronized)
                .ToList();
            foreach (var channel in old)
            {
                var isIdle = channel.Leases == 0 && _time.GetElapsedTime(channel.IdleSince) > IdleConnection;
                RefreshUnsynchronized(channel, $"it was older than {channel.Lifetime}", isIdle);
            }
        }
    }

    // Sets aside what the load of late did not need. What is set aside and not needed again closes when it has been idle for long enough.
    private void SetAside()
    {
        using (Enter())
        {
            var most = Math.Max(_mostCalls.Now, _mostCalls.Before);
            _mostCalls = (_active.Calls, _mostCalls.Now);
            var wanted = Math.Max(MinimumUnsynchronized - _active.OfStreams, Math.Max(1, ChannelsForUnsynchronized(most)));

            // Of several endpoints none is left out: from where there are most.
            var spare = _active.Where(static channel => channel.Standing == ChannelStanding.Calls)
                .GroupBy(static channel => channel.Server)
                .SelectMany(static channels => channels.Select(static (channel, rank) => (channel, rank)))
                .OrderByDescending(static ranked => ranked.rank)
                .Take(_active.OfCalls - wanted)
                .Select(static ranked => ranked.channel)
                .ToList();
            foreach (var channel in spare)
            {
                channel.IsSpare = true;
                _active.Update(channel);
            }
        }
    }
}

namespace PoolingInvoker;

// Warm-up, age, idleness, and the end.
public partial class ChannelPool
{
    private readonly ITimer? _maintenance;

    /// <summary>
    /// Makes channels up to <see cref="ChannelPoolOptions.MinPoolSize"/> and connects all that there are, in parallel. Channels over a
    /// transport of the user's own are made, but cannot be connected ahead of their first call.
    /// </summary>
    /// <param name="cancellationToken">Ends the wait; what is connected stays connected.</param>
    /// <exception cref="HttpRequestException">A channel could not connect on its first attempt.</exception>
    /// <exception cref="InvalidOperationException">The policy did not make a channel, and there is none. What <see cref="ChannelPoolOptions.ConfigureChannel"/> throws is thrown as it is.</exception>
    /// <exception cref="ObjectDisposedException">The pool is disposed.</exception>
    public async Task ConnectAsync(CancellationToken cancellationToken = default)
    {
        while (TryReserveMinimum())
        {
            CreateAndLease(mayWait: false, out _)?.Dispose();
        }

        List<PooledChannel> channels = [];
        lock (_lock)
        {
            ObjectDisposedException.ThrowIf(_disposed, this);
            for (var i = 0; i < _active.Count; i++)
            {
                channels.Add(_active[i]);
            }
        }

        await Task.WhenAll(channels.Select(channel => channel.ConnectAsync(cancellationToken))).ConfigureAwait(false);
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
        List<PooledChannel> closing;
        lock (_lock)
        {
            closing = [.. _channels.Values.Where(static channel => channel.State == PooledChannelState.Draining)];
            closing.ForEach(CloseUnsynchronized);
        }

        closing.ForEach(DisposeChannel);
        (_policy as AddressChannelPolicy)?.Dispose();
    }

    private void BeginDispose()
    {
        List<PooledChannel> closing = [];
        lock (_lock)
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
                var channel = _active[_active.Count - 1];
                StartDrainingUnsynchronized(channel);
                if (channel.Leases == 0)
                {
                    CloseUnsynchronized(channel);
                    closing.Add(channel);
                }
            }

            CompleteDisposeUnsynchronized();
            AssertLawsUnsynchronized();
        }

        _maintenance?.Dispose();
        _watch.Dispose();
        closing.ForEach(DisposeChannel);
    }

    private void CompleteDisposeUnsynchronized()
    {
        if (_disposed && _creating + _replacing + _channels.Count == 0)
        {
            _closed.TrySetResult();
        }
    }

    private bool TryReserveMinimum()
    {
        lock (_lock)
        {
            ObjectDisposedException.ThrowIf(_disposed, this);
            if (_active.Count + _creating >= _options.MinPoolSize)
            {
                return false;
            }

            _creating++;
            return true;
        }
    }

    private ITimer? StartMaintenance()
    {
        TimeSpan[] ages = [_options.PooledChannelIdleTimeout, _options.PooledChannelLifetime, _options.LeakDetectionThreshold];
        var shortest = ages.Where(static age => age > TimeSpan.Zero).DefaultIfEmpty(Timeout.InfiniteTimeSpan).Min();
        if (shortest == Timeout.InfiniteTimeSpan)
        {
            return null;
        }

        var period = TimeSpan.FromMilliseconds(Math.Clamp(shortest.TotalMilliseconds / 10, 1, 30_000));

        return NewTimer(static pool => pool.Maintain(), period);
    }

    // A timer keeps neither a forgotten pool alive, nor the context of whoever made it.
    private ITimer NewTimer(Action<ChannelPool> run, TimeSpan period)
    {
        using (ExecutionContext.SuppressFlow())
        {
            var forgettable = new WeakReference<ChannelPool>(this);
            return _time.CreateTimer(
                _ =>
                {
                    if (forgettable.TryGetTarget(out var pool))
                    {
                        run(pool);
                    }
                },
                state: null,
                period,
                period);
        }
    }

    // A clock may run its timers on the thread that asks it for the time, which the pool does under its lock: then it is not their turn.
    private bool IsInTheMidst => Monitor.IsEntered(_lock);

    private void Maintain()
    {
        if (IsInTheMidst)
        {
            return;
        }

        try
        {
            CloseIdle();
            ReplaceOld();
            _leakDetector?.Report();
        }
#pragma warning disable CA1031 // An exception in a timer ends the process.
        catch (Exception exception)
#pragma warning restore CA1031
        {
            _log.MaintenanceFailed(exception);
        }
    }

    private void CloseIdle()
    {
        if (_options.PooledChannelIdleTimeout == Timeout.InfiniteTimeSpan)
        {
            return;
        }

        List<PooledChannel> closing = [];
        lock (_lock)
        {
            for (var i = _active.Count - 1; i >= 0 && _active.Count + _creating > _options.MinPoolSize; i--)
            {
                var channel = _active[i];
                if (channel is { State: PooledChannelState.Active, Leases: 0 } && _time.GetElapsedTime(channel.IdleSince) >= _options.PooledChannelIdleTimeout)
                {
                    StartDrainingUnsynchronized(channel);
                    CloseUnsynchronized(channel);
                    closing.Add(channel);
                }
            }

            ServeWaitersUnsynchronized(); // there is space for another one
            AssertLawsUnsynchronized();
        }

        closing.ForEach(DisposeChannel);
    }

    // A tenth of the channels at a time, so that a pool whose channels were made together is not made anew at one stroke.
    private void ReplaceOld()
    {
        if (_options.PooledChannelLifetime == Timeout.InfiniteTimeSpan)
        {
            return;
        }

        List<PooledChannel> old = [];
        lock (_lock)
        {
            var atMost = Math.Max(1, _active.Count / 10);
            for (var i = _active.Count - 1; i >= 0 && old.Count < atMost; i--)
            {
                var channel = _active[i];
                if (channel.State == PooledChannelState.Active && _time.GetElapsedTime(channel.CreatedAt) >= channel.Lifetime)
                {
                    old.Add(channel);
                }
            }

            old.ForEach(channel =>
            {
                channel.State = PooledChannelState.Replacing;
                _replacing++;
                _active.Update(channel);
            });
            AssertLawsUnsynchronized();
        }

        old.ForEach(channel => Replace(channel, $"it was older than {channel.Lifetime}", andLease: false));
    }
}

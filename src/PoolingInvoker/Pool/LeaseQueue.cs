namespace PoolingInvoker;

/// <summary>
/// Where who needs a lease waits for one, first come, first served: for room on a channel, or for a channel that is made. Refuses where the time
/// is up, and where too many wait.
/// </summary>
internal sealed class LeaseQueue
{
    private readonly PoolState _state;
    private readonly ChannelPicker _picker;
    private readonly ChannelConnector _connector;
    private readonly PoolGrowth _growth;
    private readonly bool _keepsStacks;

    public LeaseQueue(PoolState state, ChannelPicker picker, ChannelConnector connector, PoolGrowth growth, bool keepsStacks)
    {
        (_state, _picker, _connector, _growth, _keepsStacks) = (state, picker, connector, growth, keepsStacks);
        state.ServeWaiters = ServeWaiters;
    }

    public ValueTask<ChannelLease> AcquireAsync(TimeSpan timeout, LeaseRequest request, CancellationToken cancellationToken)
    {
        if (cancellationToken.IsCancellationRequested)
        {
            return ValueTask.FromCanceled<ChannelLease>(cancellationToken);
        }

        try
        {
            var taken = timeout == TimeSpan.Zero ? default : Take(request, mayWait: true);
            return taken.Lease is { } lease ? new ValueTask<ChannelLease>(lease)
                : taken.Waiter is { } waiter ? new ValueTask<ChannelLease>(WaitAsync(waiter, timeout, timeout, cancellationToken))
                : taken.Creates ? new ValueTask<ChannelLease>(WaitForNewAsync(timeout, request, cancellationToken))
                : new ValueTask<ChannelLease>(TakeAtOnce(request) ?? throw (timeout == TimeSpan.Zero ? NewTimeoutException(timeout) : NewLineFullException()));
        }
        catch (Exception exception) // The exception reaches the caller, through the task.
        {
            return ValueTask.FromException<ChannelLease>(exception);
        }
    }

    /// <summary>Takes a lease for a caller that does not wait: a channel that has to be made is made at once, and not connected before.</summary>
    public ChannelLease? TakeAtOnce(in LeaseRequest request)
    {
        var taken = Take(request, mayWait: false);
        if (!taken.Creates)
        {
            return taken.Lease;
        }

        PooledChannel? created = null;
        Exception? error = null;
        PoolWork.InEmptyContext(() => created = _connector.Create(inPlaceOf: null, out error));
        using var section = _state.Enter(PoolReason.CallsNeedIt);
        error = _connector.Join(old: null, created, error, PoolReason.CallsNeedIt, connectedIn: null);
        _state.ThrowIfDisposed();
        return (created ?? _picker.Pick(request with { Avoid = null })) is { } channel ? _picker.Lease(channel, request) : throw error!;
    }

    private async Task<ChannelLease> WaitAsync(LeaseWaiter waiter, TimeSpan left, TimeSpan timeout, CancellationToken cancellationToken)
    {
        Task waiting = waiter.Task.WaitAsync(left, _state.Time, cancellationToken);
        await waiting.ConfigureAwait(ConfigureAwaitOptions.SuppressThrowing);
        if (!waiting.IsCompletedSuccessfully && Leaves(waiter))
        {
            cancellationToken.ThrowIfCancellationRequested();
            throw NewTimeoutException(timeout);
        }

        // Granted, perhaps in the moment in which the time was up; or the pool was disposed.
        var lease = await waiter.Task.ConfigureAwait(false);
        if (waiting.IsCanceled)
        {
            // A cancelled waiter takes nothing: what it has been granted in this moment goes to the next one.
            lease.Dispose();
            cancellationToken.ThrowIfCancellationRequested();
        }

        return lease;
    }

    // If none can be made the channel that was to be avoided has to do.
    private async Task<ChannelLease> WaitForNewAsync(TimeSpan timeout, LeaseRequest request, CancellationToken cancellationToken)
    {
        var began = _state.Time.GetTimestamp();
        Task creating = _state.Work.DoAsync(() => _connector.DialAsync(old: null, PoolReason.AnotherAttempt));
        await creating.WaitAsync(timeout, _state.Time, cancellationToken).ConfigureAwait(ConfigureAwaitOptions.SuppressThrowing);
        cancellationToken.ThrowIfCancellationRequested();
        var left = timeout == Timeout.InfiniteTimeSpan ? timeout : TimeSpan.FromTicks(Math.Max(0, (timeout - _state.Time.GetElapsedTime(began)).Ticks));
        var taken = Take(request, mayWait: true, since: began);
        return taken.Lease
            ?? (taken.Waiter is { } waiter ? await WaitAsync(waiter, left, timeout, cancellationToken).ConfigureAwait(false) : throw NewLineFullException());
    }

    private (ChannelLease? Lease, LeaseWaiter? Waiter, bool Creates) Take(LeaseRequest request, bool mayWait, long? since = null)
    {
        while (true)
        {
            var areBroken = false;
            (ChannelLease? Lease, LeaseWaiter? Waiter, bool Creates) taken;
            using (_state.Enter())
            {
                _state.ThrowIfDisposed();
                PooledChannel? picked;
                while ((picked = _picker.Pick(request))?.ReasonToReplace(_state.Backoff, thorough: true) is { } reason)
                {
                    areBroken = true;
                    _connector.Replace(picked, reason);
                }

                taken = TakeUnsynchronized(picked);
                _growth.Grow(PoolReason.CallsNeedIt, isCall: true, isRefused: taken is (null, null, false) && !mayWait);
            }

            // Replacements that connect with their first call have joined by now.
            if (taken is not (null, null, false) || mayWait || !areBroken)
            {
                return taken;
            }
        }

        (ChannelLease? Lease, LeaseWaiter? Waiter, bool Creates) TakeUnsynchronized(PooledChannel? picked)
        {
            var isAlone = picked is not null && picked == request.Avoid && _state.Creating + _state.Waiters.Count == 0
                && (_state.Backoff.HasWorked || _state.Backoff.MayDial);
            var isMadeAtOnce = _state.Options.PrimeCallback is null && _state.Balancer is not { Endpoints.Count: 0 };
            if (since is null && (isAlone || (picked is null && !mayWait)) && (mayWait || isMadeAtOnce) && _growth.Places > 0)
            {
                // There is no other one to try, or nothing to wait for.
                _state.Creating++;
                return (null, null, true);
            }

            if (picked is not null || !mayWait || _state.Waiters.Count >= _state.Options.MaxCallsWaiting)
            {
                return (picked is null ? null : _picker.Lease(picked, request, since), null, false);
            }

            _connector.LastCreationFailed = false;
            var waiter = new LeaseWaiter(request, since ?? _state.Now, _keepsStacks ? LeaseLeakDetector.NewStack() : null);
            waiter.Enter(_state.Waiters);
            return (null, waiter, false);
        }
    }

    private void ServeWaiters()
    {
        while (_state.Waiters.First is { Value: var waiter } && _picker.Pick(waiter.Request) is { } channel)
        {
            _state.NextWaiter();
            waiter.SetResult(_picker.Lease(channel, waiter.Request, waiter.Since, waiter.Stack));
        }
    }

    private bool Leaves(LeaseWaiter waiter)
    {
        using var section = _state.Enter();
        return waiter.Leave();
    }

    private ChannelPoolExhaustedException NewTimeoutException(TimeSpan timeout) => Refused(
        counts => $"No channel became free within {timeout.TotalSeconds:0.###} s ({counts}). {Advice("Pool.AcquireTimeout")}", _connector.LastError, timeout);

    private ChannelPoolExhaustedException NewLineFullException() => Refused(
        counts => $"No channel is free and too many calls wait for one already ({counts}). {Advice($"Pool.MaxCallsWaiting ({_state.Options.MaxCallsWaiting})")}");

    // A refusal has the numbers of one moment, and is told.
    private ChannelPoolExhaustedException Refused(Func<string, string> message, Exception? cause = null, TimeSpan? waited = null)
    {
        using var section = _state.Enter();
        var refusal = new ChannelPoolExhaustedException(message($"channels {_state.Count}, in flight {_state.Leases}, waiting {_state.Waiters.Count}"), cause)
        {
            Channels = _state.Count,
            MaxPoolSize = _state.Options.MaxPoolSize,
            CallsInFlight = _state.Leases,
            CallsWaiting = _state.Waiters.Count,
            MaxCallsWaiting = _state.Options.MaxCallsWaiting,
            Waited = waited ?? TimeSpan.Zero,
        };
        _state.Diary.Refused(refusal, isLineFull: waited is null);
        return refusal;
    }

    // What to raise, where that would help.
    private string Advice(string option)
    {
        var (most, own) = (_state.Options.MaxPoolSize, _state.Options.MaxConcurrentCallsPerChannel);
        if (_state.Active.Count == 0 && _state.Creating > 0)
        {
            return $"No channel has been connected yet: {(_state.Creating == 1 ? "1 is" : $"{_state.Creating} are")} being made. Raise {option}, or connect the pool before the first call, with ConnectAsync.";
        }

        if (_state.Count < most)
        {
            return $"The pool may have {most}, but " + (
                _connector.LastCreationFailed || _connector.LastConnectFailed ? $"another could not be made and connected: {_connector.LastError?.Message}"
                : _state.Active.Any(static channel => channel.Capacity == 0) ? "a server takes no calls for now (SETTINGS_MAX_CONCURRENT_STREAMS is 0)."
                : $"no other was connected in time. Raise {option}.");
        }

        var isOwnLimit = own is not null && (_connector.Announced is null || own < _connector.Announced);
        return $"Raise Pool.MaxPoolSize ({most}){(isOwnLimit ? $", Pool.MaxConcurrentCallsPerChannel ({own})" : string.Empty)} or {option}.";
    }
}

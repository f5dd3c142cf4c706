using System.Diagnostics;
using System.Diagnostics.CodeAnalysis;

namespace PoolingInvoker;

/// <summary>The data plane: picks a channel for each call, counts the lease, and takes it back. A call waits in a queue where no channel has room.</summary>
internal sealed class ChannelPicker
{
    private readonly PoolState _state;
    private readonly IChannelFactory _factory;
    private readonly ChannelConnector _connector;
    private readonly PoolGrowth _growth;
    private readonly SilenceWatch _silence;
    private readonly LeaseLeakDetector? _leakDetector;

    public ChannelPicker(
        PoolState state, IChannelFactory factory, ChannelConnector connector, PoolGrowth growth, SilenceWatch silence, LeaseLeakDetector? leakDetector)
    {
        (_state, _factory, _connector, _growth, _silence, _leakDetector) = (state, factory, connector, growth, silence, leakDetector);
        state.ServeWaiters = ServeWaiters;
    }

    /// <summary>Takes a lease on a channel that has room, without making one: the fast path of a call.</summary>
    public bool TryLease(in LeaseRequest request, [NotNullWhen(true)] out ChannelLease? lease)
    {
        using var section = _state.Enter();
        lease = PickReady(request) is { } channel ? Lease(channel, request) : null;
        return lease is not null;
    }

    /// <summary>The same for a unary call, which is the lease itself, and the gate: it gives the lease back once.</summary>
    public PooledChannel? TryLease(object call, ulong key)
    {
        using var section = _state.Enter();
        var request = new LeaseRequest(LeaseKind.Call, Key: key);
        var channel = PickReady(request);
        if (channel is not null)
        {
            CountLease(channel, request, TimeSpan.Zero);
            _state.Metrics.Taken(call, _state.Now);
            _leakDetector?.Taken(call, _state.Now, LeaseLeakDetector.NewStack());
        }

        return channel;
    }

    public void Return(object leaseOrCall, PooledChannel channel, LeaseOutcome outcome, Exception? error)
    {
        _leakDetector?.Returned(leaseOrCall);
        _state.Metrics.Returned(leaseOrCall);
        var lease = leaseOrCall as ChannelLease;
        var kind = lease?.Kind ?? LeaseKind.Call;
        var isGood = IsGood(channel) && outcome != LeaseOutcome.ChannelFailed && (outcome != LeaseOutcome.CouldNotConnect || channel.IsConnected);
        using var section = _state.Enter();
        Debug.Assert(channel.Leases > 0, "A lease came back that was not out.");
        _state.Active.Returned(channel, kind == LeaseKind.Stream, lease?.Looks ?? 0);
        _state.Leases--;
        _growth.CountReturn();
        channel.Pulse.Answering -= lease is { IsAnswered: true } ? 1 : 0;
        channel.Pulse.ByHand -= kind >= LeaseKind.ByHand ? 1 : 0;
        lease?.IsAnswered = true;
        channel.Returned(outcome, isGood, error, _state.Now, _state.Backoff);
        _state.Active.Update(channel);
        if (channel.ReasonToReplace(_state.Backoff, thorough: outcome != LeaseOutcome.Answered) is { } reason)
        {
            _connector.Replace(channel, reason);
        }
        else if (channel is { State: PooledChannelState.Draining, Leases: 0 })
        {
            _state.Close(channel);
        }
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
        return (created ?? Pick(request with { Avoid = null })) is { } channel ? Lease(channel, request) : throw error!;
    }

    public void Answered(ChannelLease lease, PooledChannel channel)
    {
        using var section = _state.Enter();
        if (!lease.IsAnswered)
        {
            lease.IsAnswered = true;
            channel.Pulse.Answering++;
            channel.Pulse.CountAnswer();
        }
    }

    /// <summary>Who has leased the channel says that it has failed: it is replaced as if a call had.</summary>
    public void MarkFailed(PooledChannel channel, Exception? error)
    {
        using var section = _state.Enter();
        channel.LastError = error ?? channel.LastError;
        channel.Signal(ChannelSignal.ChannelFailed, PoolReason.MarkedFailed);
        _state.Active.Update(channel);
        if (channel.ReasonToReplace(_state.Backoff, thorough: true) is { } reason)
        {
            _connector.Replace(channel, reason);
        }
    }

    /// <summary>Whether another channel has room and a server that has answered.</summary>
    public bool HasReady(PooledChannel? otherThan)
    {
        using var section = _state.Enter();
        return _state.Active.Take(_state.Active.Good).Any(channel => channel.Health == ChannelHealth.Healthy && channel != otherThan);
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
                while ((picked = Pick(request))?.ReasonToReplace(_state.Backoff, thorough: true) is { } reason)
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
            var isMadeAtOnce = _state.Options.PrimeCallback is null && _state.Balancer is not { IsEmpty: true };
            if (since is null && (isAlone || (picked is null && !mayWait)) && (mayWait || isMadeAtOnce) && _growth.Places > 0)
            {
                // There is no other one to try, or nothing to wait for.
                _state.Creating++;
                return (null, null, true);
            }

            if (picked is not null || !mayWait || _state.Waiters.Count >= _state.Options.MaxCallsWaiting)
            {
                return (picked is null ? null : Lease(picked, request, since), null, false);
            }

            _connector.LastCreationFailed = false;
            var waiter = new LeaseWaiter(request, since ?? _state.Now, _leakDetector is null ? null : LeaseLeakDetector.NewStack());
            waiter.Enter(_state.Waiters);
            return (null, waiter, false);
        }
    }

    private PooledChannel? Pick(in LeaseRequest request) =>
        (request.Key == 0 ? null : _state.Affinity.Pick(request.Key, request.Avoid))
        ?? _state.Active.Pick(request.Kind == LeaseKind.Stream, request.Avoid, _state.Balancer?.Next(request.Avoid));

    private PooledChannel? PickReady(in LeaseRequest request)
    {
        _state.ThrowIfDisposed();
        var channel = _state.Count < _state.Minimum ? null : Pick(request);
        return channel?.ReasonToReplace(_state.Backoff, thorough: false) is null ? channel : null;
    }

    private ChannelLease Lease(PooledChannel channel, in LeaseRequest request, long? since = null, StackTrace? stack = null)
    {
        CountLease(channel, request, since is { } moment ? _state.Since(moment) : TimeSpan.Zero);
        var lease = new ChannelLease(this, channel, request.Kind);
        _state.Metrics.Taken(lease, _state.Now);
        _leakDetector?.Taken(lease, _state.Now, stack ?? LeaseLeakDetector.NewStack());
        if (request.Kind == LeaseKind.Got)
        {
            channel.GotLeases.Push(lease);
        }

        return lease;
    }

    private void CountLease(PooledChannel channel, in LeaseRequest request, TimeSpan waited)
    {
        var kind = request.Kind;
        Debug.Assert(channel.HasRoom, "A lease needs room.");
        channel.Pulse.Started += kind >= LeaseKind.ByHand ? 0 : 1;
        channel.Pulse.ByHand += kind >= LeaseKind.ByHand ? 1 : 0;
        channel.IsSpare = false;
        _state.Leases++;
        _state.Taken++;
        _state.Active.Leased(channel, kind == LeaseKind.Stream);
        _growth.CountLease();
        channel.Server?.Serve();
        _state.Affinity.Count(request.Key, channel);
        _silence.Start();
        if (_state.Metrics.MeasuresWaits)
        {
            TellWait(waited);
        }
    }

    private void TellWait(TimeSpan waited) => _state.After(() => _state.Metrics.Waited(waited));

    private void ServeWaiters()
    {
        while (_state.Waiters.First is { Value: var waiter } && Pick(waiter.Request) is { } channel)
        {
            _state.NextWaiter();
            waiter.SetResult(Lease(channel, waiter.Request, waiter.Since, waiter.Stack));
        }
    }

    private bool Leaves(LeaseWaiter waiter)
    {
        using var section = _state.Enter();
        return waiter.Leave();
    }

    private bool IsGood(PooledChannel channel)
    {
        try
        {
            return _factory.IsGood(channel.Channel);
        }
        catch (Exception exception) // The call is over and keeps its outcome; a policy that cannot judge the channel does not want it.
        {
            _state.Log.PolicyThrew(channel, exception);
            return false;
        }
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

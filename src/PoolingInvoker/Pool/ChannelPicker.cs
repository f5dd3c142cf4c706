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
    public bool TryLease(bool isStream, [NotNullWhen(true)] out ChannelLease? lease)
    {
        using var section = _state.Enter();
        lease = PickReady(isStream) is { } channel ? Lease(channel, isStream) : null;
        return lease is not null;
    }

    /// <summary>The same for a unary call, which is the lease itself, and the gate: it gives the lease back once.</summary>
    public PooledChannel? TryLease(object call)
    {
        using var section = _state.Enter();
        var channel = PickReady(isStream: false);
        if (channel is not null)
        {
            CountLease(channel, isStream: false);
            _leakDetector?.Taken(call);
        }

        return channel;
    }

    public void Return(object leaseOrCall, PooledChannel channel, LeaseOutcome outcome, Exception? error)
    {
        _leakDetector?.Returned(leaseOrCall);
        var lease = leaseOrCall as ChannelLease;
        var isGood = IsGood(channel) && outcome != LeaseOutcome.ChannelFailed && (outcome != LeaseOutcome.CouldNotConnect || channel.IsConnected);
        using var section = _state.Enter();
        Debug.Assert(channel.Leases > 0, "A lease came back that was not out.");
        _state.Active.Returned(channel, lease is { IsStream: true }, lease?.Looks ?? 0);
        _state.Leases--;
        _growth.CountReturn();
        channel.Pulse.Answering -= lease is { IsAnswered: true } ? 1 : 0;
        channel.Pulse.ByHand -= lease is { IsByHand: true } ? 1 : 0;
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

    public ValueTask<ChannelLease> AcquireAsync(TimeSpan timeout, bool isStream, PooledChannel? avoid, CancellationToken cancellationToken)
    {
        if (cancellationToken.IsCancellationRequested)
        {
            return ValueTask.FromCanceled<ChannelLease>(cancellationToken);
        }

        try
        {
            var taken = timeout == TimeSpan.Zero ? default : Take(isStream, avoid, mayWait: true);
            return taken.Lease is { } lease ? new ValueTask<ChannelLease>(lease)
                : taken.Waiter is { } waiter ? new ValueTask<ChannelLease>(WaitAsync(waiter, timeout))
                : taken.Creates ? new ValueTask<ChannelLease>(WaitForNewAsync())
                : new ValueTask<ChannelLease>(TakeAtOnce(isStream, avoid) ?? throw (timeout == TimeSpan.Zero ? NewTimeoutException(timeout) : NewQueueFullException()));
        }
        catch (Exception exception) // The exception reaches the caller, through the task.
        {
            return ValueTask.FromException<ChannelLease>(exception);
        }

        async Task<ChannelLease> WaitAsync(LeaseWaiter waiter, TimeSpan left)
        {
            try
            {
                await waiter.Task.WaitAsync(left, _state.Time, cancellationToken).ConfigureAwait(false);
            }
            catch (TimeoutException)
            {
                if (Leaves(waiter))
                {
                    throw NewTimeoutException(timeout);
                }
            }
            catch (OperationCanceledException)
            {
                // A cancelled waiter takes nothing: what it has been granted in this moment goes to the next one.
                if (!Leaves(waiter) && waiter.Task.Exception is null)
                {
                    (await waiter.Task.ConfigureAwait(false)).Dispose();
                }

                throw;
            }

            // Granted, perhaps in the moment in which the time was up; or the pool was disposed.
            var lease = await waiter.Task.ConfigureAwait(false);
            _leakDetector?.Taken(lease);
            return lease;
        }

        // If none can be made the channel that was to be avoided has to do.
        async Task<ChannelLease> WaitForNewAsync()
        {
            var began = _state.Time.GetTimestamp();
            Task creating = _state.Work.DoAsync(() => _connector.DialAsync(old: null, "a call failed on the only other one"));
            await creating.WaitAsync(timeout, _state.Time, cancellationToken).ConfigureAwait(ConfigureAwaitOptions.SuppressThrowing);
            cancellationToken.ThrowIfCancellationRequested();
            var left = timeout == Timeout.InfiniteTimeSpan ? timeout : TimeSpan.FromTicks(Math.Max(0, (timeout - _state.Time.GetElapsedTime(began)).Ticks));
            var taken = Take(isStream, avoid, mayWait: true, mayCreate: false);
            return taken.Lease ?? (taken.Waiter is { } waiter ? await WaitAsync(waiter, left).ConfigureAwait(false) : throw NewQueueFullException());
        }
    }

    /// <summary>Takes a lease for a caller that does not wait: a channel that has to be made is made at once, and not connected before.</summary>
    public ChannelLease? TakeAtOnce(bool isStream, PooledChannel? avoid = null)
    {
        var taken = Take(isStream, avoid, mayWait: false);
        if (!taken.Creates)
        {
            return taken.Lease;
        }

        PooledChannel? created = null;
        Exception? error = null;
        PoolWork.InEmptyContext(() => created = _connector.Create(inPlaceOf: null, out error));
        using var section = _state.Enter("calls need it");
        _connector.Join(old: null, created, ref error, "calls need it", connectedIn: null);
        _state.ThrowIfDisposed();
        return (created ?? _state.Active.Pick(isStream, avoid: null)) is { } channel ? Lease(channel, isStream) : throw error!;
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

    /// <summary>Whether another channel has room and a server that has answered.</summary>
    public bool HasReady(PooledChannel? otherThan)
    {
        using var section = _state.Enter();
        return _state.Active.Take(_state.Active.Good).Any(channel => channel.Health == ChannelHealth.Healthy && channel != otherThan);
    }

    /// <summary>Nothing is known of the calls on a lease that was taken by hand.</summary>
    public ChannelLease ByHand(ChannelLease lease)
    {
        using (_state.Enter())
        {
            lease.IsByHand = true;
            lease.Pooled.Pulse.ByHand++;
            lease.Pooled.Pulse.Started--;
        }

        return lease;
    }

    private (ChannelLease? Lease, LeaseWaiter? Waiter, bool Creates) Take(bool isStream, PooledChannel? avoid, bool mayWait, bool mayCreate = true)
    {
        while (true)
        {
            var areBroken = false;
            (ChannelLease? Lease, LeaseWaiter? Waiter, bool Creates) taken;
            using (_state.Enter())
            {
                _state.ThrowIfDisposed();
                PooledChannel? picked;
                while ((picked = _state.Active.Pick(isStream, avoid))?.ReasonToReplace(_state.Backoff, thorough: true) is { } reason)
                {
                    areBroken = true;
                    _connector.Replace(picked, reason);
                }

                taken = TakeUnsynchronized(picked);
                _growth.Grow("calls need it", isCall: true, isRefused: taken is (null, null, false) && !mayWait);
            }

            // Replacements that connect with their first call have joined by now.
            if (taken is not (null, null, false) || mayWait || !areBroken)
            {
                return taken;
            }
        }

        (ChannelLease? Lease, LeaseWaiter? Waiter, bool Creates) TakeUnsynchronized(PooledChannel? picked)
        {
            var isAlone = picked is not null && picked == avoid && _state.Creating + _state.Waiters.Count == 0
                && (_state.Backoff.HasWorked || _state.Backoff.MayDial);
            var isMadeAtOnce = _state.Options.PrimeAsync is null && _state.Balancer is not { IsEmpty: true };
            if (mayCreate && (isAlone || (picked is null && !mayWait)) && (mayWait || isMadeAtOnce) && _growth.Places > 0)
            {
                // There is no other one to try, or nothing to wait for.
                _state.Creating++;
                return (null, null, true);
            }

            if (picked is not null || !mayWait || _state.Waiters.Count >= _state.Options.MaxCallsWaiting)
            {
                return (picked is null ? null : Lease(picked, isStream), null, false);
            }

            _connector.LastCreationFailed = false;
            var waiter = new LeaseWaiter(isStream);
            waiter.Enter(_state.Waiters);
            return (null, waiter, false);
        }
    }

    private PooledChannel? PickReady(bool isStream)
    {
        _state.ThrowIfDisposed();
        var channel = _state.Count < _state.Minimum ? null : _state.Active.Pick(isStream, avoid: null);
        return channel?.ReasonToReplace(_state.Backoff, thorough: false) is null ? channel : null;
    }

    private ChannelLease Lease(PooledChannel channel, bool isStream)
    {
        CountLease(channel, isStream);
        var lease = new ChannelLease(this, channel, isStream);
        _leakDetector?.Taken(lease);
        return lease;
    }

    private void CountLease(PooledChannel channel, bool isStream)
    {
        Debug.Assert(channel.HasRoom, "A lease needs room.");
        channel.Pulse.Started++;
        channel.IsSpare = false;
        _state.Leases++;
        _state.Active.Leased(channel, isStream);
        _growth.CountLease();
        _silence.Start();
    }

    private void ServeWaiters()
    {
        while (_state.Waiters.First is { Value.IsStream: var isStream } && _state.Active.Pick(isStream, avoid: null) is { } channel)
        {
            CountLease(channel, isStream);
            _state.NextWaiter()!.SetResult(new ChannelLease(this, channel, isStream));
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

    private TimeoutException NewTimeoutException(TimeSpan timeout) => Refused(() => new TimeoutException(
        $"No channel became free within {timeout.TotalSeconds:0.###} s ({Counts()}). {Advice("Pool.AcquireTimeout")}", _connector.LastError));

    private TooManyWaitingException NewQueueFullException() => Refused(() => new TooManyWaitingException(
        $"No channel is free and too many calls wait for one already ({Counts()}). {Advice($"Pool.MaxCallsWaiting ({_state.Options.MaxCallsWaiting})")}"));

    // A refusal has the numbers of one moment, and is told.
    private T Refused<T>(Func<T> newRefusal)
        where T : Exception
    {
        using var section = _state.Enter();
        var refusal = newRefusal();
        _state.Diary.Refused(refusal);
        return refusal;
    }

    private string Counts() => $"channels {_state.Count}, in flight {_state.Leases}, waiting {_state.Waiters.Count}";

    // What to raise, where that would help.
    private string Advice(string option)
    {
        var (most, own) = (_state.Options.MaxPoolSize, _state.Options.MaxConcurrentCallsPerChannel);
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

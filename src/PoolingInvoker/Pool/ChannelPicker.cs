using System.Diagnostics;
using System.Diagnostics.CodeAnalysis;

namespace PoolingInvoker;

/// <summary>The data plane: picks a channel for each call, counts the lease, and takes it back. Where no channel has room a call waits in the <see cref="LeaseQueue"/>.</summary>
internal sealed class ChannelPicker
{
    private readonly PoolState _state;
    private readonly IChannelFactory _factory;
    private readonly ChannelConnector _connector;
    private readonly PoolGrowth _growth;
    private readonly SilenceWatch _silence;
    private readonly LeaseLeakDetector? _leakDetector;

    public ChannelPicker(
        PoolState state, IChannelFactory factory, ChannelConnector connector, PoolGrowth growth, SilenceWatch silence, LeaseLeakDetector? leakDetector) =>
        (_state, _factory, _connector, _growth, _silence, _leakDetector) = (state, factory, connector, growth, silence, leakDetector);

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

    /// <summary>The choice, under the lock. It may be one that is to be replaced.</summary>
    public PooledChannel? Pick(in LeaseRequest request) =>
        (request.Key == 0 ? null : _state.Affinity.Pick(request.Key, request.Avoid))
        ?? _state.Active.Pick(request.Kind == LeaseKind.Stream, request.Avoid, _state.Balancer?.Endpoints.Next(request.Avoid));

    /// <summary>Counts a lease on a channel that was picked, under the same lock.</summary>
    public ChannelLease Lease(PooledChannel channel, in LeaseRequest request, long? since = null, StackTrace? stack = null)
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

    private PooledChannel? PickReady(in LeaseRequest request)
    {
        _state.ThrowIfDisposed();
        var channel = _state.Count < _state.Minimum ? null : Pick(request);
        return channel?.ReasonToReplace(_state.Backoff, thorough: false) is null ? channel : null;
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
}

using System.Diagnostics;
using System.Globalization;
using Grpc.Net.Client;

namespace PoolingInvoker;

/// <summary>One channel of the pool. All that changes is guarded by the lock of the pool.</summary>
[DebuggerDisplay("{ToString(),nq}")]
internal sealed class PooledChannel
{
    public const int FallbackCapacity = 100; // the least that servers should allow (RFC 9113, section 6.5.2)

    private readonly bool _tellsState;
    private PoolReason? _whyUnhealthy; // where it is not that a call failed

    public PooledChannel(int id, GrpcChannel channel, string endpoint, ChannelTransport? transport, int? mostCalls, long now, TimeSpan lifetime)
    {
        (Id, Seat, Channel, Endpoint, Transport, MostCalls, CreatedAt, IdleSince, Lifetime) = (id, id, channel, endpoint, transport, mostCalls, now, now, lifetime);
        CallInvoker = channel.CreateCallInvoker();
        IsUntried = transport is not null;
        Pulse = new ChannelPulse(this, now);
        _tellsState = transport is null && TellsState(channel);
    }

    public int Id { get; }
    public int Seat { get; set; } // what keys know it by: that of the one whose place it took
    public GrpcChannel Channel { get; }
    public string Endpoint { get; } // where it leads
    public PoolEndpoint? Server { get; set; } // where it is counted, in a pool of several endpoints; null when it is not any more
    public CallInvoker CallInvoker { get; }
    public ChannelTransport? Transport { get; } // what is seen of the connections; null where the transport is the user's own
    public BreakableCalls? Breakable { get; init; } // where such a transport is watched, with the probe of the options
    public int? Announced { get; set { field = value; HasTaken |= value > 0; } } // how many streams the server takes at a time, once it has said so
    public bool HasTaken { get; private set; } // whether the server has ever said that it takes some
    public bool IsUntried { get; set; } // the server may still say so: until then it gets one call, as many refuse more
    public int? MostCalls { get; set; } // of the options
    public int Capacity => Math.Min(MostCalls ?? int.MaxValue, Announced ?? (IsUntried ? 1 : MostCalls ?? FallbackCapacity));
    public long CreatedAt { get; }
    public TimeSpan Lifetime { get; set; }
    public PooledChannelState State { get; set; } = PooledChannelState.Connecting;
    public int Leases { get; set; }
    public int Streams { get; set; } // how many of the leases are of streams
    public int Looks { get; set; } // how often the channel has been looked at for streams that last
    public int NewStreams { get; set; } // how many of the streams were taken since the last look
    public int LongStreams { get; set; } // how many of them were there at the look before that: they last, and may carry much
    public bool IsSpare { get; set; } // whether the load does not need it
    public Stack<ChannelLease> GotLeases { get; } = new(0); // those that Get took and Return has yet to give back: they are all the same
    public long IdleSince { get; set; } // when the last lease came back; means something while there are none
    public bool Proven { get; set; } // whether a server has answered on this channel
    public ChannelHealth Health { get; set; }
    public long PenalizedAt { get; set; } // when its server last failed a call
    public long RefreshedFor { get; set; } // the last channel of the refresh for which its replacement was last begun
    public Exception? ReplaceError { get; set; } // why it could not be replaced, when that was last tried
    public Exception? LastError { get; set; } // what the channel, or a call on it, last failed with
    public ChannelPulse Pulse { get; } // whether calls wait on the channel, and nothing comes
    public bool IsGoing { get; set; } // whether its server took no more calls on the connection before the channel joined
    public ChannelStanding Place { get; set; } // in ActiveChannels, at the last look
    public int Index { get; set; } = -1; // among those of the same place; -1 where it is none of them
    public ConnectivityState? ConnectivityState => Transport?.State ?? (_tellsState ? Channel.State : null); // null where it cannot be told
    public bool IsConnected => Transport?.HasConnections ?? ConnectivityState == Grpc.Core.ConnectivityState.Ready;
    public int LastPriority { get; set; } // that of its endpoint when it left this
    public bool StandsBy => Server is { Priority.Share: 0 }; // it goes to an endpoint of a priority that gets no calls
    public bool IsGood => Index >= 0 && Place < ChannelStanding.Doubtful;
    public bool HasRoom => State is (PooledChannelState.Active or PooledChannelState.Refreshing) && Leases < Capacity;

    public ChannelStanding Standing =>
        !HasRoom ? ChannelStanding.Full
        : Health > ChannelHealth.Healthy || (Health == ChannelHealth.New && Leases > 0) ? (StandsBy ? ChannelStanding.DoubtfulStandby : ChannelStanding.Doubtful)
        : StandsBy ? ChannelStanding.Standby
        : LongStreams > 0 ? ChannelStanding.Streams
        : IsSpare ? ChannelStanding.Spare
        : ChannelStanding.Calls;

    /// <summary>
    /// The state that is a reason to replace the channel, or null. A channel that was disposed behind the pool's back does not tell; it
    /// shows when it is used, or, at some cost, to a <paramref name="thorough"/> look.
    /// </summary>
    public ConnectivityState? BrokenState(bool thorough) =>
        Transport is not { IsBroken: false } && ConnectivityState is (Grpc.Core.ConnectivityState.Shutdown or Grpc.Core.ConnectivityState.TransientFailure) and var state ? state
        : thorough && IsDisposed() ? Grpc.Core.ConnectivityState.Shutdown
        : null;

    public PoolReason? ReasonToReplace(ReconnectBackoff backoff, bool thorough) =>
        State != PooledChannelState.Active || !(Proven || backoff.MayDial) ? null
        : BrokenState(thorough) is { } state ? PoolReason.ConnectionLost(state)
        : Health >= ChannelHealth.Broken ? _whyUnhealthy ?? PoolReason.CallFailed
        : null;

    public void Returned(LeaseOutcome outcome, bool isGood, Exception? error, long now, ReconnectBackoff backoff)
    {
        IdleSince = now;
        if (outcome is LeaseOutcome.Answered or LeaseOutcome.ServerFailed)
        {
            Pulse.CountAnswer();
            Signal(outcome == LeaseOutcome.Answered ? ChannelSignal.Answered : ChannelSignal.ServerFailed);
            PenalizedAt = outcome == LeaseOutcome.Answered ? PenalizedAt : now;
            if (!Proven)
            {
                Proven = true;
                backoff.Reset();
            }
        }
        else if (outcome != LeaseOutcome.Unknown)
        {
            Pulse.IsNotSilent(now); // an error is a sign of life
            IsUntried = false;
        }

        LastError = outcome is LeaseOutcome.Answered or LeaseOutcome.Unknown ? LastError : error;
        if (!isGood)
        {
            Signal(ChannelSignal.ChannelFailed);
        }
    }

    public void Signal(ChannelSignal signal, PoolReason? why = null)
    {
        var health = Health.After(signal);
        Server?.Priority.HasChanged |= health >= ChannelHealth.Suspect != Health >= ChannelHealth.Suspect;
        _whyUnhealthy = health == Health ? _whyUnhealthy : why;
        Health = health;
    }

    public void FoundAlive()
    {
        Server?.Reached();
        Signal(ChannelSignal.Life);
    }

    public PooledChannelSnapshot ToSnapshot(TimeSpan age) => new()
    {
        Id = Id,
        State = State,
        ConnectivityState = ConnectivityState,
        Endpoint = Endpoint,
        Priority = Server?.Priority.Number ?? LastPriority,
        CallsInFlight = Leases,
        Capacity = Capacity,
        Age = age,
        LastError = LastError,
    };

    public override string ToString() =>
        string.Create(CultureInfo.InvariantCulture, $"#{Id} {State} to {Endpoint}, {Leases}/{Capacity} leases");

    /// <summary>Connects, and throws when that fails. Does nothing where the transport cannot tell.</summary>
    public Task ConnectAsync(CancellationToken cancellationToken) =>
        Transport is not null ? Transport.ConnectAsync(cancellationToken)
        : _tellsState ? ConnectByStateAsync(cancellationToken)
        : Task.CompletedTask;

    private async Task ConnectByStateAsync(CancellationToken cancellationToken)
    {
        // GrpcChannel.ConnectAsync goes on until it is connected. It is ended when the first attempt has failed.
        using var attempt = CancellationTokenSource.CreateLinkedTokenSource(cancellationToken);
        var connecting = Channel.ConnectAsync(attempt.Token);
        while (!connecting.IsCompleted && Channel.State is var state && state != Grpc.Core.ConnectivityState.Ready)
        {
            if (state is Grpc.Core.ConnectivityState.TransientFailure or Grpc.Core.ConnectivityState.Shutdown)
            {
                await attempt.CancelAsync().ConfigureAwait(false);
                await connecting.ConfigureAwait(ConfigureAwaitOptions.SuppressThrowing);
                throw new HttpRequestException(HttpRequestError.ConnectionError, $"Channel #{Id} could not connect to {Channel.Target}.");
            }

            await Task.WhenAny(connecting, Channel.WaitForStateChangedAsync(state, attempt.Token)).ConfigureAwait(false);
        }

        await connecting.ConfigureAwait(false);
    }

    private bool IsDisposed()
    {
        try
        {
            Channel.CreateCallInvoker();
            return false;
        }
        catch (ObjectDisposedException)
        {
            return true;
        }
    }

    private static bool TellsState(GrpcChannel channel)
    {
        try
        {
            return channel.State >= Grpc.Core.ConnectivityState.Idle;
        }
        catch (InvalidOperationException)
        {
            return false; // the transport is a handler or a client of the user's own: it is judged by the outcome of calls alone
        }
    }
}

using System.Diagnostics;
using System.Globalization;
using Grpc.Core;
using Grpc.Net.Client;

namespace PoolingInvoker;

/// <summary>One channel of the pool. All that changes is guarded by the lock of the pool.</summary>
[DebuggerDisplay("{ToString(),nq}")]
internal sealed class PooledChannel
{
    /// <summary>What a channel takes of which nobody knows what its server allows: the least that servers should (RFC 9113, section 6.5.2).</summary>
    public const int FallbackCapacity = 100;

    private readonly bool _tellsState;
    private readonly int? _mostCalls;

    public PooledChannel(int id, GrpcChannel channel, string endpoint, ChannelTransport? transport, int? mostCalls, long now, TimeSpan lifetime)
    {
        Id = id;
        Channel = channel;
        Endpoint = endpoint;
        Transport = transport;
        CallInvoker = channel.CreateCallInvoker();
        _mostCalls = mostCalls;
        IsUntried = transport is not null;
        CreatedAt = IdleSince = now;
        Pulse = new ChannelPulse(this, now);
        Lifetime = lifetime;
        _tellsState = transport is null && TellsState(channel);
    }

    public int Id { get; }

    public GrpcChannel Channel { get; }

    /// <summary>Where it leads.</summary>
    public string Endpoint { get; }

    /// <summary>The endpoint that it goes to and is counted at, in a pool that has several; null when it is not counted any more.</summary>
    public PoolEndpoint? Server { get; set; }

    public CallInvoker CallInvoker { get; }

    /// <summary>What is seen of the connections; null where the transport is the user's own.</summary>
    public ChannelTransport? Transport { get; }

    /// <summary>How many streams the server takes at a time, once it has said so.</summary>
    public int? Announced { get; set; }

    /// <summary>Whether the server may still say how many streams it takes. Until then one call is enough to have it say so: many refuse more.</summary>
    public bool IsUntried { get; set; }

    public int Capacity => Math.Min(_mostCalls ?? int.MaxValue, Announced ?? (IsUntried ? 1 : _mostCalls ?? FallbackCapacity));

    public long CreatedAt { get; }

    public TimeSpan Lifetime { get; }

    public PooledChannelState State { get; set; } = PooledChannelState.Connecting;

    public int Leases { get; set; }

    /// <summary>How many of the leases are of streams.</summary>
    public int Streams { get; set; }

    /// <summary>How often the channel has been looked at for streams that last.</summary>
    public int Looks { get; set; }

    /// <summary>How many of the streams were taken since the last look.</summary>
    public int NewStreams { get; set; }

    /// <summary>How many of them were there at the look before that: they last, and may carry much.</summary>
    public int LongStreams { get; set; }

    /// <summary>Whether the load does not need it.</summary>
    public bool IsSpare { get; set; }

    /// <summary>The leases that <see cref="ChannelPool.Get"/> took and <see cref="ChannelPool.Return(GrpcChannel)"/> has yet to give back.</summary>
    public Stack<ChannelLease> ExplicitLeases { get; } = new(0);

    /// <summary>When the last lease came back; means something while there are none.</summary>
    public long IdleSince { get; set; }

    /// <summary>Whether a server has answered on this channel.</summary>
    public bool Proven { get; set; }

    /// <summary>Whether the last call on this channel failed because of it.</summary>
    public bool Failed { get; set; }

    /// <summary>Whether something has come from a server since the channel was made or last failed: one call at a time finds that out.</summary>
    public bool IsAlive { get; set; }

    /// <summary>Since when the channel is spared because its server failed a call; null if it is not.</summary>
    public long? FailingSince { get; set; }

    /// <summary>Whether the channel was made in place of one that fell silent, and has to show that it is alive before it gets calls.</summary>
    public bool IsOnProbation { get; set; }

    /// <summary>What the channel, or a call on it, last failed with.</summary>
    public Exception? LastError { get; set; }

    /// <summary>How many calls in a row a server has answered.</summary>
    public long Streak { get; set; }

    /// <summary>Whether calls wait on the channel, and nothing comes.</summary>
    public ChannelPulse Pulse { get; }

    /// <summary>Whether its server took no more calls on the connection before the channel joined.</summary>
    public bool IsGoing { get; set; }

    /// <summary>The place in <see cref="ActiveChannels"/>.</summary>
    public int Index { get; set; } = -1;

    /// <summary>Where the connection of the channel stands; null where the transport cannot tell.</summary>
    public ConnectivityState? ConnectivityState => Transport?.State ?? (_tellsState ? Channel.State : null);

    /// <summary>Whether the channel is known to be connected.</summary>
    public bool IsConnected => Transport?.HasConnections ?? ConnectivityState == Grpc.Core.ConnectivityState.Ready;

    public bool HasRoom => State is (PooledChannelState.Active or PooledChannelState.Refreshing) && Leases < Capacity;

    /// <summary>Where the channel stands in the choice.</summary>
    public ChannelStanding Standing =>
        !HasRoom ? ChannelStanding.Full
        : Pulse.IsSuspect || Failed || FailingSince is not null || (!IsAlive && (Leases > 0 || IsOnProbation)) ? ChannelStanding.Doubtful
        : LongStreams > 0 ? ChannelStanding.Streams
        : IsSpare ? ChannelStanding.Spare
        : ChannelStanding.Calls;

    /// <summary>
    /// The state that is a reason to replace the channel, or null where there is none or the transport cannot tell. A channel that was
    /// disposed behind the pool's back does not tell; it shows when it is used, or, at some cost, to a <paramref name="thorough"/> look.
    /// </summary>
    public ConnectivityState? BrokenState(bool thorough) =>
        Transport is not { IsBroken: false } && ConnectivityState is (Grpc.Core.ConnectivityState.Shutdown or Grpc.Core.ConnectivityState.TransientFailure) and var state ? state
        : thorough && IsDisposed() ? Grpc.Core.ConnectivityState.Shutdown
        : null;

    public override string ToString() =>
        string.Create(CultureInfo.InvariantCulture, $"#{Id} {State} to {Endpoint}, {Leases}/{Capacity} leases");

    /// <summary>
    /// Connects, and throws when that fails. Does nothing where the transport cannot tell.
    /// </summary>
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
            _ = channel.State;
            return true;
        }
        catch (InvalidOperationException)
        {
            // The transport is a handler or a client of the user's own: it is judged by the outcome of calls alone.
            return false;
        }
    }
}

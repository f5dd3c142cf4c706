using Grpc.Net.Client;

namespace PoolingInvoker;

/// <summary>The right to run one call on a channel of the pool. It is given back by <see cref="Dispose"/>; a second one does nothing.</summary>
public sealed class ChannelLease : IDisposable
{
    private readonly ChannelPicker _picker;
    private PooledChannel? _channel;

    // Under the lock of the pool.
    internal ChannelLease(ChannelPicker picker, PooledChannel channel, LeaseKind kind) =>
        (_picker, _channel, Kind, Looks) = (picker, channel, kind, channel.Looks);

    /// <summary>Gets the channel. It is shared with other leases, and belongs to the pool: do not dispose it.</summary>
    /// <exception cref="ObjectDisposedException">The lease has been given back.</exception>
    public GrpcChannel Channel => Pooled.Channel;

    /// <summary>Gets a call invoker on the channel.</summary>
    /// <exception cref="ObjectDisposedException">The lease has been given back.</exception>
    public CallInvoker CallInvoker => Pooled.CallInvoker;

    /// <summary>
    /// Gets the state of the connection of the channel (gRPC's connectivity semantics): idle, connecting, ready, transient failure, shutdown;
    /// <see langword="null"/> over a transport that cannot tell. On a channel that the pool has made, <c>GrpcChannel.State</c>,
    /// <c>ConnectAsync</c> and <c>WaitForStateChangedAsync</c> throw: the pool makes its connections.
    /// </summary>
    /// <exception cref="ObjectDisposedException">The lease has been given back.</exception>
    public ConnectivityState? ConnectivityState => Pooled.ConnectivityState;

    /// <summary>Gets the number of the channel, as in <see cref="PooledChannelSnapshot.Id"/> and <see cref="ChannelPoolEvent.ChannelId"/>.</summary>
    /// <exception cref="ObjectDisposedException">The lease has been given back.</exception>
    public int ChannelId => Pooled.Id;

    /// <summary>Gets where the channel leads, as host and port.</summary>
    /// <exception cref="ObjectDisposedException">The lease has been given back.</exception>
    public string Endpoint => Pooled.Endpoint;

    /// <summary>
    /// Gets what becomes of the channel at this moment. One that is draining is good for this lease, and takes no further one: who holds a
    /// channel for long may give it back then, and take another one.
    /// </summary>
    /// <exception cref="ObjectDisposedException">The lease has been given back.</exception>
    public PooledChannelState ChannelState => Pooled.State;

    internal PooledChannel Pooled => Volatile.Read(ref _channel) ?? throw new ObjectDisposedException(GetType().FullName);

    /// <summary>
    /// Says that the channel has failed, which of calls that are made by hand the pool cannot see: it is replaced as if a call of an invoker had
    /// failed because of it. It takes no new leases while another one is made; those that are out, this one too, go on until they are given
    /// back. A second call does nothing more.
    /// </summary>
    /// <param name="exception">What it failed with, for <see cref="PooledChannelSnapshot.LastError"/>.</param>
    /// <exception cref="ObjectDisposedException">The lease has been given back.</exception>
    public void MarkFailed(Exception? exception = null) => _picker.MarkFailed(Pooled, exception);

    /// <summary>Gives the lease back.</summary>
    public void Dispose() => Return(LeaseOutcome.Unknown);

    internal LeaseKind Kind { get; }
    internal int Looks { get; } // how often the channel had been looked at when it was taken
    internal bool IsAnswered { get; set; } // whether the call waits for nothing any more; guarded by the lock of the pool

    /// <summary>The call has begun to be answered: from now on it may be silent for as long as it likes.</summary>
    internal void Answered()
    {
        if (Volatile.Read(ref _channel) is { } channel)
        {
            _picker.Answered(this, channel);
        }
    }

    internal void Return(LeaseOutcome outcome, Exception? error = null)
    {
        if (Interlocked.Exchange(ref _channel, null) is { } channel)
        {
            _picker.Return(this, channel, outcome, error);
        }
    }
}

/// <summary>What a lease is asked for: the channel that is the last resort, and the key of the call, or 0.</summary>
internal readonly record struct LeaseRequest(LeaseKind Kind, PooledChannel? Avoid = null, ulong Key = 0);

/// <summary>What a lease is for.</summary>
internal enum LeaseKind : byte
{
    Call, // a unary one
    Stream, // a call of any other kind
    ByHand, // of the calls on it nothing is known
    Got, // by hand, too: Get took it, and Return gives it back
}

/// <summary>What a call has shown of its channel.</summary>
internal enum LeaseOutcome
{
    Unknown, // nothing: the caller ended the call, or it is not known how it ended
    Answered, // a server answered
    ServerFailed, // a server is there, but is not available, or reset the stream
    CouldNotConnect, // there was no connection, or so it looks: it may be that of a token server
    ChannelFailed, // the connection broke
}

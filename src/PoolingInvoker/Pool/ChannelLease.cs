using Grpc.Core;
using Grpc.Net.Client;

namespace PoolingInvoker;

/// <summary>The right to run one call on a channel of the pool. It is given back by <see cref="Dispose"/>; a second one does nothing.</summary>
public sealed class ChannelLease : IDisposable
{
    private readonly ChannelPicker _picker;
    private PooledChannel? _channel;

    // Under the lock of the pool.
    internal ChannelLease(ChannelPicker picker, PooledChannel channel, bool isStream) =>
        (_picker, _channel, IsStream, Looks) = (picker, channel, isStream, channel.Looks);

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

    internal PooledChannel Pooled => Volatile.Read(ref _channel) ?? throw new ObjectDisposedException(GetType().FullName);

    /// <summary>Gives the lease back.</summary>
    public void Dispose() => Return(LeaseOutcome.Unknown);

    internal bool IsStream { get; } // whether it is for a call that streams
    internal int Looks { get; } // how often the channel had been looked at when it was taken
    internal bool IsAnswered { get; set; } // whether the call waits for nothing any more; guarded by the lock of the pool
    internal bool IsByHand { get; set; } // whether nothing is known of the calls on it; guarded by the lock of the pool

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

/// <summary>What a call has shown of its channel.</summary>
internal enum LeaseOutcome
{
    Unknown, // nothing: the caller ended the call, or it is not known how it ended
    Answered, // a server answered
    ServerFailed, // a server is there, but is not available, or reset the stream
    CouldNotConnect, // there was no connection, or so it looks: it may be that of a token server
    ChannelFailed, // the connection broke
}

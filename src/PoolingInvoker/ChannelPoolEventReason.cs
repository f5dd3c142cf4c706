namespace PoolingInvoker;

/// <summary>Why a <see cref="ChannelPool"/> did something: what <see cref="ChannelPoolEvent.Message"/> says, in a word to count by.</summary>
public enum ChannelPoolEventReason
{
    /// <summary>Calls need a channel, or wait for one.</summary>
    CallsWaiting,

    /// <summary>Channels carry more calls than <see cref="ChannelPoolOptions.TargetConcurrentCallsPerChannel"/>, or calls share one with streams that last.</summary>
    Crowded,

    /// <summary>The pool is brought up to <see cref="ChannelPoolOptions.MinPoolSize"/>.</summary>
    WarmUp,

    /// <summary>A call failed on the only other channel.</summary>
    AnotherAttempt,

    /// <summary>There are more endpoints than channels.</summary>
    MoreEndpoints,

    /// <summary>There is no other channel, although this one could not be connected, or takes long to connect.</summary>
    OnlyChannel,

    /// <summary>The connection of the channel was lost, could not be made, or the channel was disposed.</summary>
    ConnectionLost,

    /// <summary>A call failed because of the channel.</summary>
    CallFailed,

    /// <summary>Who had leased the channel said that it has failed (<see cref="ChannelLease.MarkFailed"/>).</summary>
    MarkedFailed,

    /// <summary>Nothing came from the channel any more.</summary>
    Silent,

    /// <summary>The server takes no more calls on the connection (GOAWAY).</summary>
    ServerGoing,

    /// <summary>The endpoint of the channel is not one of the service any more.</summary>
    EndpointGone,

    /// <summary>The endpoint of the channel cannot be reached.</summary>
    EndpointUnreachable,

    /// <summary>Another endpoint has fewer channels.</summary>
    EndpointsUneven,

    /// <summary>The channel was older than <see cref="ChannelPoolOptions.PooledChannelLifetime"/>.</summary>
    TooOld,

    /// <summary><see cref="ChannelPool.RefreshAsync"/> was called.</summary>
    Refreshed,

    /// <summary>The channel carried no call for <see cref="ChannelPoolOptions.PooledChannelIdleTimeout"/>.</summary>
    Idle,

    /// <summary>The last call of a channel that takes no new ones is over.</summary>
    LastCallOver,

    /// <summary>No channel could be made and connected.</summary>
    NoChannel,

    /// <summary>No channel could be made and connected to take the place of one, which stays.</summary>
    NoReplacement,

    /// <summary>No channel had room, and none became free in time.</summary>
    PoolFull,

    /// <summary>No channel had room, and <see cref="ChannelPoolOptions.MaxCallsWaiting"/> calls waited already.</summary>
    LineFull,

    /// <summary>The channels of their keys were full, busy, silent, failing or being replaced, or had failed the attempt before.</summary>
    AffinityMoved,

    /// <summary>The options have changed (<see cref="ChannelPool.UpdateOptions"/>).</summary>
    OptionsChanged,

    /// <summary><see cref="ChannelPoolOptions.OnEvent"/> is slower than the pool.</summary>
    SlowListener,

    /// <summary>Endpoints of a priority (<see cref="ChannelAddress.Priority"/>) are lost, or well again.</summary>
    PriorityChanged,
}

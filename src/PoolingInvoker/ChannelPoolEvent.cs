namespace PoolingInvoker;

/// <summary>Something that a <see cref="ChannelPool"/> did, and why.</summary>
public sealed class ChannelPoolEvent
{
    internal ChannelPoolEvent(
        string poolName, ChannelPoolEventKind kind, int channelId, string endpoint, ChannelPoolEventReason reason, string message, Exception? exception) =>
        (PoolName, Kind, ChannelId, Endpoint, Reason, Message, Exception) = (poolName, kind, channelId, endpoint, reason, message, exception);

    /// <summary>Gets the name of the pool: <see cref="ChannelPoolOptions.Name"/>, or its target.</summary>
    public string PoolName { get; }

    /// <summary>Gets what the pool did.</summary>
    public ChannelPoolEventKind Kind { get; }

    /// <summary>Gets the number of the channel, as in <see cref="PooledChannelSnapshot.Id"/>; 0 if it is about none.</summary>
    public int ChannelId { get; }

    /// <summary>Gets where the channel leads, or would have led.</summary>
    public string Endpoint { get; }

    /// <summary>Gets why.</summary>
    public ChannelPoolEventReason Reason { get; }

    /// <summary>Gets why, in words.</summary>
    public string Message { get; }

    /// <summary>Gets what went wrong, if something did.</summary>
    public Exception? Exception { get; }

    /// <inheritdoc/>
    public override string ToString() =>
        FormattableString.Invariant($"{Kind}{(ChannelId == 0 ? string.Empty : $" #{ChannelId}")} to {Endpoint}: {Message}{(Exception is null ? string.Empty : $" ({Exception.Message})")}");
}

/// <summary>What a <see cref="ChannelPool"/> does.</summary>
public enum ChannelPoolEventKind
{
    /// <summary>A channel was made, connected, and takes calls.</summary>
    Created,

    /// <summary>A channel was made and takes the place of another one, which drains.</summary>
    Replaced,

    /// <summary>A channel takes no more calls, and none takes its place.</summary>
    Retired,

    /// <summary>A channel was given up because nothing came from it any more.</summary>
    GivenUp,

    /// <summary>A channel was disposed: its last call is over.</summary>
    Closed,

    /// <summary>A channel could not be made or connected.</summary>
    ConnectFailed,

    /// <summary>A call got no channel.</summary>
    Refused,

    /// <summary>
    /// Calls with a key (<see cref="PoolingCallInvoker.WithAffinity"/>) went to another channel than that of their key. It is told every 30
    /// seconds at most, with their number.
    /// </summary>
    AffinityMoved,

    /// <summary>So many events were not told, as <see cref="ChannelPoolOptions.OnEvent"/> was slower than the pool.</summary>
    Dropped,

    /// <summary>The options of the pool or of its calls have changed (<see cref="ChannelPool.UpdateOptions"/>). The reason says which, from what, to what.</summary>
    OptionsChanged,

    /// <summary>Calls go to endpoints of another priority (<see cref="ChannelAddress.Priority"/>), or of one more, or of one less.</summary>
    PriorityChanged,
}

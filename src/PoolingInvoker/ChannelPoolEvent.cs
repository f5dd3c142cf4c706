namespace PoolingInvoker;

/// <summary>Something that a <see cref="ChannelPool"/> did, and why.</summary>
public sealed class ChannelPoolEvent
{
    internal ChannelPoolEvent(ChannelPoolEventKind kind, int channel, string endpoint, string reason, Exception? exception) =>
        (Kind, Channel, Endpoint, Reason, Exception) = (kind, channel, endpoint, reason, exception);

    /// <summary>Gets what the pool did.</summary>
    public ChannelPoolEventKind Kind { get; }

    /// <summary>Gets the number of the channel, as in <see cref="PooledChannelSnapshot.Id"/>; 0 if it is about none.</summary>
    public int Channel { get; }

    /// <summary>Gets where the channel leads, or would have led.</summary>
    public string Endpoint { get; }

    /// <summary>Gets why, in words.</summary>
    public string Reason { get; }

    /// <summary>Gets what went wrong, if something did.</summary>
    public Exception? Exception { get; }

    /// <inheritdoc/>
    public override string ToString() =>
        FormattableString.Invariant($"{Kind}{(Channel == 0 ? string.Empty : $" #{Channel}")} to {Endpoint}: {Reason}{(Exception is null ? string.Empty : $" ({Exception.Message})")}");
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
    Failed,

    /// <summary>A call got no channel.</summary>
    Refused,

    /// <summary>So many events were not told, as <see cref="ChannelPoolOptions.OnEvent"/> was slower than the pool.</summary>
    Dropped,
}

namespace PoolingInvoker;

/// <summary>What becomes of a channel of a <see cref="ChannelPool"/>, in the order of its life.</summary>
public enum PooledChannelState
{
    /// <summary>It is being connected, and primed, and takes no call yet. Becomes Active, or is disposed if that fails.</summary>
    Connecting,

    /// <summary>It takes calls.</summary>
    Active,

    /// <summary>It takes calls until another one, which is being connected, takes its place. Becomes Draining, or Active again if that failed.</summary>
    Refreshing,

    /// <summary>It takes no new call: its replacement is being made. Becomes Draining, or Active again if none could be made.</summary>
    Replacing,

    /// <summary>It takes no new call, ever, and closes with its last one.</summary>
    Draining,

    /// <summary>It is disposed, or about to be by the thread that closed it.</summary>
    Closed,
}

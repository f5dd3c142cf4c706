namespace PoolingInvoker;

internal enum PooledChannelState
{
    /// <summary>Takes calls.</summary>
    Active,

    /// <summary>Takes no new call: its replacement is being made. Becomes Draining, or Active again if none could be made.</summary>
    Replacing,

    /// <summary>Takes no new call, ever, and closes with its last one.</summary>
    Draining,

    /// <summary>Disposed, or about to be by the thread that closed it.</summary>
    Closed,
}

/// <summary>Where a channel stands in the choice: those that are good come first, whatever their load.</summary>
internal enum ChannelStanding
{
    /// <summary>It has room, and nothing speaks against it. One that has yet to show that a server is there stands here until it has a call.</summary>
    Good,

    /// <summary>It has room, but is silent, has failed of late, or has yet to show that a server is there.</summary>
    Doubtful,

    /// <summary>It has no room, or takes no calls.</summary>
    Full,
}

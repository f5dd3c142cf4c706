namespace PoolingInvoker;

/// <summary>Where a channel stands in the choice. Those that are good come first, whatever their load.</summary>
internal enum ChannelStanding
{
    /// <summary>Good: it has room, carries no streams that last, and nothing speaks against it. One that is new stands here until it has a call.</summary>
    Calls,

    /// <summary>Good, but set aside: the load does not need it, and it closes if that stays so.</summary>
    Spare,

    /// <summary>Good, and it carries streams that last.</summary>
    Streams,

    /// <summary>It has room, but is silent, has failed of late, or has yet to show that a server is there.</summary>
    Doubtful,

    /// <summary>It has no room, or takes no calls.</summary>
    Full,
}

namespace PoolingInvoker;

/// <summary>Where a channel stands in the choice. Those that are good come first, whatever their load.</summary>
internal enum ChannelStanding
{
    Calls, // good: it has room, carries no streams that last, and nothing speaks against it, or it is new and has no call yet
    Spare, // good, but set aside: the load does not need it, and it closes if that stays so
    Streams, // good, and it carries streams that last
    Doubtful, // it has room, but is silent, has failed of late, or has yet to show that a server is there
    Full, // it has no room, or takes no calls
}

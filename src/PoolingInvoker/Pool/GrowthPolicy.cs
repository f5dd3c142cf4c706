namespace PoolingInvoker;

/// <summary>
/// What the waiters meet. Blocked channels have servers that have taken nothing yet: another connection to them would bring no more. Capacity is
/// what a new channel is expected to carry, ConnectTime what it took to connect the last one.
/// </summary>
internal readonly record struct WaitingLoad(int Waiting, int Channels, int Creating, int Replacing, int Blocked, long Capacity, TimeSpan ConnectTime);

/// <summary>How many channels a pool needs.</summary>
internal static class GrowthPolicy
{
    private static readonly TimeSpan WaitersPeriod = TimeSpan.FromMilliseconds(10); // how far apart looks at the waiters are, at least
    private static readonly TimeSpan LongestWaitersPeriod = TimeSpan.FromMilliseconds(100);

    /// <summary>
    /// How many channels to add for the calls that wait, and whether to look at them again. A cold pool makes at once what they need. One
    /// that has channels looks first whether those will have served them by the time that another one is connected. Where connecting takes
    /// next to no time, at most as many are made at once as there are.
    /// </summary>
    public static (long Add, bool LooksAgain) ForWaiters(in WaitingLoad load, double? returnsPerSecond)
    {
        var missing = load.Waiting - ((load.Creating + load.Replacing + load.Blocked) * load.Capacity);
        if (missing <= 0)
        {
            return (0, false);
        }

        if (load.Channels == 0)
        {
            return (Channels(missing, load.Capacity), false);
        }

        if (load.ConnectTime <= 2 * WaitersPeriod)
        {
            return (Math.Min(Math.Max(0, load.Channels - load.Creating), Channels(missing, load.Capacity)), true);
        }

        missing -= (long)((returnsPerSecond ?? 0) * load.ConnectTime.TotalSeconds);
        return returnsPerSecond is null ? (0, true) : (Math.Max(0, Channels(missing, load.Capacity)), missing > 0);
    }

    /// <summary>When to look at the waiters again: where connecting takes long, more is seen first of how fast leases come back.</summary>
    public static TimeSpan WaitersPause(TimeSpan connectTime) =>
        TimeSpan.FromTicks(Math.Clamp((connectTime / 5).Ticks, WaitersPeriod.Ticks, LongestWaitersPeriod.Ticks));

    /// <summary>How many new channels may be made now. After one that could not be connected it is one at a time, after a pause, while there are others.</summary>
    public static int Places(int most, int channels, int creating, bool lastConnectFailed, bool mayDial)
    {
        var places = Math.Max(0, most - channels - creating);
        return !lastConnectFailed || channels == 0 ? places : creating == 0 && mayDial ? Math.Min(places, 1) : 0;
    }

    private static long Channels(long missing, long capacity) => (missing + capacity - 1) / capacity;
}

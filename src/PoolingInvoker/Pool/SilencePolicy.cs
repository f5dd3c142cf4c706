namespace PoolingInvoker;

/// <summary>What follows from asking a channel for a sign of life.</summary>
internal enum SilenceVerdict
{
    Lives, // its methods are slow
    Unknown, // this process stood still while it asked, or no call waits any more
    GiveUp, // others live, or a fresh channel did: it is the channel
    AskFresh, // it may be the network, or all servers: fresh channels tell
}

/// <summary>What silence means.</summary>
internal static class SilencePolicy
{
    // grpc-go and C++ servers close the connection at the fourth ping in a silence, where they are less than 5 minutes apart.
    public const int PingsInASilence = 3;
    public static readonly TimeSpan RarePing = TimeSpan.FromMinutes(5.1); // after those, and where all calls are streams under way

    /// <summary>How long calls wait while nothing comes before the channel is asked: longer after each answer in this silence.</summary>
    public static TimeSpan Patience(TimeSpan delay, int answered, bool isConnecting, bool pings)
    {
        if (isConnecting && delay < ChannelConnector.Patience)
        {
            return ChannelConnector.Patience;
        }

        var patience = delay * Math.Pow(4, Math.Min(answered, PingsInASilence));
        return answered >= PingsInASilence && pings && patience < RarePing ? RarePing : patience;
    }

    /// <summary>
    /// A channel is not given up on its own evidence. Another one must have shown life while it was asked, and not most of the pool may be
    /// silent; or a server must have answered on a fresh one.
    /// </summary>
    public static SilenceVerdict Judge(bool lives, int calls, TimeSpan took, TimeSpan timeout, bool freshAnswered, int others, int suspects, int channels) =>
        lives ? SilenceVerdict.Lives
        : calls == 0 || took > 2 * timeout ? SilenceVerdict.Unknown
        : freshAnswered || (others > 0 && suspects * 4 <= channels * 3) ? SilenceVerdict.GiveUp
        : SilenceVerdict.AskFresh;
}

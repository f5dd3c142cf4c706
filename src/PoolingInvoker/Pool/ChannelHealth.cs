namespace PoolingInvoker;

/// <summary>What is known of a channel, and speaks for or against choosing it.</summary>
internal enum ChannelHealth
{
    New, // nothing has come from a server yet, or since it last failed a call: one call at a time finds that out
    Healthy, // a server is there
    Penalized, // its server has failed a call, and is spared for a while
    Suspect, // its calls wait, nothing comes, and it has been asked for a sign of life
    Broken, // it has failed a call, or its connection broke under calls: it is replaced
    GivenUp, // it gave no sign of life: its connection is cut, and one on which a server answers replaces it
}

/// <summary>What happens to a channel.</summary>
internal enum ChannelSignal
{
    Life, // SETTINGS, an answer to a probe, or anything else from a server
    Answered, // a server has answered a call
    ServerFailed, // a server is there, but has failed a call
    ChannelFailed, // a call failed because of the channel, or its connection broke under calls
    Silent, // calls have waited for too long
    PenaltyOver,
    GivenUp, // it gave no sign of life when it was asked
}

internal static class ChannelHealthTransitions
{
    public static ChannelHealth After(this ChannelHealth health, ChannelSignal signal) => (health, signal) switch
    {
        (ChannelHealth.GivenUp, not ChannelSignal.Answered) => ChannelHealth.GivenUp,
        (_, ChannelSignal.GivenUp) => ChannelHealth.GivenUp,
        (_, ChannelSignal.ChannelFailed) => ChannelHealth.Broken,
        (ChannelHealth.Broken, not ChannelSignal.Answered) => ChannelHealth.Broken,
        (_, ChannelSignal.ServerFailed) => ChannelHealth.Penalized,
        (_, ChannelSignal.Silent) => ChannelHealth.Suspect,
        (ChannelHealth.Penalized, ChannelSignal.PenaltyOver) => ChannelHealth.New,
        (not ChannelHealth.Penalized, ChannelSignal.Life or ChannelSignal.Answered) => ChannelHealth.Healthy,
        _ => health,
    };
}

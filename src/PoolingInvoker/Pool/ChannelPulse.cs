namespace PoolingInvoker;

/// <summary>What the watch knows of one channel: how many calls wait on it, and when it last showed life. Guarded by the lock of the pool.</summary>
internal sealed class ChannelPulse(PooledChannel channel, long now)
{
    private (long SignsOfLife, long Started, long Answers) _seen;
    private long _answered;

    public int Answering { get; set; } // the leases of calls that have begun to be answered
    public int ByHand { get; set; } // the leases that were taken by hand: whether there are calls on them is not known
    public long Started { get; set; } // how many calls were begun
    public int Waiting => channel.Leases - Answering - ByHand; // the calls in flight that wait for an answer
    public int Calls => channel.Leases - ByHand; // the calls in flight
    public long SignsOfLife => _answered + (channel.Transport?.SignsOfLife ?? 0); // what grows with each sign of life
    public long LivedAt { get; private set; } // when a look at the channel last saw a sign of life
    public long SilentSince { get; private set; } = now; // since when there have been calls without a sign of life, as far as the looks saw
    public long WaitsSince { get; private set; } = now; // since when calls have waited for an answer without a sign of life
    public bool IsSuspect => channel.Health == ChannelHealth.Suspect; // whether it has been asked for a sign of life, and has not given one
    public bool IsProbed { get; set; } // whether it is being asked for one
    public long? AskedInVainAt { get; set; } // when it was last asked for one in vain; null if it has given one since
    public int Probes { get; set; } // how often it has given one when it was asked, since something of a call last came
    private long Answers => _answered + (channel.Transport?.CallFrames ?? 0);

    public bool ShowsLife => SignsOfLife != _seen.SignsOfLife; // since the last look, or the last answer to a probe
    public bool IsSilentStill => AskedInVainAt is not null && !ShowsLife;
    public bool LivesSince(long moment) => LivedAt > moment || ShowsLife; // a moment that lies longer back than the last look
    public void CountAnswer() => _answered++;
    public void IsNotSilent(long at) => SilentSince = WaitsSince = at;

    /// <summary>Looks at what has happened since the last look.</summary>
    public void Look(long at)
    {
        var seen = (SignsOfLife, Started, Answers);
        if (seen.SignsOfLife != _seen.SignsOfLife)
        {
            Lives(at);
        }

        Probes = seen.Answers == _seen.Answers ? Probes : 0;
        WaitsSince = Waiting > 0 || seen.Started != _seen.Started ? WaitsSince : at;
        SilentSince = Calls > 0 ? SilentSince : at;
        _seen = seen;
    }

    public void ProbeAnswered(long at)
    {
        _seen = (SignsOfLife, _seen.Started, Answers);
        Probes++;
        Lives(at);
    }

    private void Lives(long at)
    {
        LivedAt = at;
        IsNotSilent(at);
        AskedInVainAt = null;
        channel.Signal(ChannelSignal.Life);
    }
}

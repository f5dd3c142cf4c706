namespace PoolingInvoker;

/// <summary>What the watch knows of one channel: how many calls wait on it, and when it last showed life. Guarded by the lock of the pool.</summary>
internal sealed class ChannelPulse(PooledChannel channel, long now)
{
    private (long SignsOfLife, long Started, long Answers) _seen;
    private long _answered;

    /// <summary>The leases of calls that have begun to be answered.</summary>
    public int Answering { get; set; }

    /// <summary>The leases that were taken by hand: whether there are calls on them is not known.</summary>
    public int ByHand { get; set; }

    /// <summary>How many calls were begun.</summary>
    public long Started { get; set; }

    /// <summary>The calls in flight that wait for an answer.</summary>
    public int Waiting => channel.Leases - Answering - ByHand;

    /// <summary>The calls in flight.</summary>
    public int Calls => channel.Leases - ByHand;

    /// <summary>What grows with each sign of life.</summary>
    public long SignsOfLife => _answered + (channel.Transport?.SignsOfLife ?? 0);

    /// <summary>When a look at the channel last saw a sign of life.</summary>
    public long LivedAt { get; private set; }

    /// <summary>Since when there have been calls without a sign of life, as far as the looks saw.</summary>
    public long SilentSince { get; private set; } = now;

    /// <summary>Since when calls have waited for an answer without a sign of life.</summary>
    public long WaitsSince { get; private set; } = now;

    /// <summary>Whether it has been asked for a sign of life, and has not given one.</summary>
    public bool IsSuspect { get; set; }

    /// <summary>Whether it is being asked for one.</summary>
    public bool IsProbed { get; set; }

    /// <summary>When it was last asked for one in vain; null if it has given one since.</summary>
    public long? AskedInVainAt { get; set; }

    /// <summary>Whether the pool has given it up.</summary>
    public bool IsGivenUp { get; set; }

    /// <summary>How often it has given one when it was asked, since something of a call last came.</summary>
    public int Probes { get; set; }

    private long Answers => _answered + (channel.Transport?.CallFrames ?? 0);

    /// <summary>A server has answered a call, or has begun to.</summary>
    public void CountAnswer() => _answered++;

    /// <summary>Whatever it was until now, it was no silence.</summary>
    public void IsNotSilent(long at) => SilentSince = WaitsSince = at;

    /// <summary>Looks at what has happened since the last look.</summary>
    public void Look(long at)
    {
        var seen = (SignsOfLife, Started, Answers);
        var waits = Waiting > 0 || seen.Started != _seen.Started;
        if (seen.SignsOfLife != _seen.SignsOfLife)
        {
            Lives(at);
        }

        if (seen.Answers != _seen.Answers)
        {
            Probes = 0;
        }

        if (!waits)
        {
            WaitsSince = at;
        }

        if (Calls == 0)
        {
            SilentSince = at;
        }

        _seen = seen;
    }

    /// <summary>It has given the sign of life that it was asked for.</summary>
    public void ProbeAnswered(long at)
    {
        _seen = (SignsOfLife, _seen.Started, Answers);
        Probes++;
        Lives(at);
    }

    /// <summary>Whether it has shown life since the last look, or the last answer to a probe.</summary>
    public bool ShowsLife => SignsOfLife != _seen.SignsOfLife;

    /// <summary>Whether it was asked for a sign of life in vain, and has not given one up to this moment.</summary>
    public bool IsSilentStill => AskedInVainAt is not null && !ShowsLife;

    /// <summary>Whether it has shown life since a moment that lies longer back than the last look.</summary>
    public bool LivesSince(long moment) => LivedAt > moment || ShowsLife;

    private void Lives(long at)
    {
        LivedAt = at;
        IsNotSilent(at);
        IsSuspect = channel.IsOnProbation = false;
        AskedInVainAt = null;
    }
}

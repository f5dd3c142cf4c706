namespace PoolingInvoker.Tests.Pool;

/// <summary>The decisions of the pool, each a pure function.</summary>
public sealed class PolicyTests
{
    [Theory]
    // Waiting, channels, creating, replacing, blocked, capacity, ms to connect, returns a second: how many are added, and whether it looks again.
    [InlineData(0, 0, 0, 0, 0, 10, 0, null, 0, false)]
    [InlineData(25, 0, 0, 0, 0, 10, 0, null, 3, false)] // a cold pool makes at once what they need
    [InlineData(25, 0, 2, 0, 0, 10, 0, null, 1, false)] // beyond what is on its way
    [InlineData(25, 0, 3, 0, 0, 10, 0, null, 0, false)]
    [InlineData(25, 1, 0, 3, 0, 10, 0, null, 0, false)] // a replacement brings room, too
    [InlineData(25, 1, 0, 0, 3, 10, 0, null, 0, false)] // a server that takes nothing says when it does
    [InlineData(25, 1, 0, 0, 0, 10, 20, null, 1, true)] // connecting is quick: at most as many as there are
    [InlineData(25, 5, 0, 0, 0, 10, 20, null, 3, true)]
    [InlineData(25, 2, 1, 0, 0, 10, 20, null, 1, true)]
    [InlineData(25, 2, 2, 0, 0, 10, 20, null, 0, true)]
    [InlineData(25, 1, 0, 0, 0, 10, 21, null, 0, true)] // it is slow: first it is seen how fast leases come back
    [InlineData(25, 1, 0, 0, 0, 10, 100, 0.0, 3, true)]
    [InlineData(25, 1, 0, 0, 0, 10, 100, 100.0, 2, true)] // 10 will have been served by then
    [InlineData(25, 1, 0, 0, 0, 10, 100, 250.0, 0, false)]
    [InlineData(25, 1, 0, 0, 0, 10, 100, 9000.0, 0, false)]
    public void HowManyChannelsWaitersNeed(
        int waiting, int channels, int creating, int replacing, int blocked, long capacity, int milliseconds, double? returns, long add, bool looksAgain)
    {
        var load = new WaitingLoad(waiting, channels, creating, replacing, blocked, capacity, TimeSpan.FromMilliseconds(milliseconds));
        Assert.Equal((add, looksAgain), GrowthPolicy.ForWaiters(load, returns));
    }

    [Theory]
    [InlineData(0, 10)]
    [InlineData(40, 10)]
    [InlineData(100, 20)]
    [InlineData(500, 100)]
    [InlineData(5_000, 100)]
    public void WaitersAreLookedAtLater_WhereConnectingTakesLonger(int connectTime, int pause) =>
        Assert.Equal(TimeSpan.FromMilliseconds(pause), GrowthPolicy.WaitersPause(TimeSpan.FromMilliseconds(connectTime)));

    [Theory]
    [InlineData(10, 3, 2, false, false, 5)]
    [InlineData(10, 8, 2, false, true, 0)]
    [InlineData(10, 12, 0, false, true, 0)]
    [InlineData(10, 3, 0, true, true, 1)] // the last one could not be connected: one at a time, after a pause
    [InlineData(10, 3, 1, true, true, 0)]
    [InlineData(10, 3, 0, true, false, 0)]
    [InlineData(10, 0, 0, true, false, 10)] // there is no other one
    public void HowManyMayBeMade(int most, int channels, int creating, bool lastConnectFailed, bool mayDial, int places) =>
        Assert.Equal(places, GrowthPolicy.Places(most, channels, creating, lastConnectFailed, mayDial));

    [Theory]
    [InlineData(0, false, true, 1)]
    [InlineData(1, false, true, 4)]
    [InlineData(2, false, true, 16)]
    [InlineData(3, false, true, 306)] // servers take it ill to be pinged more often
    [InlineData(9, false, true, 306)]
    [InlineData(3, false, false, 64)] // a call of the user's may come as often as they like
    [InlineData(0, true, true, 5)]
    public void HowLongCallsWaitBeforeAChannelIsAsked(int answered, bool isConnecting, bool pings, int seconds) =>
        Assert.Equal(TimeSpan.FromSeconds(seconds), SilencePolicy.Patience(TimeSpan.FromSeconds(1), answered, isConnecting, pings));

    [Theory]
    // Lives, calls, seconds it took to ask (the time-out is 1), whether a fresh one answered, others that live, suspects, channels.
    [InlineData(true, 1, 1, false, 0, 1, 1, "Lives")]
    [InlineData(true, 0, 9, true, 5, 1, 1, "Lives")]
    [InlineData(false, 0, 1, true, 5, 1, 6, "Unknown")] // no call waits any more
    [InlineData(false, 1, 3, true, 5, 1, 6, "Unknown")] // this process stood still
    [InlineData(false, 1, 2, false, 5, 1, 6, "GiveUp")]
    [InlineData(false, 1, 1, false, 1, 3, 4, "GiveUp")]
    [InlineData(false, 1, 1, false, 1, 4, 5, "AskFresh")] // most are silent: it may be the network
    [InlineData(false, 1, 1, false, 0, 1, 4, "AskFresh")] // no other one shows life
    [InlineData(false, 1, 1, true, 0, 4, 4, "GiveUp")]
    public void WhatSilenceMeans(bool lives, int calls, int took, bool freshAnswered, int others, int suspects, int channels, string verdict) =>
        Assert.Equal(verdict, $"{SilencePolicy.Judge(lives, calls, TimeSpan.FromSeconds(took), TimeSpan.FromSeconds(1), freshAnswered, others, suspects, channels)}");

    [Theory]
    [InlineData(9, 10, true, true, "Keep")]
    [InlineData(10, 10, true, true, "Close")]
    [InlineData(10, 10, true, false, "Close")]
    [InlineData(10, 10, false, true, "Renew")]
    [InlineData(10, 10, false, false, "Keep")] // it has no connection that could have been forgotten
    [InlineData(9_000, -1, true, true, "Keep")] // for ever
    public void WhatBecomesOfAnIdleChannel(int idle, int timeout, bool isSpare, bool wasConnected, string action)
    {
        var after = timeout < 0 ? Timeout.InfiniteTimeSpan : TimeSpan.FromMinutes(timeout);
        Assert.Equal(action, $"{PoolUpkeep.Decide(TimeSpan.FromMinutes(idle), after, isSpare, wasConnected)}");
    }
}

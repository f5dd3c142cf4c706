namespace PoolingInvoker.Tests.Pool;

/// <summary>The table of what becomes of a channel, and what follows from it.</summary>
public sealed class ChannelHealthTests
{
    // In the order of the signals: Life, Answered, ServerFailed, ChannelFailed, Silent, PenaltyOver, GivenUp. "=" is no change.
    [Theory]
    [InlineData("New", "Healthy Healthy Penalized Broken Suspect = GivenUp")]
    [InlineData("Healthy", "= = Penalized Broken Suspect = GivenUp")]
    [InlineData("Penalized", "= = = Broken Suspect New GivenUp")]
    [InlineData("Suspect", "Healthy Healthy Penalized Broken = = GivenUp")]
    [InlineData("Broken", "= Healthy = = = = GivenUp")]
    [InlineData("GivenUp", "= Healthy = = = = =")]
    public void EachSignal_LeadsToOneHealth(string health, string after)
    {
        var from = Enum.Parse<ChannelHealth>(health);
        var next = Enum.GetValues<ChannelSignal>().Select(signal => from.After(signal));
        Assert.Equal(after, string.Join(' ', next.Select(to => to == from ? "=" : $"{to}")));
    }

    [Fact]
    public void TheTable_HasAllHealths() => Assert.Equal(
        ["New", "Healthy", "Penalized", "Suspect", "Broken", "GivenUp"],
        Enum.GetNames<ChannelHealth>());

    [Theory]
    [InlineData("New", 0, "Calls")]
    [InlineData("New", 1, "Doubtful")] // one call at a time
    [InlineData("Healthy", 1, "Calls")]
    [InlineData("Healthy", 2, "Full")]
    [InlineData("Penalized", 0, "Doubtful")]
    [InlineData("Suspect", 0, "Doubtful")]
    [InlineData("Broken", 0, "Doubtful")]
    [InlineData("GivenUp", 0, "Doubtful")]
    [InlineData("Broken", 2, "Full")]
    public void WhereItStands(string health, int leases, string standing) =>
        Assert.Equal(standing, $"{New(health, leases).Standing}");

    [Theory]
    [InlineData("Broken", "Active", true, true, "a call failed because of it")]
    [InlineData("Broken", "Active", true, false, "a call failed because of it")] // it has worked: no pause
    [InlineData("Broken", "Active", false, true, "a call failed because of it")]
    [InlineData("Broken", "Active", false, false, null)] // it has never worked: the pool pauses
    [InlineData("Broken", "Replacing", true, true, null)]
    [InlineData("Broken", "Refreshing", true, true, null)]
    [InlineData("Broken", "Draining", true, true, null)]
    [InlineData("Broken", "Connecting", true, true, null)]
    [InlineData("Healthy", "Active", true, true, null)]
    [InlineData("Penalized", "Active", true, true, null)] // a server is there
    [InlineData("Suspect", "Active", true, true, null)]
    public void WhyItIsReplaced(string health, string state, bool hasWorked, bool mayDial, string? reason)
    {
        var backoff = new ReconnectBackoff(TimeProvider.System, new Random(1), TimeSpan.FromDays(1), TimeSpan.FromDays(1));
        if (!mayDial)
        {
            backoff.Dialed();
        }

        var channel = New(health, leases: 0);
        (channel.State, channel.Proven) = (Enum.Parse<PooledChannelState>(state), hasWorked);
        Assert.Equal(reason, channel.ReasonToReplace(backoff, thorough: false)?.Words);
    }

    private static PooledChannel New(string health, int leases) =>
        new(1, StubPolicy.NewChannel(), "stub", transport: null, mostCalls: 2, now: 0, Timeout.InfiniteTimeSpan)
        {
            Health = Enum.Parse<ChannelHealth>(health),
            Leases = leases,
            State = PooledChannelState.Active,
        };
}

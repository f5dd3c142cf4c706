namespace PoolingInvoker;

/// <summary>Why the pool does something: a kind, to count by, and words. All reasons that there are stand here.</summary>
internal sealed class PoolReason
{
    public static readonly PoolReason CallsNeedIt = new(ChannelPoolEventReason.CallsWaiting, "calls need it");
    public static readonly PoolReason CallsWait = new(ChannelPoolEventReason.CallsWaiting, "calls wait");
    public static readonly PoolReason WarmUp = new(ChannelPoolEventReason.WarmUp, "the pool warms up to MinPoolSize");
    public static readonly PoolReason AnotherAttempt = new(ChannelPoolEventReason.AnotherAttempt, "a call failed on the only other one");
    public static readonly PoolReason MoreEndpoints = new(ChannelPoolEventReason.MoreEndpoints, "there are more endpoints than channels");
    public static readonly PoolReason NoOther = new(ChannelPoolEventReason.OnlyChannel, "there is no other, although it could not be connected");
    public static readonly PoolReason NoOtherYet = new(ChannelPoolEventReason.OnlyChannel, "there is no other, although it takes long to connect");
    public static readonly PoolReason CallFailed = new(ChannelPoolEventReason.CallFailed, "a call failed because of it");
    public static readonly PoolReason MarkedFailed = new(ChannelPoolEventReason.MarkedFailed, "who had leased it marked it as failed");
    public static readonly PoolReason ServerGoing = new(ChannelPoolEventReason.ServerGoing, "its server takes no more calls on the connection (GOAWAY)");
    public static readonly PoolReason EndpointGone = new(ChannelPoolEventReason.EndpointGone, "its endpoint is gone");
    public static readonly PoolReason EndpointUnreachable = new(ChannelPoolEventReason.EndpointUnreachable, "its endpoint cannot be reached");
    public static readonly PoolReason EndpointsUneven = new(ChannelPoolEventReason.EndpointsUneven, "another endpoint has fewer channels");
    public static readonly PoolReason PriorityBack = new(ChannelPoolEventReason.PriorityChanged, "calls go to endpoints of an earlier priority again");
    public static readonly PoolReason Refreshed = new(ChannelPoolEventReason.Refreshed, "all channels are refreshed (RefreshAsync)");
    public static readonly PoolReason LastCallOver = new(ChannelPoolEventReason.LastCallOver, "its last call is over");
    public static readonly PoolReason NoChannel = new(ChannelPoolEventReason.NoChannel, "no channel could be made and connected");
    public static readonly PoolReason NewOptions = new(ChannelPoolEventReason.OptionsChanged, "the options have changed");

    private PoolReason(ChannelPoolEventReason kind, string words) => (Kind, Words) = (kind, words);

    public ChannelPoolEventReason Kind { get; }
    public string Words { get; }

    public static PoolReason Crowded(int? target) =>
        Of(ChannelPoolEventReason.Crowded, $"channels carry more than {target} calls, or calls share one with streams that last");
    public static PoolReason ConnectionLost(ConnectivityState state) => Of(ChannelPoolEventReason.ConnectionLost, $"it was in {state}");
    public static PoolReason Silent(TimeSpan silence, bool isAnsweredElsewhere) => Of(
        ChannelPoolEventReason.Silent,
        $"nothing has come from it for {silence.TotalSeconds:0.#} s, {(isAnsweredElsewhere ? "and a server answered on a fresh one" : "nor an answer to a probe")}");
    public static PoolReason TooOld(TimeSpan lifetime) => Of(ChannelPoolEventReason.TooOld, $"it was older than {lifetime}");
    public static PoolReason Idle(TimeSpan timeout) => Of(ChannelPoolEventReason.Idle, $"it carried no call for {timeout}");
    public static PoolReason NoReplacement(string elsewhere) =>
        Of(ChannelPoolEventReason.NoReplacement, $"it stays: no replacement could be made and connected{elsewhere}");
    public static PoolReason Refused(Exception refusal, bool isLineFull) =>
        new(isLineFull ? ChannelPoolEventReason.LineFull : ChannelPoolEventReason.PoolFull, refusal.Message);
    public static PoolReason AffinityMoved(long moved, long calls) =>
        Of(ChannelPoolEventReason.AffinityMoved, $"{moved} of the last {calls} calls with a key went to another channel than that of their key");
    public static PoolReason PriorityChanged(IReadOnlyList<PoolPriority> priorities)
    {
        var shares = priorities.Where(static one => one.Share > 0).Select(static one => FormattableString.Invariant($"priority {one.Number} ({one.Share:0.#%})"));
        var reached = priorities.Select(static one => $"{one.Listed.Count} endpoints of priority {one.Number} {one.Listed.Count - one.Failing} can be reached");
        return new(ChannelPoolEventReason.PriorityChanged, $"calls go to {string.Join(" and ", shares)}; of {string.Join(", ", reached)}");
    }

    public static PoolReason Surplus(int most) => Of(ChannelPoolEventReason.OptionsChanged, $"there are more than {most} channels");
    public static PoolReason Changed(string changes) => new(ChannelPoolEventReason.OptionsChanged, changes);
    public static PoolReason SlowListener(long dropped) =>
        Of(ChannelPoolEventReason.SlowListener, $"OnEvent is slower than the pool: {dropped} events were not told");

    public PoolReason InPlaceOf(PooledChannel replaced) => Of(Kind, $"in place of #{replaced.Id}, because {Words}");

    private static PoolReason Of(ChannelPoolEventReason kind, FormattableString words) => new(kind, FormattableString.Invariant(words));
}

using System.Collections;

namespace PoolingInvoker;

/// <summary>
/// The channels that count against the size of the pool, in the order of their <see cref="ChannelStanding"/>. A pick looks at two of them,
/// however many there are, and where these go to one endpoint at a few more. Guarded by the lock of the pool.
/// </summary>
internal sealed class ActiveChannels(Random random, ChannelTarget target) : IEnumerable<PooledChannel>
{
    // Where channels to another endpoint are as many, or half as many, one is found nearly always.
    private const int OtherEndpointTries = 8;

    private const int DrawsAtEndpoint = 16;

    public ChannelTarget Target { get; set; } = target;
    public List<PooledChannel>[] ByStanding { get; } = [.. Enum.GetValues<ChannelStanding>().Select(static _ => new List<PooledChannel>())];
    public int Count { get; private set; }
    public int Version { get; set; } // changes when a channel comes or goes, and when keys have another order of them
    public bool HasRoom => Count > CountOf(ChannelStanding.Full);
    public int Good => Count - CountOf(ChannelStanding.Full) - CountOf(ChannelStanding.Doubtful) - CountOf(ChannelStanding.DoubtfulStandby); // how many are good. They come first
    public int Calls { get; private set; } // the leases of calls and of streams that may be short
    public int Streams { get; private set; } // the leases of streams that last
    public int Spare => CountOf(ChannelStanding.Spare); // how many channels have been set aside
    public int OfStreams => CountOf(ChannelStanding.Streams); // how many channels carry streams that last, and have room
    public int OnStandby => CountOf(ChannelStanding.Standby); // how many channels go to a priority that gets no calls
    public int Aside => Spare + OnStandby;
    public int OfCalls => Count - Aside - OfStreams; // how many channels calls are spread over

    // Whether another channel would be of use.
    public bool AreCrowded => Calls > Target.LoadOf(OfCalls) || Streams > Target.LoadOf(OfStreams);

    public IEnumerator<PooledChannel> GetEnumerator() => ByStanding.SelectMany(static channels => channels).GetEnumerator();
    IEnumerator IEnumerable.GetEnumerator() => GetEnumerator();

    public void Add(PooledChannel channel)
    {
        channel.State = PooledChannelState.Active;
        Count++;
        Version++;
        Place(channel);
        Tally(channel, 1);
    }

    public void Remove(PooledChannel channel)
    {
        Tally(channel, -1);
        Displace(channel);
        Count--;
        Version++;
    }

    public void Leased(PooledChannel channel, bool isStream)
    {
        Tally(channel, -1);
        channel.Leases++;
        channel.Streams += isStream ? 1 : 0;
        channel.NewStreams += isStream ? 1 : 0;
        Tally(channel, 1);
        Update(channel);
    }

    /// <summary>A lease has come back that was taken after so many looks at the streams.</summary>
    public void Returned(PooledChannel channel, bool isStream, int looks)
    {
        Tally(channel, -1);
        channel.Leases--;
        if (isStream)
        {
            channel.Streams--;
            channel.NewStreams -= looks == channel.Looks ? 1 : 0;
            channel.LongStreams -= looks < channel.Looks - 1 ? 1 : 0;
        }

        Tally(channel, 1);
        Update(channel);
    }

    /// <summary>Streams that were there at the last look and still are last.</summary>
    public void LookAtStreams(PooledChannel channel)
    {
        Tally(channel, -1);
        channel.LongStreams = channel.Streams - channel.NewStreams;
        channel.NewStreams = 0;
        channel.Looks++;
        Tally(channel, 1);
        Update(channel);
    }

    /// <summary>Is called after each change of what the standing of a channel depends on.</summary>
    public void Update(PooledChannel channel)
    {
        if (channel.Index >= 0 && channel.Place != channel.Standing)
        {
            Displace(channel);
            Place(channel);
        }
    }

    /// <summary>
    /// The better of two distinct channels, drawn at random from the good ones, or if there are none from the doubtful ones. Calls keep
    /// away from channels with streams that last, and streams keep to those. <paramref name="avoid"/> is the last resort.
    /// </summary>
    public PooledChannel? Pick(bool isStream, PooledChannel? avoid, CallShare? at = null)
    {
        var picked = at is null ? null : isStream ? PickForStream(avoid, at) : PickForCall(avoid, at);
        picked ??= isStream ? PickForStream(avoid) : PickForCall(avoid);
        return picked
            ?? Draw(ChannelStanding.Standby, avoid, at: null)
            ?? Draw(ChannelStanding.Doubtful, avoid, at: null)
            ?? Draw(ChannelStanding.DoubtfulStandby, avoid, at: null)
            ?? (avoid is { Index: >= 0, HasRoom: true } ? avoid : null);
    }

    private PooledChannel? PickForCall(PooledChannel? avoid, CallShare? at = null) =>
        (Calls >= Target.LoadOf(OfCalls) ? Draw(ChannelStanding.Spare, avoid, at) : null)
        ?? Draw(ChannelStanding.Calls, avoid, at)
        ?? Draw(ChannelStanding.Spare, avoid, at)
        ?? Draw(ChannelStanding.Streams, avoid, at);

    private PooledChannel? PickForStream(PooledChannel? avoid, CallShare? at = null) =>
        Draw(ChannelStanding.Streams, avoid, at) is { } among && among.Streams < Target.LoadOfEach(OfStreams) ? among : PickForCall(avoid, at);

    private PooledChannel? Draw(ChannelStanding standing, PooledChannel? avoid, CallShare? at)
    {
        var channels = ByStanding[(int)standing];
        if (at is not null)
        {
            return DrawAt(channels, avoid, at);
        }

        if (channels.Count < 2)
        {
            return channels.Count == 1 && channels[0] != avoid ? channels[0] : null;
        }

        var first = random.Next(0, channels.Count);
        var second = random.Next(0, channels.Count - 1);
        second += second >= first ? 1 : 0;
        var a = channels[first];
        var b = channels[second];
        if (a == avoid || b == avoid)
        {
            return a == avoid ? b : a;
        }

        // Two that go to one endpoint say nothing of the others: were it to be silent, it would get all callers in time.
        var better = Better(a, b);
        for (var tries = 0; tries < OtherEndpointTries && a.Server is { HasOthers: true } server && b.Server == server; tries++)
        {
            b = channels[random.Next(0, channels.Count)];
            better = b != avoid ? Better(better, b) : better;
        }

        return better;
    }

    // Channels are even over the endpoints, by their weight: two of one are found soon, as a rule.
    private PooledChannel? DrawAt(List<PooledChannel> channels, PooledChannel? avoid, CallShare at)
    {
        PooledChannel? better = null;
        for (var (tries, found) = (0, 0); tries < DrawsAtEndpoint && found < 2 && channels.Count > 0; tries++)
        {
            if (channels[random.Next(0, channels.Count)] is var drawn && at.Has(drawn) && drawn != avoid)
            {
                better = better is null ? drawn : Better(better, drawn);
                found++;
            }
        }

        for (var i = 0; better is null && i < channels.Count; i++)
        {
            better = at.Has(channels[i]) && channels[i] != avoid ? channels[i] : null;
        }

        return better;
    }

    private PooledChannel Better(PooledChannel a, PooledChannel b) => Weight(a, b) <= Weight(b, a) ? a : b;

    // Channels to different endpoints compare the load of those. A channel that fails at once has few calls and would attract all, so that
    // a failure weighs as much as its capacity.
    private long Weight(PooledChannel channel, PooledChannel other) =>
        (channel.Server is { } server && server != other.Server ? server.Leases : channel.Leases)
        + (channel.LongStreams * Target.StreamWeight)
        + (channel.Health > ChannelHealth.Healthy ? (long)channel.Capacity : 0);

    private void Tally(PooledChannel channel, int sign)
    {
        if (channel.Index >= 0)
        {
            Calls += sign * (channel.Leases - channel.LongStreams);
            Streams += sign * channel.LongStreams;
            if (channel.Server is { } server)
            {
                server.Leases += sign * channel.Leases;
            }
        }
    }

    private int CountOf(ChannelStanding standing) => ByStanding[(int)standing].Count;

    private void Place(PooledChannel channel)
    {
        channel.Place = channel.Standing;
        channel.Index = CountOf(channel.Place);
        ByStanding[(int)channel.Place].Add(channel);
        channel.Server?.CountGood(channel.IsGood ? 1 : 0);
    }

    // The last one of its standing takes its place.
    private void Displace(PooledChannel channel)
    {
        channel.Server?.CountGood(channel.IsGood ? -1 : 0);
        var channels = ByStanding[(int)channel.Place];
        channels[^1].Index = channel.Index;
        channels[channel.Index] = channels[^1];
        channels.RemoveAt(channels.Count - 1);
        channel.Index = -1;
    }
}

/// <summary>Where a channel stands in the choice. Those that are good come first, whatever their load.</summary>
internal enum ChannelStanding
{
    Calls, // good: it has room, carries no streams that last, and nothing speaks against it, or it is new and has no call yet
    Spare, // good, but set aside: the load does not need it, and it closes if that stays so
    Streams, // good, and it carries streams that last
    Standby, // good, but it goes to endpoints of a priority that gets no calls
    Doubtful, // it has room, but is silent, has failed of late, or has yet to show that a server is there
    DoubtfulStandby, // the same, to endpoints of a priority that gets no calls
    Full, // it has no room, or takes no calls
}

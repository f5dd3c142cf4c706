using System.Collections;
using System.Diagnostics;

namespace PoolingInvoker;

/// <summary>
/// The channels that count against the size of the pool, in the order of their <see cref="ChannelStanding"/>. A pick looks at two of them,
/// however many there are, and where these go to one endpoint at a few more. Guarded by the lock of the pool.
/// </summary>
internal sealed class ActiveChannels(Random random, ChannelTarget target) : IReadOnlyList<PooledChannel>
{
    // Where channels to another endpoint are as many, or half as many, one is found nearly always.
    private const int OtherEndpointTries = 8;

    private readonly List<PooledChannel> _channels = [];
    private readonly int[] _ends = new int[(int)ChannelStanding.Full]; // where each standing ends; the rest is full

    public int Count => _channels.Count;
    public bool HasRoom => _ends[(int)ChannelStanding.Doubtful] > 0;
    public int Good => _ends[(int)ChannelStanding.Streams]; // how many are good. They come first
    public int Calls { get; private set; } // the leases of calls and of streams that may be short
    public int Streams { get; private set; } // the leases of streams that last
    public int Spare => CountOf(ChannelStanding.Spare); // how many channels have been set aside
    public int OfStreams => CountOf(ChannelStanding.Streams); // how many channels carry streams that last, and have room
    public int OfCalls => Count - Spare - OfStreams; // how many channels calls are spread over

    // Whether another channel would be of use.
    public bool AreCrowded => Calls > target.LoadOf(OfCalls) || Streams > target.LoadOf(OfStreams);

    public PooledChannel this[int index] => _channels[index];

    public IEnumerator<PooledChannel> GetEnumerator() => _channels.GetEnumerator();
    IEnumerator IEnumerable.GetEnumerator() => GetEnumerator();

    public void Add(PooledChannel channel)
    {
        channel.State = PooledChannelState.Active;
        channel.Index = _channels.Count;
        _channels.Add(channel);
        Tally(channel, 1);
        Update(channel);
    }

    public void Remove(PooledChannel channel)
    {
        Move(channel, ChannelStanding.Full);
        Swap(channel.Index, _channels.Count - 1);
        _channels.RemoveAt(_channels.Count - 1);
        Tally(channel, -1);
        channel.Index = -1;
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
        if (channel.Index >= 0)
        {
            Move(channel, channel.Standing);
        }
    }

    /// <summary>
    /// The better of two distinct channels, drawn at random from the good ones, or if there are none from the doubtful ones. Calls keep
    /// away from channels with streams that last, and streams keep to those. <paramref name="avoid"/> is the last resort.
    /// </summary>
    public PooledChannel? Pick(bool isStream, PooledChannel? avoid)
    {
        var picked = isStream ? PickForStream(avoid) : PickForCall(avoid);
        return picked ?? Draw(ChannelStanding.Doubtful, avoid) ?? (avoid is { Index: >= 0, HasRoom: true } ? avoid : null);
    }

    private PooledChannel? PickForCall(PooledChannel? avoid) =>
        (Calls >= target.LoadOf(OfCalls) ? Draw(ChannelStanding.Spare, avoid) : null)
        ?? Draw(ChannelStanding.Calls, avoid)
        ?? Draw(ChannelStanding.Spare, avoid)
        ?? Draw(ChannelStanding.Streams, avoid);

    private PooledChannel? PickForStream(PooledChannel? avoid) =>
        Draw(ChannelStanding.Streams, avoid) is { } among && among.Streams < target.LoadOfEach(OfStreams) ? among : PickForCall(avoid);

    private PooledChannel? Draw(ChannelStanding standing, PooledChannel? avoid)
    {
        var (start, end) = (Start(standing), _ends[(int)standing]);
        if (end - start < 2)
        {
            return end > start && _channels[start] != avoid ? _channels[start] : null;
        }

        var first = random.Next(start, end);
        var second = random.Next(start, end - 1);
        second += second >= first ? 1 : 0;
        var a = _channels[first];
        var b = _channels[second];
        if (a == avoid || b == avoid)
        {
            return a == avoid ? b : a;
        }

        // Two that go to one endpoint say nothing of the others: were it to be silent, it would get all callers in time.
        var better = Better(a, b);
        for (var tries = 0; tries < OtherEndpointTries && a.Server is { HasOthers: true } server && b.Server == server; tries++)
        {
            b = _channels[random.Next(start, end)];
            better = b != avoid ? Better(better, b) : better;
        }

        return better;
    }

    private PooledChannel Better(PooledChannel a, PooledChannel b) => Weight(a, b) <= Weight(b, a) ? a : b;

    // Channels to different endpoints compare the load of those. A channel that fails at once has few calls and would attract all, so that
    // a failure weighs as much as its capacity.
    private long Weight(PooledChannel channel, PooledChannel other) =>
        (channel.Server is { } server && server != other.Server ? server.Leases : channel.Leases)
        + (channel.LongStreams * target.StreamWeight)
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

    private int Start(ChannelStanding standing) => standing == 0 ? 0 : _ends[(int)standing - 1];
    private int CountOf(ChannelStanding standing) => _ends[(int)standing] - Start(standing);

    // From standing to standing: at each boundary it changes places with the one that stands there.
    private void Move(PooledChannel channel, ChannelStanding standing)
    {
        var current = 0;
        while (current < _ends.Length && channel.Index >= _ends[current])
        {
            current++;
        }

        for (; current < (int)standing; current++)
        {
            Swap(channel.Index, --_ends[current]);
        }

        for (; current > (int)standing; current--)
        {
            Swap(channel.Index, _ends[current - 1]++);
        }
    }

    private void Swap(int left, int right)
    {
        Debug.Assert(left >= 0 && right >= 0, "A channel that is not in the list was moved.");
        (_channels[left], _channels[right]) = (_channels[right], _channels[left]);
        _channels[left].Index = left;
        _channels[right].Index = right;
    }
}

/// <summary>Where a channel stands in the choice. Those that are good come first, whatever their load.</summary>
internal enum ChannelStanding
{
    Calls, // good: it has room, carries no streams that last, and nothing speaks against it, or it is new and has no call yet
    Spare, // good, but set aside: the load does not need it, and it closes if that stays so
    Streams, // good, and it carries streams that last
    Doubtful, // it has room, but is silent, has failed of late, or has yet to show that a server is there
    Full, // it has no room, or takes no calls
}

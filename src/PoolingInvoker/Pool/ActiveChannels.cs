using System.Diagnostics;

namespace PoolingInvoker;

/// <summary>
/// The channels that count against the size of the pool, those with room in front. A pick looks at two of them, however many
/// there are. Guarded by the lock of the pool.
/// </summary>
internal sealed class ActiveChannels(Random random)
{
    private readonly List<PooledChannel> _channels = [];
    private int _withRoom;

    public int Count => _channels.Count;

    public bool HasRoom => _withRoom > 0;

    public PooledChannel this[int index] => _channels[index];

    public void Add(PooledChannel channel)
    {
        channel.Index = _channels.Count;
        _channels.Add(channel);
        Update(channel);
    }

    public void Remove(PooledChannel channel)
    {
        if (channel.Index < _withRoom)
        {
            Swap(channel.Index, --_withRoom);
        }

        Swap(channel.Index, _channels.Count - 1);
        _channels.RemoveAt(_channels.Count - 1);
        channel.Index = -1;
    }

    /// <summary>Has to be called after each change of the leases or the state of a channel. One that has left is left alone.</summary>
    public void Update(PooledChannel channel)
    {
        if (channel.Index < 0)
        {
            return;
        }

        var standsInFront = channel.Index < _withRoom;
        if (channel.HasRoom && !standsInFront)
        {
            Swap(channel.Index, _withRoom++);
        }
        else if (!channel.HasRoom && standsInFront)
        {
            Swap(channel.Index, --_withRoom);
        }
    }

    /// <summary>
    /// The better of two distinct channels with room, drawn at random. <paramref name="avoid"/> is taken only when it is the only one.
    /// </summary>
    public PooledChannel? Pick(PooledChannel? avoid)
    {
        if (_withRoom < 2)
        {
            return _withRoom == 0 ? null : _channels[0];
        }

        var first = random.Next(_withRoom);
        var second = random.Next(_withRoom - 1);
        second += second >= first ? 1 : 0;
        var a = _channels[first];
        var b = _channels[second];
        return a == avoid ? b
            : b == avoid ? a
            : Weight(a) <= Weight(b) ? a
            : b;
    }

    // A channel that fails at once has few calls, and would attract all: a failure weighs as much as all the calls it could carry.
    private static long Weight(PooledChannel channel) => channel.Leases + (channel.Failed ? (long)channel.Capacity : 0);

    private void Swap(int left, int right)
    {
        Debug.Assert(left >= 0 && right >= 0, "A channel that is not in the list was moved.");
        (_channels[left], _channels[right]) = (_channels[right], _channels[left]);
        _channels[left].Index = left;
        _channels[right].Index = right;
    }
}

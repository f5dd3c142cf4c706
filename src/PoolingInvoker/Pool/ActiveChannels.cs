using System.Diagnostics;

namespace PoolingInvoker;

/// <summary>
/// The channels that count against the size of the pool, in the order of their <see cref="ChannelStanding"/>. A pick looks at two of them,
/// however many there are. Guarded by the lock of the pool.
/// </summary>
internal sealed class ActiveChannels(Random random)
{
    private readonly List<PooledChannel> _channels = [];
    private readonly int[] _ends = new int[2]; // where the good ones end, and the doubtful ones; the rest is full

    public int Count => _channels.Count;

    public bool HasRoom => _ends[1] > 0;

    /// <summary>How many are good.</summary>
    public int Good => _ends[0];

    public PooledChannel this[int index] => _channels[index];

    public void Add(PooledChannel channel)
    {
        channel.Index = _channels.Count;
        _channels.Add(channel);
        Update(channel);
    }

    public void Remove(PooledChannel channel)
    {
        Move(channel, (int)ChannelStanding.Full);
        Swap(channel.Index, _channels.Count - 1);
        _channels.RemoveAt(_channels.Count - 1);
        channel.Index = -1;
    }

    /// <summary>Has to be called after each change of what the standing of a channel depends on. One that has left is left alone.</summary>
    public void Update(PooledChannel channel)
    {
        if (channel.Index >= 0)
        {
            Move(channel, (int)channel.Standing);
        }
    }

    /// <summary>
    /// The better of two distinct channels, drawn at random from the good ones, or if there are none from the doubtful ones.
    /// <paramref name="avoid"/> is taken only when it is the only one.
    /// </summary>
    public PooledChannel? Pick(PooledChannel? avoid)
    {
        var onlyAvoided = _ends[0] == 1 && _channels[0] == avoid;
        return _ends[0] > 0 && !onlyAvoided ? Pick(avoid, 0, _ends[0])
            : _ends[1] > _ends[0] ? Pick(avoid, _ends[0], _ends[1])
            : onlyAvoided ? avoid
            : null;
    }

    /// <summary>Of the good channels that which has answered the most calls in a row; null if there is none but <paramref name="avoid"/>.</summary>
    public PooledChannel? PickSafest(PooledChannel? avoid)
    {
        PooledChannel? safest = null;
        for (var i = 0; i < _ends[0]; i++)
        {
            if (_channels[i] != avoid && (safest is null || _channels[i].Streak > safest.Streak))
            {
                safest = _channels[i];
            }
        }

        return safest;
    }

    private PooledChannel Pick(PooledChannel? avoid, int start, int end)
    {
        if (end - start == 1)
        {
            return _channels[start];
        }

        var first = random.Next(start, end);
        var second = random.Next(start, end - 1);
        second += second >= first ? 1 : 0;
        var a = _channels[first];
        var b = _channels[second];
        return a == avoid ? b
            : b == avoid ? a
            : Weight(a) <= Weight(b) ? a
            : b;
    }

    // A channel that fails at once has few calls, and would attract all: a failure weighs as much as all the calls it could carry.
    private static long Weight(PooledChannel channel) =>
        channel.Leases + (channel.Failed || channel.Pulse.IsSuspect || channel.FailingSince is not null ? (long)channel.Capacity : 0);

    // From section to section: at each boundary it changes places with the one that stands there.
    private void Move(PooledChannel channel, int section)
    {
        var current = channel.Index < _ends[0] ? 0 : channel.Index < _ends[1] ? 1 : 2;
        for (; current < section; current++)
        {
            Swap(channel.Index, --_ends[current]);
        }

        for (; current > section; current--)
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

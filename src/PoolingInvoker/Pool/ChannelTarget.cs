namespace PoolingInvoker;

/// <summary>
/// How many channels are for a load, when each should carry so many calls. The first few reach the servers behind a balancer. Each further one
/// costs more than it brings, since calls share fewer reads and writes: it is for four times as many calls.
/// </summary>
/// <param name="calls">What each of the first should carry.</param>
internal readonly struct ChannelTarget(int calls)
{
    private const int First = 8;
    private const int Factor = 4;

    /// <summary>What a stream that lasts weighs, which may be bulk: as much as a channel should carry.</summary>
    public long StreamWeight => calls;

    /// <summary>What so many channels should carry together.</summary>
    public long LoadOf(int channels) => (long)calls * (channels + ((Factor - 1) * Math.Max(0, channels - First)));

    /// <summary>Up to how many each of so many channels should carry before another one is of use.</summary>
    public long LoadOfEach(int channels) => channels < First ? calls : (long)Factor * calls;

    /// <summary>How many channels are for a load, where the servers take so many calls on each.</summary>
    public int ChannelsFor(double load, long capacity)
    {
        var each = Math.Min(calls, capacity);
        var further = Math.Min((long)Factor * calls, capacity);
        var rest = load - (First * each);
        return rest <= 0 ? (int)Math.Ceiling(load / each) : First + (int)Math.Ceiling(rest / further);
    }
}

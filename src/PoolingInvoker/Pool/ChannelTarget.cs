namespace PoolingInvoker;

/// <summary>
/// How many channels are for a load, when each should carry so many calls. The first few reach the servers behind a balancer. Each further
/// one costs more than it brings, since calls share fewer reads and writes: it is for four times as many calls.
/// </summary>
internal readonly struct ChannelTarget(int calls)
{
    private const int First = 8;
    private const int Factor = 4;

    public long StreamWeight => calls; // a stream that lasts may be bulk: it weighs as much as a channel should carry
    public long LoadOf(int channels) => (long)calls * (channels + ((Factor - 1) * Math.Max(0, channels - First)));
    public long LoadOfEach(int channels) => channels < First ? calls : (long)Factor * calls; // before another channel is of use

    public int ChannelsFor(double load, long capacity)
    {
        var each = Math.Min(calls, capacity);
        var further = Math.Min((long)Factor * calls, capacity);
        var rest = load - (First * each);
        return rest <= 0 ? (int)Math.Ceiling(load / each) : First + (int)Math.Ceiling(rest / further);
    }
}

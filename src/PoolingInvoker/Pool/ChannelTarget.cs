namespace PoolingInvoker;

/// <summary>
/// How many channels are for a load, when each should carry so many calls. The first few reach the servers behind a balancer. More of them cost
/// more than they bring, since calls share fewer reads and writes: another one is made where each would have to carry eight times as many.
/// </summary>
internal readonly struct ChannelTarget(int calls)
{
    private const int First = 8;
    private const int Factor = 8;

    public long StreamWeight => calls; // a stream that lasts may be bulk: it weighs as much as a channel should carry
    public long LoadOf(int channels) => channels * LoadOfEach(channels);
    public long LoadOfEach(int channels) => channels < First ? calls : (long)Factor * calls; // before another channel is of use

    public int ChannelsFor(double load, long capacity) =>
        (int)Math.Max(Math.Min(First, Math.Ceiling(load / Math.Min(calls, capacity))), Math.Ceiling(load / Math.Min((long)Factor * calls, capacity)));
}

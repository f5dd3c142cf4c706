using System.Diagnostics;

namespace PoolingInvoker;

/// <summary>A caller that waits in the queue. It may be completed under the lock of the pool: its continuations run elsewhere.</summary>
internal sealed class LeaseWaiter(in LeaseRequest request, long since, StackTrace? stack) : TaskCompletionSource<ChannelLease>(TaskCreationOptions.RunContinuationsAsynchronously)
{
    private LinkedListNode<LeaseWaiter>? _node;

    public LeaseRequest Request { get; } = request with { Avoid = null };
    public long Since => since; // when the wait began
    public StackTrace? Stack => stack; // of who waits, where leases are watched
    public void Enter(LinkedList<LeaseWaiter> queue) => _node = queue.AddLast(this);

    /// <summary>Leaves the queue, and says whether it was still in: if not it has been granted something.</summary>
    public bool Leave()
    {
        var queue = _node!.List;
        queue?.Remove(_node);
        return queue is not null;
    }
}

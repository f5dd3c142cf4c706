namespace PoolingInvoker;

/// <summary>A caller that waits in the queue. It may be completed under the lock of the pool: its continuations run elsewhere.</summary>
internal sealed class LeaseWaiter(bool isStream) : TaskCompletionSource<ChannelLease>(TaskCreationOptions.RunContinuationsAsynchronously)
{
    private LinkedListNode<LeaseWaiter>? _node;

    public bool IsStream => isStream;
    public void Enter(LinkedList<LeaseWaiter> queue) => _node = queue.AddLast(this);

    /// <summary>Leaves the queue, and says whether it was still in: if not it has been granted something.</summary>
    public bool Leave()
    {
        var queue = _node!.List;
        queue?.Remove(_node);
        return queue is not null;
    }
}

/// <summary>The queue is full.</summary>
internal sealed class TooManyWaitingException(string message) : InvalidOperationException(message);

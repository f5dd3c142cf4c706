using System.Diagnostics.CodeAnalysis;

namespace PoolingInvoker;

/// <summary>
/// Who waits for room, first come, first served. Guarded by the lock of the pool; completing a waiter under that lock is safe,
/// because its continuations run elsewhere.
/// </summary>
[SuppressMessage("Naming", "CA1711:Identifiers should not have incorrect suffix", Justification = "It is a queue.")]
internal sealed class LeaseWaiterQueue
{
    private readonly LinkedList<LeaseWaiter> _waiters = new();

    public int Count => _waiters.Count;

    public LeaseWaiter First => _waiters.First!.Value;

    public LeaseWaiter Enqueue(bool isStream)
    {
        var waiter = new LeaseWaiter(isStream);
        waiter.Node = _waiters.AddLast(waiter);
        return waiter;
    }

    public LeaseWaiter Dequeue()
    {
        var waiter = _waiters.First!.Value;
        Remove(waiter);
        return waiter;
    }

    /// <summary>Takes a waiter out, and says whether it was still in: if not it has been granted something.</summary>
    public bool Remove(LeaseWaiter waiter)
    {
        if (waiter.Node is null)
        {
            return false;
        }

        _waiters.Remove(waiter.Node);
        waiter.Node = null;
        return true;
    }
}

/// <summary>One caller in the queue. It is granted a lease.</summary>
internal sealed class LeaseWaiter(bool isStream) : TaskCompletionSource<ChannelLease>(TaskCreationOptions.RunContinuationsAsynchronously)
{
    public bool IsStream => isStream;

    public LinkedListNode<LeaseWaiter>? Node { get; set; }
}

/// <summary>The queue is full.</summary>
internal sealed class TooManyWaitingException(string message) : InvalidOperationException(message);

namespace PoolingInvoker;

/// <summary>The signs of life of the connections of one channel.</summary>
internal sealed class LifeSigns
{
    private long _count;
    private long _callFrames;
    private TaskCompletionSource? _next;

    public long Count => Interlocked.Read(ref _count); // of reads, and of writes that had to wait for the other side
    public long CallFrames => Interlocked.Read(ref _callFrames); // how many frames have come that belong to calls

    /// <summary>Ends with the next sign.</summary>
    public Task Next
    {
        get
        {
            var next = new TaskCompletionSource(TaskCreationOptions.RunContinuationsAsynchronously);
            return (Interlocked.CompareExchange(ref _next, next, null) ?? next).Task;
        }
    }

    public void Saw(int callFrames = 0)
    {
        Interlocked.Increment(ref _count);
        if (callFrames > 0)
        {
            Interlocked.Add(ref _callFrames, callFrames);
        }

        if (Volatile.Read(ref _next) is not null)
        {
            Interlocked.Exchange(ref _next, null)?.TrySetResult();
        }
    }
}

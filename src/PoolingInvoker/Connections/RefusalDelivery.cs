using System.Runtime.CompilerServices;

namespace PoolingInvoker;

/// <summary>
/// Hands the responses that refuse a call (Trailers-Only) to their channel. Grpc.Net.Client tells the headers of such a response before it ends
/// the call. Awaited by the outermost handler of a channel, this runs the rest of that handler, and with it Grpc.Net.Client up to the end of
/// the call, in one work item: what waits in <see cref="OverAsync"/> after it has seen the headers sees the end, too.
/// </summary>
internal sealed class RefusalDelivery : INotifyCompletion
{
    private readonly object _lock = new();
    private volatile Task _delivered = Task.CompletedTask; // completes when the calls are over whose refusals are being handed out; written under the lock

    /// <summary>
    /// Gives a call whose headers are told the time to end, if they are those of a refusal: until that is delivered, and a moment more where the
    /// handlers below the channel are the user's, or had refused before Grpc.Net.Client came to wait for them.
    /// </summary>
    public static async Task OverAsync(RefusalDelivery? refusals, Task call)
    {
        await (refusals?._delivered ?? Task.CompletedTask).ConfigureAwait(ConfigureAwaitOptions.ForceYielding);
        for (var yields = 0; yields < 64 && !call.IsCompleted; yields++)
        {
            await Task.CompletedTask.ConfigureAwait(ConfigureAwaitOptions.ForceYielding);
        }
    }

#pragma warning disable CA1822 // The shape is that of an awaitable.
    public bool IsCompleted => false;
    public RefusalDelivery GetAwaiter() => this;

    public void GetResult()
    {
    }
#pragma warning restore CA1822

    public void OnCompleted(Action continuation) => ThreadPool.UnsafeQueueUserWorkItem(Deliver, continuation, preferLocal: true);

    private void Deliver(Action continuation)
    {
        var over = new TaskCompletionSource(TaskCreationOptions.RunContinuationsAsynchronously);
        lock (_lock)
        {
            _delivered = _delivered.IsCompleted ? over.Task : Task.WhenAll(_delivered, over.Task);
        }

        continuation();
        over.SetResult();
    }
}

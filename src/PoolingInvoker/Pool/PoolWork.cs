namespace PoolingInvoker;

/// <summary>Work of the pool's own: done on the thread pool, without the context of a caller. What it throws ends here.</summary>
internal sealed class PoolWork(ChannelPoolOptions options, PoolingInvokerLog log)
{
    private static readonly Lazy<ExecutionContext> EmptyContext = new(static () =>
    {
        ExecutionContext? captured = null;
        var thread = new Thread(() => captured = ExecutionContext.Capture());
        thread.UnsafeStart();
        thread.Join();
        return captured!;
    });

    public void Begin(Func<Task> work) => Queue(work, log.MaintenanceFailed);

    /// <summary>Does work for a caller that waits for its outcome.</summary>
    public Task<T> DoAsync<T>(Func<Task<T>> work)
    {
        var done = new TaskCompletionSource<T>(TaskCreationOptions.RunContinuationsAsynchronously);
        Queue(async () => done.SetResult(await work().ConfigureAwait(false)), done.SetException);
        return done.Task.WaitAsync(CancellationToken.None);
    }

    /// <summary>Runs on the thread of a caller that cannot wait, but not in its context.</summary>
    public static void InEmptyContext(Action run) => ExecutionContext.Run(EmptyContext.Value, static run => ((Action)run!)(), run);

    private void Queue(Func<Task> work, Action<Exception> failed) => options.Queue(() => RunAsync(work, failed).Observe());

    private static async Task RunAsync(Func<Task> work, Action<Exception> failed)
    {
        try
        {
            await work().ConfigureAwait(false);
        }
        catch (Exception exception) // It reaches the caller that waits, or the log.
        {
            failed(exception);
        }
    }
}

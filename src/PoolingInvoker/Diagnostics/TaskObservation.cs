namespace PoolingInvoker;

internal static class TaskObservation
{
    /// <summary>Keeps a failure from being reported as unobserved: it is seen on another way, or nobody is left to see it.</summary>
    public static void Observe(this Task task) => _ = task.IsCompletedSuccessfully ? task : task.ContinueWith(
        static faulted => _ = faulted.Exception,
        CancellationToken.None,
        TaskContinuationOptions.OnlyOnFaulted | TaskContinuationOptions.ExecuteSynchronously,
        TaskScheduler.Default);

    /// <summary>What a task has failed with, if it has. One that has faulted throws nothing.</summary>
    public static Exception? Failure(this Task task)
    {
        try
        {
            (task.IsCanceled ? task : Task.CompletedTask).GetAwaiter().GetResult();
            return task.Exception?.InnerException;
        }
        catch (OperationCanceledException exception)
        {
            return exception;
        }
    }
}

namespace PoolingInvoker;

internal static class TaskObservation
{
    /// <summary>
    /// Sees to it that a failure of the task is not reported as unobserved, where the same failure reaches the application on another
    /// way, or nobody is left to see it.
    /// </summary>
    public static void Observe(this Task task) => _ = task.IsCompletedSuccessfully ? task : task.ContinueWith(
        static faulted => _ = faulted.Exception,
        CancellationToken.None,
        TaskContinuationOptions.OnlyOnFaulted | TaskContinuationOptions.ExecuteSynchronously,
        TaskScheduler.Default);

    /// <summary>What a task has failed with, if it has. One that has faulted throws nothing.</summary>
    public static Exception? Failure(this Task task)
    {
        if (!task.IsCanceled)
        {
            return task.Exception?.InnerException;
        }

        try
        {
            task.GetAwaiter().GetResult();
            return null;
        }
        catch (OperationCanceledException exception)
        {
            return exception;
        }
    }
}

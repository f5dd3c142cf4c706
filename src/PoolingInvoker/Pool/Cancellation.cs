namespace PoolingInvoker;

/// <summary>Cancels what code of the user's may have a token of. What its callbacks throw ends here: on the thread of a timer it would end the process.</summary>
internal static class Cancellation
{
    public static void CancelQuietly(this CancellationTokenSource source)
    {
        try
        {
            source.Cancel();
        }
        catch (Exception exception) when (exception is AggregateException or ObjectDisposedException) // Or it is over.
        {
        }
    }

    /// <summary>Cancels the source after a time, unless what this gives is disposed before.</summary>
    public static ITimer CancelAfter(this CancellationTokenSource source, TimeSpan delay, TimeProvider time) =>
        time.CreateTimer(static source => ((CancellationTokenSource)source!).CancelQuietly(), source, delay, Timeout.InfiniteTimeSpan);

    /// <summary>Does something for so long, or until the pool is closing.</summary>
    public static async Task WithinAsync(this PoolState state, Func<CancellationToken, Task> what, TimeSpan patience, string complaint)
    {
        var closing = state.Closing.Token;
        using var ended = CancellationTokenSource.CreateLinkedTokenSource(closing);
        var doing = what(ended.Token);
        doing.Observe(); // it may go on for longer than it is waited for
        await doing.WaitAsync(patience, state.Time, closing).ConfigureAwait(ConfigureAwaitOptions.SuppressThrowing);
        if (!doing.IsCompleted)
        {
            // The source is disposed before a dispose of the pool has come to it.
            await ended.CancelAsync().ConfigureAwait(ConfigureAwaitOptions.SuppressThrowing);
            closing.ThrowIfCancellationRequested();
            throw new TimeoutException($"{complaint} within {patience.TotalSeconds} s.");
        }

        await doing.ConfigureAwait(false);
    }

    /// <summary>What a task fails with, if it does.</summary>
    public static async Task<Exception?> FailureAsync(this Task task)
    {
        await task.ConfigureAwait(ConfigureAwaitOptions.SuppressThrowing);
        return task.Failure();
    }
}

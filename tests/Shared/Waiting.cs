using System.Runtime.CompilerServices;

namespace PoolingInvoker.Testing;

/// <summary>What a test waits for is bounded: a test that would hang fails.</summary>
internal static class Waiting
{
    public static readonly TimeSpan Long = TimeSpan.FromSeconds(30);

    public static Task Soon(this Task task) => task.WaitAsync(Long);

    public static Task<T> Soon<T>(this Task<T> task) => task.WaitAsync(Long);

    public static Task<T> Soon<T>(this ValueTask<T> task) => task.AsTask().WaitAsync(Long);

    /// <summary>Waits for a fact that shows on another thread.</summary>
    public static Task Until(Func<bool> condition, [CallerArgumentExpression(nameof(condition))] string what = "") => Until(Long, condition, what);

    public static async Task Until(TimeSpan within, Func<bool> condition, [CallerArgumentExpression(nameof(condition))] string what = "")
    {
        var since = TimeProvider.System.GetTimestamp();
        for (var looks = 0; !condition(); looks++)
        {
            if (TimeProvider.System.GetElapsedTime(since) > within)
            {
                Assert.Fail($"It did not become true that {what}.");
            }

            // Most facts are there soon. The processors are for those that are not.
            await (looks < 100 ? Task.CompletedTask : Task.Delay(1));
            await Task.Yield();
        }
    }
}

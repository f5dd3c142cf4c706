using System.Collections.Concurrent;
using System.Runtime.CompilerServices;

namespace PoolingInvoker.Testing;

/// <summary>Exceptions of tasks that nobody has looked at. The reports are of the whole process: nothing else may run meanwhile.</summary>
internal static class Unobserved
{
    /// <param name="act">What leaves nothing.</param>
    /// <param name="isOfOthers">What those who have run before may leave late.</param>
    public static async Task LeavesNothingUnobservedAsync(Func<Task> act, Func<Exception, bool>? isOfOthers = null)
    {
        var unobserved = new ConcurrentQueue<Exception>();
        void OnUnobserved(object? sender, UnobservedTaskExceptionEventArgs arguments)
        {
            foreach (var exception in arguments.Exception.InnerExceptions)
            {
                unobserved.Enqueue(exception);
            }
        }

        TaskScheduler.UnobservedTaskException += OnUnobserved;
        try
        {
            await CollectAllAsync(unobserved);
            unobserved.Clear(); // what others have left
            await act();
            await CollectAllAsync(unobserved);
        }
        finally
        {
            TaskScheduler.UnobservedTaskException -= OnUnobserved;
        }

        Assert.All(unobserved, exception => Assert.True(IsLeftHere(exception) || isOfOthers?.Invoke(exception) == true, exception.ToString()));
    }

    public static void Collect()
    {
        GC.Collect();
        GC.WaitForPendingFinalizers();
    }

    // Failures that are left here, one after the other, are reported: by then the others have been too.
    private static async Task CollectAllAsync(ConcurrentQueue<Exception> unobserved)
    {
        for (var i = 1; i <= 5; i++)
        {
            Leave();
            await Waiting.Until(() =>
            {
                Collect();
                return unobserved.Count(IsLeftHere) >= i;
            });
        }

        [MethodImpl(MethodImplOptions.NoInlining)]
        static void Leave() => _ = Task.FromException(new InvalidTimeZoneException());
    }

    private static bool IsLeftHere(Exception exception) => exception is InvalidTimeZoneException;
}

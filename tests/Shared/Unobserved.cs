using System.Collections.Concurrent;
using System.Runtime.CompilerServices;

namespace PoolingInvoker.Testing;

/// <summary>Exceptions of tasks that nobody has looked at. The reports are of the whole process: nothing else may run meanwhile.</summary>
internal static class Unobserved
{
    public static async Task LeavesNothingUnobservedAsync(Func<Task> act)
    {
        var unobserved = new ConcurrentQueue<Exception>();
        void OnUnobserved(object? sender, UnobservedTaskExceptionEventArgs arguments)
        {
            foreach (var exception in arguments.Exception.InnerExceptions)
            {
                unobserved.Enqueue(exception);
            }
        }

        Collect(); // what others have left
        TaskScheduler.UnobservedTaskException += OnUnobserved;
        try
        {
            await act();

            // Failures that are left here, one after the other, are reported: by then the others have been too.
            for (var i = 1; i <= 5; i++)
            {
                Leave();
                await Waiting.Until(() =>
                {
                    Collect();
                    return unobserved.Count(IsLeftHere) >= i;
                });
            }
        }
        finally
        {
            TaskScheduler.UnobservedTaskException -= OnUnobserved;
        }

        Assert.All(unobserved, static exception => Assert.True(IsLeftHere(exception), exception.ToString()));

        [MethodImpl(MethodImplOptions.NoInlining)]
        static void Leave() => _ = Task.FromException(new InvalidTimeZoneException());

        static bool IsLeftHere(Exception exception) => exception is InvalidTimeZoneException;
    }

    public static void Collect()
    {
        GC.Collect();
        GC.WaitForPendingFinalizers();
    }
}

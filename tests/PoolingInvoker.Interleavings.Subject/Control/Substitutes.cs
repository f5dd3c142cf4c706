// How the sources of the pool come to have steps.
//
// They are compiled with what is in this file, and the compiler takes what it finds here for what the framework has: a `lock` calls the
// Monitor below, and the names Interlocked and TaskCompletionSource mean those of the namespace of the library. On the thread of an
// actor each of them is a step of the scheduler; on any other thread it is the real thing.
#pragma warning disable CA1711, CA1721, CA1822, SA1402 // The names and shapes are the framework's.
using System.Runtime.CompilerServices;
using PoolingInvoker.Interleavings;
using Framework = System.Threading;

namespace System.Threading
{
    internal static class Monitor
    {
        private static readonly Type Real = typeof(object).Assembly.GetType("System.Threading.Monitor", throwOnError: true)!;
        private static readonly EnterMethod RealEnter = Method<EnterMethod>("Enter", typeof(object), typeof(bool).MakeByRefType());
        private static readonly Action<object> RealExit = Method<Action<object>>("Exit", typeof(object));
        private static readonly Func<object, bool> RealIsEntered = Method<Func<object, bool>>("IsEntered", typeof(object));

        private delegate void EnterMethod(object gate, ref bool taken);

        public static void Enter(object gate, ref bool taken)
        {
            if (Scheduler.IsInControl)
            {
                Scheduler.Lock(gate);
                taken = true;
            }
            else
            {
                RealEnter(gate, ref taken);
            }
        }

        public static void Exit(object gate)
        {
            if (Scheduler.IsInControl)
            {
                Scheduler.Unlock(gate);
            }
            else
            {
                RealExit(gate);
            }
        }

        public static bool IsEntered(object gate) => Scheduler.IsInControl ? Scheduler.Holds(gate) : RealIsEntered(gate);

        private static T Method<T>(string name, params Type[] parameters)
            where T : Delegate => Real.GetMethod(name, parameters)!.CreateDelegate<T>();
    }
}

namespace PoolingInvoker
{
    internal static class Interlocked
    {
        public static T Exchange<T>(ref T location, T value)
            where T : class?
        {
            Scheduler.Step("goes through the gate");
            return Framework.Interlocked.Exchange(ref location, value);
        }

        public static int Increment(ref int location) => Framework.Interlocked.Increment(ref location);

        public static long Increment(ref long location) => Framework.Interlocked.Increment(ref location);

        public static long Read(ref long location) => Framework.Interlocked.Read(ref location);

        // Of what watches connections, which no actor has.
        public static long Add(ref long location, long value) => Framework.Interlocked.Add(ref location, value);
    }

    internal static class Volatile
    {
        public static T Read<T>(ref T location)
            where T : class? => Framework.Volatile.Read(ref location);

        public static bool Read(ref bool location) => Framework.Volatile.Read(ref location);

        public static void Write(ref bool location, bool value) => Framework.Volatile.Write(ref location, value);

        public static void Write<T>(ref T location, T value)
            where T : class?
        {
            Scheduler.Step("writes what others read");
            Framework.Volatile.Write(ref location, value);
        }
    }

    internal static class ThreadPool
    {
        public static void UnsafeQueueUserWorkItem(WaitCallback work, object? state)
        {
            if (Scheduler.IsInControl)
            {
                Scheduler.Begin("thread pool", () => work(state));
            }
            else
            {
                Framework.ThreadPool.UnsafeQueueUserWorkItem(work, state);
            }
        }

        public static void UnsafeQueueUserWorkItem(Framework.IThreadPoolWorkItem work, bool preferLocal)
        {
            if (Scheduler.IsInControl)
            {
                Scheduler.Begin("thread pool", work.Execute);
            }
            else
            {
                Framework.ThreadPool.UnsafeQueueUserWorkItem(work, preferLocal);
            }
        }

        public static void SetMinThreads(int workers, int ports) => Framework.ThreadPool.SetMinThreads(workers, ports);
    }

    // Whoever cancels does at once what follows from it, so that it stays with the actor.
    internal sealed class CancellationTokenSource : Framework.CancellationTokenSource
    {
        public CancellationTokenSource()
        {
        }

        public CancellationTokenSource(TimeSpan delay, TimeProvider time)
            : base(delay, time)
        {
        }

        public static new CancellationTokenSource CreateLinkedTokenSource(CancellationToken token)
        {
            var linked = new CancellationTokenSource();
            token.Register(linked.Cancel);
            return linked;
        }

        public new Task CancelAsync()
        {
            try
            {
                Cancel();
                return Task.CompletedTask;
            }
            catch (AggregateException exception)
            {
                return Task.FromException(exception);
            }
        }
    }

    internal class TaskCompletionSource<T>(TaskCreationOptions options)
    {
        private readonly Framework.Tasks.TaskCompletionSource<T> _real = new(options);

        public Waitable<T> Task => new(_real.Task);

        public void SetResult(T result) => _real.SetResult(result);

        public bool TrySetResult(T result) => _real.TrySetResult(result);

        public void SetException(Exception exception) => _real.SetException(exception);

        public bool TrySetException(Exception exception) => _real.TrySetException(exception);
    }

    internal sealed class TaskCompletionSource(TaskCreationOptions options) : TaskCompletionSource<bool>(options)
    {
        public bool TrySetResult() => TrySetResult(true);
    }

    internal readonly struct Waitable<T>(Task<T> real)
    {
        public T Result => real.Result;

        public AggregateException? Exception => real.Exception;

        public Framework.Tasks.Task<T> WaitAsync(CancellationToken cancellationToken) => WaitAsync(Timeout.InfiniteTimeSpan, TimeProvider.System, cancellationToken);

        public Framework.Tasks.Task<T> WaitAsync(TimeSpan timeout, TimeProvider time, CancellationToken cancellationToken = default)
        {
            if (!Scheduler.IsInControl)
            {
                return real.WaitAsync(timeout, time, cancellationToken);
            }

            // An actor waits here, so that to its caller nothing is ever pending. If several things are so at once, reality may see
            // any of them first.
            var task = real;
            var since = time.GetTimestamp();
            bool TimeIsUp() => timeout != Timeout.InfiniteTimeSpan && time.GetElapsedTime(since) >= timeout;
            Scheduler.WaitUntil("waits", () => task.IsCompleted || cancellationToken.IsCancellationRequested || TimeIsUp());
            if (cancellationToken.IsCancellationRequested
                && (!(task.IsCompleted || TimeIsUp()) || Scheduler.Either("sees that it is cancelled")))
            {
                return Framework.Tasks.Task.FromCanceled<T>(cancellationToken);
            }

            return TimeIsUp() && (!task.IsCompleted || Scheduler.Either("sees that its time is up"))
                ? Framework.Tasks.Task.FromException<T>(new TimeoutException())
                : task;
        }

        public ConfiguredTaskAwaitable<T> ConfigureAwait(bool continueOnCapturedContext) => real.ConfigureAwait(continueOnCapturedContext);
    }
}

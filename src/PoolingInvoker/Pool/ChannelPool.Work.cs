using System.Diagnostics;

namespace PoolingInvoker;

// Work of the pool's own. It is done on the thread pool or by a timer, never on the thread or in the context of whoever caused it: a channel
// that all share is nobody's. Whatever it throws ends there.
public partial class ChannelPool
{
    private static ExecutionContext? _nobodys;

    private List<Action>? _after; // what is left to do when the lock is free

    // The one way to change the pool. At its end those that wait are served, channels are reserved if the section may have left them missing,
    // and the laws are checked. What the section leaves to do is done after the lock, in its order, by the same thread (law 5).
    private Section Enter(string? growsBecause = null, bool isReading = false) => new(this, growsBecause, isReading);

    private void AfterUnsynchronized(Action action)
    {
        Debug.Assert(Monitor.IsEntered(_lock), "What is left to do is told under the lock.");
        (_after ??= []).Add(action);
    }

    private List<Action>? LeaveUnsynchronized(string? growsBecause)
    {
        ServeWaitersUnsynchronized();
        if (growsBecause is not null)
        {
            GrowUnsynchronized(growsBecause);
        }

        if (_disposed && _creating + _replacing + _channels.Count == 0)
        {
            _closed.TrySetResult();
        }

        AssertLawsUnsynchronized();
        var after = _after;
        _after = null;
        return after;
    }

    private readonly ref struct Section
    {
        private readonly ChannelPool _pool;
        private readonly string? _growsBecause;
        private readonly bool _isReading;
        private readonly bool _isEntered;

        /// <param name="pool">The pool.</param>
        /// <param name="growsBecause">Why channels may be missing at the end; null if the section does not see to that.</param>
        /// <param name="isReading">Whether the thread reads from a connection: it does not do what is left, which may dispose that connection.</param>
        public Section(ChannelPool pool, string? growsBecause, bool isReading)
        {
            (_pool, _growsBecause, _isReading) = (pool, growsBecause, isReading);
            Monitor.Enter(pool._lock, ref _isEntered);
        }

        public void Dispose()
        {
            List<Action>? after;
            try
            {
                after = _pool.LeaveUnsynchronized(_growsBecause);
            }
            finally
            {
                Monitor.Exit(_pool._lock);
            }

            if (after is not null)
            {
                _pool.Do(after, later: _isReading);
            }
        }
    }

    private void Do(List<Action> actions, bool later)
    {
        if (later)
        {
            BeginWork(() =>
            {
                Do(actions, later: false);
                return Task.CompletedTask;
            });
            return;
        }

        foreach (var action in actions)
        {
            action();
        }
    }

    private void BeginWork(Func<Task> work) => _options.Queue(() => RunAsync(work).Observe());

    // For who waits for the outcome.
    private Task<T> DoAsync<T>(Func<Task<T>> work)
    {
        var done = new TaskCompletionSource<T>(TaskCreationOptions.RunContinuationsAsynchronously);
        _options.Queue(() => CompleteAsync().Observe());
        return done.Task.WaitAsync(CancellationToken.None);

        async Task CompleteAsync()
        {
            try
            {
                done.SetResult(await work().ConfigureAwait(false));
            }
#pragma warning disable CA1031 // Who waits is told.
            catch (Exception exception)
#pragma warning restore CA1031
            {
                done.SetException(exception);
            }
        }
    }

    private async Task RunAsync(Func<Task> work)
    {
        try
        {
            await work().ConfigureAwait(false);
        }
#pragma warning disable CA1031 // Nobody waits for it.
        catch (Exception exception)
#pragma warning restore CA1031
        {
            _log.MaintenanceFailed(exception);
        }
    }

    // For who cannot wait: on their thread, but not in their context.
    private static void InNobodysContext(Action run)
    {
        if (Volatile.Read(ref _nobodys) is null)
        {
            var thread = new Thread(static () => Volatile.Write(ref _nobodys, ExecutionContext.Capture()));
            thread.UnsafeStart();
            thread.Join();
        }

        ExecutionContext.Run(_nobodys!, static run => ((Action)run!)(), run);
    }

    /// <summary>
    /// A timer of the pool. It keeps neither a forgotten pool alive, nor the context of whoever made it, ends when the pool is no more, and
    /// whatever its callback throws does not end the process.
    /// </summary>
    private sealed class PoolTimer : IDisposable
    {
        private readonly WeakReference<ChannelPool> _pool;
        private readonly Action<ChannelPool> _run;
        private readonly bool _isPeriodic;
        private readonly ITimer _timer;

        /// <param name="pool">The pool.</param>
        /// <param name="run">What is done.</param>
        /// <param name="period">How often; null if it is done once, whenever the timer is started.</param>
        public PoolTimer(ChannelPool pool, Action<ChannelPool> run, TimeSpan? period = null)
        {
            (_pool, _run, _isPeriodic) = (new WeakReference<ChannelPool>(pool), run, period is not null);
            using (ExecutionContext.SuppressFlow())
            {
                _timer = pool._time.CreateTimer(static timer => ((PoolTimer)timer!).Fire(), this, period ?? Timeout.InfiniteTimeSpan, period ?? Timeout.InfiniteTimeSpan);
            }
        }

        public void Start(TimeSpan dueTime) => _timer.Change(dueTime, Timeout.InfiniteTimeSpan);

        public void Dispose() => _timer.Dispose();

        private void Fire()
        {
            if (!_pool.TryGetTarget(out var pool))
            {
                Dispose();
            }
            else if (!Monitor.IsEntered(pool._lock))
            {
                Run(pool);
            }
            else if (!_isPeriodic)
            {
                // A clock may run its timers on the thread that asks it for the time, which the pool does under its lock: it is not their turn.
                Start(LinePeriod);
            }
        }

        private void Run(ChannelPool pool)
        {
            try
            {
                _run(pool);
            }
#pragma warning disable CA1031 // An exception in a timer ends the process.
            catch (Exception exception)
#pragma warning restore CA1031
            {
                pool._log.MaintenanceFailed(exception);
                if (!_isPeriodic)
                {
                    Start(LongestPause); // what was to be looked at still is
                }
            }
        }
    }
}

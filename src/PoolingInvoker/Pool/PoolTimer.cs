namespace PoolingInvoker;

/// <summary>
/// A timer of the pool. It keeps neither its owner alive, nor the context of whoever made it, ends when the owner is no more, and what its
/// callback throws does not end the process.
/// </summary>
internal sealed class PoolTimer
{
    private static readonly TimeSpan PauseAfterFailure = TimeSpan.FromSeconds(1);

    private readonly WeakReference<object> _owner;
    private readonly Action<object> _run;
    private readonly PoolingInvokerLog _log;
    private readonly ITimer _timer;
    private readonly bool _isPeriodic;

    // Without a period it runs once, whenever it is started.
    public PoolTimer(PoolState state, object owner, Action<object> run, TimeSpan? period = null)
    {
        (_owner, _run, _log, _isPeriodic) = (new WeakReference<object>(owner), run, state.Log, period is not null);
        using (ExecutionContext.SuppressFlow())
        {
            state.Timers.Add((this, owner));
            _timer = state.Time.CreateTimer(static timer => ((PoolTimer)timer!).Fire(), this, period ?? Timeout.InfiniteTimeSpan, period ?? Timeout.InfiniteTimeSpan);
        }
    }

    public bool IsStarted { get; set; } // until its callback has taken the lock of the pool, which guards it

    // Under the lock, and set after it: a FakeTimeProvider runs the timers that are due when one is set.
    public void Start(PoolState state, TimeSpan dueTime)
    {
        if (!IsStarted && !state.IsDisposed)
        {
            IsStarted = true;
            SetAfter(state, dueTime, Timeout.InfiniteTimeSpan);
        }
    }

    /// <summary>Runs with another period from now on. Under the lock, and set after it.</summary>
    public void Repeat(PoolState state, TimeSpan period) => SetAfter(state, period, period);

    // It is not disposed: another thread may be setting it, and a timer of a FakeTimeProvider then throws when it is due.
    public void Stop() => _timer.Change(Timeout.InfiniteTimeSpan, Timeout.InfiniteTimeSpan);

    private void SetAfter(PoolState state, TimeSpan dueTime, TimeSpan period) => state.After(() =>
    {
        _timer.Change(dueTime, period);
        if (state.IsDisposed)
        {
            Stop(); // statement order is important: the pool may have stopped it before it was set
        }
    });

    private void Fire()
    {
        if (!_owner.TryGetTarget(out var owner))
        {
            Stop();
            return;
        }

        try
        {
            _run(owner);
        }
        catch (Exception exception) // An exception in a timer ends the process.
        {
            _log.MaintenanceFailed(exception);
            if (!_isPeriodic)
            {
                _timer.Change(PauseAfterFailure, Timeout.InfiniteTimeSpan);
            }
        }
    }
}

namespace PoolingInvoker;

/// <summary>
/// A timer of the pool. It keeps neither its owner alive, nor the context of whoever made it, ends when the owner is no more, and what its
/// callback throws does not end the process.
/// </summary>
internal sealed class PoolTimer : IDisposable
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
            _timer = state.Time.CreateTimer(static timer => ((PoolTimer)timer!).Fire(), this, period ?? Timeout.InfiniteTimeSpan, period ?? Timeout.InfiniteTimeSpan);
        }
    }

    public bool IsStarted { get; set; } // until its callback has taken the lock of the pool, which guards it

    public void Start(TimeSpan dueTime)
    {
        if (!IsStarted)
        {
            IsStarted = true;
            _timer.Change(dueTime, Timeout.InfiniteTimeSpan);
        }
    }

    public void Dispose() => _timer.Dispose();

    private void Fire()
    {
        if (!_owner.TryGetTarget(out var owner))
        {
            Dispose();
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

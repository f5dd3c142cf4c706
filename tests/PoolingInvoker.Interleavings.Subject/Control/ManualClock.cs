namespace PoolingInvoker.Interleavings;

/// <summary>
/// A clock that goes when an actor makes it go; the maintenance of the pool then runs once, on that actor. What the pool has looked at once,
/// after a while, is looked at when an actor says so.
/// </summary>
internal sealed class ManualClock : TimeProvider
{
    private readonly List<OneShot> _oneShots = [];
    private long _now;
    private Action _tick = static () => { };

    public override long TimestampFrequency => TimeSpan.TicksPerSecond;

    public override long GetTimestamp() => _now;

    public override ITimer CreateTimer(TimerCallback callback, object? state, TimeSpan dueTime, TimeSpan period)
    {
        // That of the maintenance.
        if (period != Timeout.InfiniteTimeSpan)
        {
            _tick = () => callback(state);
            return new Timer(() => _tick = static () => { });
        }

        var oneShot = new OneShot(() => callback(state));
        _oneShots.Add(oneShot);
        return oneShot;
    }

    public void Advance(TimeSpan by)
    {
        _now += by.Ticks;
        _tick();
    }

    /// <summary>Whether something is to be looked at so soon.</summary>
    public bool IsDue(TimeSpan within) => _oneShots.Exists(oneShot => oneShot.Due <= within);

    /// <summary>Time goes by, and what was to be looked at so soon is.</summary>
    public void Look(TimeSpan within)
    {
        _now += within.Ticks;
        foreach (var due in _oneShots.FindAll(oneShot => oneShot.Due <= within))
        {
            due.Fire();
        }
    }

    private sealed class Timer(Action stop) : ITimer
    {
        public bool Change(TimeSpan dueTime, TimeSpan period) => true;

        public void Dispose() => stop();

        public ValueTask DisposeAsync()
        {
            Dispose();
            return ValueTask.CompletedTask;
        }
    }

    private sealed class OneShot(Action fire) : ITimer
    {
        /// <summary>Gets how long after it was started it fires; null if it is not to.</summary>
        public TimeSpan? Due { get; private set; }

        public void Fire()
        {
            Due = null;
            fire();
        }

        public bool Change(TimeSpan dueTime, TimeSpan period)
        {
            Due = dueTime == Timeout.InfiniteTimeSpan ? null : dueTime;
            return true;
        }

        public void Dispose() => Due = null;

        public ValueTask DisposeAsync()
        {
            Dispose();
            return ValueTask.CompletedTask;
        }
    }
}

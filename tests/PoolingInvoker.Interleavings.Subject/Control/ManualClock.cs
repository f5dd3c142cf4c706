namespace PoolingInvoker.Interleavings;

/// <summary>A clock that goes when an actor makes it go; the maintenance of the pool then runs once, on that actor.</summary>
internal sealed class ManualClock : TimeProvider
{
    private long _now;
    private Action _tick = static () => { };

    public override long TimestampFrequency => TimeSpan.TicksPerSecond;

    public override long GetTimestamp() => _now;

    public override ITimer CreateTimer(TimerCallback callback, object? state, TimeSpan dueTime, TimeSpan period)
    {
        // That of the maintenance. The watch for silent channels is off: no calls are made here.
        if (period != Timeout.InfiniteTimeSpan)
        {
            _tick = () => callback(state);
            return new Timer(() => _tick = static () => { });
        }

        return new Timer(static () => { });
    }

    public void Advance(TimeSpan by)
    {
        _now += by.Ticks;
        _tick();
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
}

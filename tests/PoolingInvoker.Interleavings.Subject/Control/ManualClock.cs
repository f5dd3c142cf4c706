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
        _tick = () => callback(state);
        return new Timer(this);
    }

    public void Advance(TimeSpan by)
    {
        _now += by.Ticks;
        _tick();
    }

    private sealed class Timer(ManualClock clock) : ITimer
    {
        public bool Change(TimeSpan dueTime, TimeSpan period) => throw new NotSupportedException();

        public void Dispose() => clock._tick = static () => { };

        public ValueTask DisposeAsync()
        {
            Dispose();
            return ValueTask.CompletedTask;
        }
    }
}

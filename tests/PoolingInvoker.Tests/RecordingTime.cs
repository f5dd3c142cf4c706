using System.Collections.Concurrent;
using Microsoft.Extensions.Time.Testing;

namespace PoolingInvoker.Tests;

/// <summary>Virtual time that shows what is waited for: how long each timer was set to, and how many are set now.</summary>
internal sealed class RecordingTime(DateTimeOffset start) : FakeTimeProvider(start)
{
    private readonly ConcurrentQueue<TimeSpan> _dues = new();
    private readonly ConcurrentDictionary<RecordedTimer, byte> _armed = new();

    /// <summary>What timers were set to so far, in order.</summary>
    public IReadOnlyList<TimeSpan> Dues => [.. _dues];

    /// <summary>How many timers are set.</summary>
    public int Armed => _armed.Count;

    public override ITimer CreateTimer(TimerCallback callback, object? state, TimeSpan dueTime, TimeSpan period)
    {
        var timer = new RecordedTimer(this);
        timer.Inner = base.CreateTimer(
            inner =>
            {
                if (timer.Period <= TimeSpan.Zero)
                {
                    _armed.TryRemove(timer, out _);
                }

                callback(inner);
            },
            state,
            Timeout.InfiniteTimeSpan,
            Timeout.InfiniteTimeSpan);
        timer.Change(dueTime, period);
        return timer;
    }

    private sealed class RecordedTimer(RecordingTime time) : ITimer
    {
        public ITimer Inner { get; set; } = null!;

        public TimeSpan Period { get; private set; }

        public bool Change(TimeSpan dueTime, TimeSpan period)
        {
            Period = period;
            if (dueTime == Timeout.InfiniteTimeSpan)
            {
                time._armed.TryRemove(this, out _);
            }
            else
            {
                time._armed.TryAdd(this, 0);
            }

            // Statement order is important: who sees the timer may let the time pass.
            var changed = Inner.Change(dueTime, period);
            if (dueTime != Timeout.InfiniteTimeSpan)
            {
                time._dues.Enqueue(dueTime);
            }

            if (!changed)
            {
                time._armed.TryRemove(this, out _);
            }

            return changed;
        }

        public void Dispose()
        {
            time._armed.TryRemove(this, out _);
            Inner.Dispose();
        }

        public ValueTask DisposeAsync()
        {
            Dispose();
            return ValueTask.CompletedTask;
        }
    }
}

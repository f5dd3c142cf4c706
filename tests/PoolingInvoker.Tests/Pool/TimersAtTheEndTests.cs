using System.Collections.Concurrent;
using PoolingInvoker.Testing;

namespace PoolingInvoker.Tests.Pool;

/// <summary>
/// The timers of a pool that is disposed while another thread sets one. Those of a FakeTimeProvider take that badly if they are disposed: they
/// throw when they are due, in whoever lets the time pass.
/// </summary>
public sealed class TimersAtTheEndTests
{
    [Fact]
    public async Task ATimerThatIsBeingSet_IsNotDisposed_AndIsNotSetInTheEnd()
    {
        var time = new SlowTime();
        var pool = new ChannelPool(new StubPolicy(), new ChannelPoolOptions { TimeProvider = time });
        var leasing = Task.Run(() => pool.AcquireAsync().AsTask());
        await time.IsSetting.Task.Soon();
        await Task.Run(pool.Dispose).Soon();
        Assert.All(time.Timers, static timer => Assert.False(timer.IsDisposed));

        time.GoesOn.SetResult();
        await Waiting.Until(() => leasing.IsCompleted && time.Timers.All(static timer => !timer.IsSet));
        _ = leasing.Exception; // it may have come too late
    }

    /// <summary>Its first timer that is set takes as long for that as the test says. None of them runs.</summary>
    private sealed class SlowTime : TimeProvider
    {
        private readonly ConcurrentQueue<Timer> _timers = new();
        private int _set;

        public TaskCompletionSource IsSetting { get; } = new(TaskCreationOptions.RunContinuationsAsynchronously);

        public TaskCompletionSource GoesOn { get; } = new();

        public IReadOnlyCollection<Timer> Timers => _timers;

        public override ITimer CreateTimer(TimerCallback callback, object? state, TimeSpan dueTime, TimeSpan period)
        {
            var timer = new Timer(this);
            if (dueTime == Timeout.InfiniteTimeSpan)
            {
                _timers.Enqueue(timer); // others are of waits, and end with them
            }

            return timer;
        }

        public sealed class Timer(SlowTime time) : ITimer
        {
            public bool IsDisposed { get; private set; }

            public bool IsSet { get; private set; }

            public bool Change(TimeSpan dueTime, TimeSpan period)
            {
                if (dueTime != Timeout.InfiniteTimeSpan && Interlocked.Increment(ref time._set) == 1)
                {
                    time.IsSetting.SetResult();
                    time.GoesOn.Task.GetAwaiter().GetResult();
                }

                IsSet = dueTime != Timeout.InfiniteTimeSpan;
                return true;
            }

            public void Dispose() => IsDisposed = true;

            public ValueTask DisposeAsync()
            {
                Dispose();
                return default;
            }
        }
    }
}

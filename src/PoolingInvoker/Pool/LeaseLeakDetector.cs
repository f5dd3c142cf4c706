using System.Collections.Concurrent;
using System.Diagnostics;

namespace PoolingInvoker;

/// <summary>Remembers who took each lease, and reports those that are out for longer than they should, once each, and when they come back.</summary>
internal sealed class LeaseLeakDetector(TimeSpan threshold, TimeProvider time, PoolingInvokerLog log)
{
    private readonly ConcurrentDictionary<object, Taking> _taken = new();

    // No frame is skipped: how many of them are this library's depends on what the JIT compiler inlines.
    public static StackTrace NewStack() => new(fNeedFileInfo: true);

    /// <summary>Is called before anybody has the lease, who may give it back at once.</summary>
    public void Taken(object lease, long at, StackTrace stack) => _taken[lease] = new Taking(at, stack);

    public void Returned(object lease)
    {
        if (_taken.TryRemove(lease, out var taking) && taking.Reported)
        {
            log.LateLeaseReturned(time.GetElapsedTime(taking.At));
        }
    }

    public void Report()
    {
        foreach (var taking in _taken.Values)
        {
            var age = time.GetElapsedTime(taking.At);
            if (age >= threshold && !taking.Reported)
            {
                taking.Reported = true;
                log.LeaseHeldLong(age, taking.Stack);
            }
        }
    }

    private sealed record Taking(long At, StackTrace Stack)
    {
        public bool Reported { get; set; }
    }
}

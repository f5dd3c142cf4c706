// Callers in parallel, and then the question whether what they left behind is what they would have left one after the other, in some
// order. CsCheck draws the operations, runs them on threads, and looks for that order by running them in each.
using System.Collections.Concurrent;
using CsCheck;

namespace PoolingInvoker.Interleavings;

public static class ParallelCheck
{
    /// <summary>Checks for so many seconds, and says how many pools that took.</summary>
    public static (long Pools, string? Failure) Check(int seconds)
    {
        ThreadPool.SetMinThreads(32, 32);
        var pools = 0L;
        try
        {
            Gen.Const(0).Select(_ =>
            {
                Interlocked.Increment(ref pools);
                return new Callers();
            }).SampleParallel(
                [
                    GenOperation.Create<Callers>("TryAcquire", static callers => callers.TryAcquire()),
                    GenOperation.Create<Callers>("Acquire", static callers => callers.Acquire()),
                    GenOperation.Create<Callers>("Return", static callers => callers.Return()),
                    GenOperation.Create<Callers, int>(
                        Gen.Int[0, 9], static which => $"Dispose({which})", static (callers, which) => callers.Dispose(which)),
                ],
                equal: static (left, right) => left.Left() == right.Left(),
                time: seconds,
                threads: 1,
                print: static callers => callers.Left().ToString());
            return (pools, null);
        }
        catch (CsCheckException exception)
        {
            return (pools, exception.Message);
        }
    }

    private sealed class Callers
    {
        private readonly ChannelPool _pool = new(new ProbePolicy(), new ChannelPoolOptions
        {
            MinPoolSize = 2,
            MaxPoolSize = 2,
            MaxConcurrentCallsPerChannel = 2,
            ProbeDelay = Timeout.InfiniteTimeSpan,
            AcquireTimeout = Timeout.InfiniteTimeSpan,
            PooledChannelIdleTimeout = Timeout.InfiniteTimeSpan,
            PooledChannelLifetime = Timeout.InfiniteTimeSpan,
            Queue = static work => work(),
        }.ValidatedCopy(), Random.Shared);

        private readonly ConcurrentStack<ChannelLease> _held = [];

        // A channel on its way makes others wait or turn back, which depends on when they come. So both are here already.
        public Callers()
        {
            TryAcquire();
            TryAcquire();
        }

        public void TryAcquire()
        {
            try
            {
                if (_pool.TryAcquire(out var lease))
                {
                    _held.Push(lease);
                }
            }
            catch (ObjectDisposedException)
            {
                // It came too late.
            }
        }

        /// <summary>Waits in line, without waiting for it: who is served keeps the lease.</summary>
        public void Acquire() => _ = _pool.AcquireAsync().AsTask();

        public void Return()
        {
            if (_held.TryPop(out var lease))
            {
                lease.Dispose();
            }
        }

        public void Dispose(int which)
        {
            if (which == 0)
            {
                _pool.Dispose();
            }
        }

        public (int Channels, int InFlight, int Waiting, int Held) Left()
        {
            var statistics = _pool.GetStatistics();
            return (statistics.Channels, statistics.CallsInFlight, statistics.CallsWaiting, _held.Count);
        }
    }
}

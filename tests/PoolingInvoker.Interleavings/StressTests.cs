using System.Diagnostics;
using Microsoft.Extensions.Time.Testing;
using PoolingInvoker.Testing;

namespace PoolingInvoker.Interleavings;

/// <summary>
/// Real threads: what the scheduler does not know of, such as the memory of the machine. Callers do what they like to a small pool, and a
/// clock of the test's makes its channels old and idle meanwhile; after every thousand operations they stop, and all that can be told of
/// a pool that nobody uses has to be so. Every tenth time it is disposed while they go on.
/// </summary>
public sealed class StressTests(ITestOutputHelper output)
{
    private const int Callers = 8;
    private const int MaxPoolSize = 3;
    private const int CallsAChannel = 2;
    private const int Room = MaxPoolSize * CallsAChannel;
    private const int OperationsARound = 1000;

    private readonly FakeTimeProvider _time = new();
    private int _atWork; // what the pool does of its own, and has not ended
    private long _served;
    private long _refused;

    [Fact]
    public async Task TheLawsHold()
    {
        var seed = Environment.TickCount;
        output.WriteLine($"Seed {seed}.");
        var since = Stopwatch.GetTimestamp();
        var rounds = 0;
        Witness? pool = null;
        while (Stopwatch.GetElapsedTime(since).TotalSeconds < Budget.StressSeconds)
        {
            pool ??= NewPool();
            var disposes = ++rounds % 10 == 0;
            Misbehave(pool, new Random(seed + rounds));
            var left = OperationsARound;
            bool GoesOn() => Interlocked.Decrement(ref left) >= 0;
            var callers = Enumerable.Range(0, Callers)
                .Select(caller => new Random((seed * 31) + (rounds * Callers) + caller))
                .Select(random => Task.Run(() => CallAsync(pool, random, GoesOn)))
                .ToList();
            if (disposes)
            {
                callers.Add(Task.Run(async () =>
                {
                    await Waiting.Until(() => Volatile.Read(ref left) < OperationsARound / 2);
                    pool.IsClosing = true;
                    await pool.Pool.DisposeAsync();
                    pool.CheckAllDisposed();
                }));
            }

            var calling = Task.WhenAll(callers);
            await Task.Run(async () =>
            {
                while (!calling.IsCompleted)
                {
                    _time.Advance(TimeSpan.FromMilliseconds(0.1));
                    await Task.Yield();
                }
            }).Soon();
            await calling;
            Behave(pool);
            if (disposes)
            {
                pool.CheckTheEnd();
                pool = null;
            }
            else
            {
                await RestAsync(pool);
            }
        }

        pool?.CheckTheEnd();
        output.WriteLine($"{rounds} rounds of {OperationsARound} operations by {Callers} callers: {_served} served, {_refused} refused.");
        Assert.True(_served >= rounds * OperationsARound / 10, "Hardly any operation is served: the test does not test.");
    }

    // What callers set off goes on without them, and time stands still.
    private async Task RestAsync(Witness pool)
    {
        try
        {
            do
            {
                await Waiting.Until(() => Volatile.Read(ref _atWork) == 0);
                LeaseAll(pool);
            }
            while (Volatile.Read(ref _atWork) > 0);

            pool.CheckQuiet();
        }
        catch
        {
            output.WriteLine($"{pool.Pool.GetStatistics()}, {Volatile.Read(ref _atWork)} at work");
            pool.Pool.GetChannels().ToList().ForEach(channel => output.WriteLine($"{channel}"));
            throw;
        }
    }

    // What is found broken as it is taken is replaced without whoever took it.
    private static void LeaseAll(Witness pool)
    {
        List<ChannelLease> leases = [];
        while (leases.Count < Room && pool.Pool.TryAcquire(out var lease))
        {
            leases.Add(lease);
        }

        leases.ForEach(static lease => lease.Dispose());
    }

    // To connect takes nothing here, so that no work outlasts its turn.
    private void Queue(Action work)
    {
        Interlocked.Increment(ref _atWork);
        ThreadPool.UnsafeQueueUserWorkItem(
            _ =>
            {
                work();
                Interlocked.Decrement(ref _atWork);
            },
            null);
    }

    private Witness NewPool() => new(new ChannelPoolOptions
    {
        TimeProvider = _time,
        Queue = Queue,
        MinPoolSize = 1,
        MaxPoolSize = MaxPoolSize,
        MaxConcurrentCallsPerChannel = CallsAChannel,
        ProbeDelay = Timeout.InfiniteTimeSpan,
        AcquireTimeout = TimeSpan.FromMilliseconds(20),
        DrainTimeout = Timeout.InfiniteTimeSpan,
        PooledChannelIdleTimeout = TimeSpan.FromMilliseconds(30),
        PooledChannelLifetime = TimeSpan.FromMilliseconds(100),
    });

    private static void Misbehave(Witness pool, Random random)
    {
        bool OneIn(int n)
        {
            lock (random)
            {
                return random.Next(n) == 0;
            }
        }

        pool.Policy.OnReturn = _ => !OneIn(50);
        pool.Policy.OnCreate = () =>
        {
            if (OneIn(10))
            {
                throw new TimeoutException("no dial tone");
            }
        };
    }

    private static void Behave(Witness pool)
    {
        pool.Policy.OnReturn = static _ => true;
        pool.Policy.OnCreate = static () => { };
    }

    private async Task CallAsync(Witness pool, Random random, Func<bool> goesOn)
    {
        while (goesOn())
        {
            try
            {
                await CallAsync(pool, random);
                Interlocked.Increment(ref _served);
            }
            catch (Exception exception) when (exception is OperationCanceledException or TimeoutException or ObjectDisposedException
                or InvalidOperationException { InnerException: TimeoutException })
            {
                Interlocked.Increment(ref _refused);
            }
        }
    }

    private static async Task CallAsync(Witness pool, Random random)
    {
        if (random.Next(4) == 0)
        {
            pool.TryAcquire(fast: random.Next(2) == 0);
            return;
        }

        using var cancellation = new CancellationTokenSource();
        var acquiring = pool.AcquireAsync(cancellation.Token);
        if (random.Next(5) == 0)
        {
            _ = Task.Run(cancellation.Cancel);
        }

        var lease = await acquiring;
        if (random.Next(2) == 0)
        {
            await Task.Yield();
        }

        switch (random.Next(20))
        {
            case 0:
                pool.Return(lease, LeaseOutcome.ChannelFailed);
                break;
            case 1: // two at once
                pool.Leaves(lease);
                await Task.WhenAll(Task.Run(lease.Dispose), Task.Run(lease.Dispose));
                break;
            case < 10:
                pool.Return(lease, LeaseOutcome.Answered);
                break;
            default:
                pool.Return(lease);
                break;
        }
    }
}

using System.Collections.Concurrent;
using Grpc.Core;
using Microsoft.Extensions.Time.Testing;
using PoolingInvoker.Testing;

namespace PoolingInvoker.Tests.Pool;

/// <summary>
/// Pools in virtual time, over channels that are asked for nothing. What connecting takes is the priming call's to say: the test ends each,
/// or it takes a time.
/// </summary>
internal sealed class PoolInTime : IDisposable
{
    private static readonly TimeSpan Step = TimeSpan.FromMilliseconds(10);

    private readonly ConcurrentQueue<Priming> _primes = new();
    private readonly ConcurrentQueue<ChannelPoolEvent> _events = new();
    private readonly List<ChannelPool> _pools = [];

    public FakeTimeProvider Time { get; } = new();

    public StubPolicy Policy { get; } = new();

    /// <summary>The priming calls so far, in order.</summary>
    public IReadOnlyList<Priming> Primes => [.. _primes];

    /// <summary>What the pools have told.</summary>
    public IReadOnlyList<ChannelPoolEvent> Events => [.. _events];

    /// <summary>How many channels have been made and not been disposed.</summary>
    public int Open => Policy.Created.Count(static channel => !StubPolicy.IsDisposed(channel));

    public void Dispose() => _pools.ForEach(static pool => pool.Dispose());

    /// <summary>Nothing in it happens by age or silence, unless the test says so.</summary>
    public ChannelPool New(Action<ChannelPoolOptions>? configure = null, Random? random = null)
    {
        var options = new ChannelPoolOptions
        {
            AcquireTimeout = Timeout.InfiniteTimeSpan,
            PooledChannelIdleTimeout = Timeout.InfiniteTimeSpan,
            PooledChannelLifetime = Timeout.InfiniteTimeSpan,
            ProbeDelay = Timeout.InfiniteTimeSpan,
            OnEvent = _events.Enqueue,
            TimeProvider = Time,
            Queue = InlineWork.Queue,
        };
        configure?.Invoke(options);
        var pool = new ChannelPool(new PolicyChannelFactory(Policy), options.ValidatedCopy(), random ?? Random.Shared);
        _pools.Add(pool);
        return pool;
    }

    /// <summary>A priming call that the test ends.</summary>
    public Task PrimeByHand(CallInvoker invoker, CancellationToken cancellationToken)
    {
        var priming = new Priming(invoker, cancellationToken);
        _primes.Enqueue(priming);
        return priming.Ends.Task;
    }

    /// <summary>A priming call that takes so long.</summary>
    public Func<CallInvoker, CancellationToken, Task> PrimeIn(TimeSpan time) => (_, cancellationToken) => Task.Delay(time, Time, cancellationToken);

    /// <summary>Lets time pass, in small steps.</summary>
    public void Pass(TimeSpan time, TimeSpan? step = null)
    {
        for (var left = time; left > TimeSpan.Zero; left -= step ?? Step)
        {
            Time.Advance(left < (step ?? Step) ? left : step ?? Step);
        }
    }

    /// <summary>Lets time pass until something is so, and says how long that took.</summary>
    public TimeSpan PassUntil(Func<bool> condition, TimeSpan atMost, TimeSpan? step = null)
    {
        var since = Time.GetTimestamp();
        while (!condition() && Time.GetElapsedTime(since) < atMost)
        {
            Time.Advance(step ?? Step);
        }

        Assert.True(condition(), $"It was not so within {atMost}.");
        return Time.GetElapsedTime(since);
    }

    /// <summary>Takes leases as calls do: they come at once, and wait in line.</summary>
    public static List<Task<ChannelLease>> Come(ChannelPool pool, int count, bool isStream = false, TimeSpan? timeout = null, string? key = null, PooledChannel? avoid = null, CancellationToken cancellationToken = default)
    {
        var request = new LeaseRequest(isStream ? LeaseKind.Stream : LeaseKind.Call, avoid, ChannelAffinity.KeyOf(key));
        return [.. Enumerable.Range(0, count).Select(_ => pool.Queue.AcquireAsync(timeout ?? Timeout.InfiniteTimeSpan, request, cancellationToken).AsTask())];
    }

    /// <summary>A lease that there is room for.</summary>
    public static ChannelLease Take(ChannelPool pool, bool isStream = false, string? key = null, PooledChannel? avoid = null)
    {
        var acquiring = Come(pool, 1, isStream, key: key, avoid: avoid)[0];
        Assert.True(acquiring.IsCompletedSuccessfully, "There was no room.");
        return acquiring.Result;
    }

    /// <summary>Waits until all whom the pool has served know it. Gives their leases.</summary>
    public static async Task<List<ChannelLease>> ServedAsync(ChannelPool pool, List<Task<ChannelLease>> line)
    {
        await Waiting.Until(() => line.Count(static one => !one.IsCompleted) == pool.GetStatistics().CallsWaiting);
        return [.. line.Where(static one => one.IsCompletedSuccessfully).Select(static one => one.Result)];
    }

    /// <summary>A server has answered on each channel: none is new any more.</summary>
    public static void Answer(ChannelPool pool)
    {
        var channels = pool.GetStatistics().Channels;
        List<ChannelLease> leases = [];
        while (leases.DistinctBy(static lease => lease.Pooled).Count() < channels)
        {
            leases.Add(Take(pool));
        }

        leases.ForEach(static lease => lease.Return(LeaseOutcome.Answered));
    }

    /// <summary>One priming call.</summary>
    public sealed record Priming(CallInvoker Invoker, CancellationToken Token)
    {
        public TaskCompletionSource Ends { get; } = new();
    }
}

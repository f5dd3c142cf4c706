using System.Collections.Concurrent;
using System.Net;
using PoolingInvoker.Testing;

namespace PoolingInvoker.Tests.Pool;

/// <summary>Pools with endpoints of several priorities, in virtual time. Those of priority 1 are 10.0.1.1, 10.0.1.2 and so on.</summary>
public abstract class PriorityPools : IDisposable
{
    private readonly List<ChannelPool> _pools = [];

    private protected static TimeSpan Second { get; } = TimeSpan.FromSeconds(1);

    private protected RecordingTime Time { get; } = new(DateTimeOffset.UnixEpoch);

    private protected ConcurrentQueue<ChannelPoolEvent> Events { get; } = new();

    private protected EndpointPolicy Policy { get; private set; } = null!;

    public void Dispose()
    {
        _pools.ForEach(static pool => pool.Dispose());
        GC.SuppressFinalize(this);
    }

    private protected static List<ChannelEndpoint> Endpoints(int[] counts, int[]? weights) => [.. counts.SelectMany((count, priority) =>
        Enumerable.Range(1, count).Select(number => new ChannelEndpoint(new IPEndPoint(new IPAddress([10, 0, (byte)priority, (byte)number]), 5000))
        {
            Priority = priority,
            Weight = weights?[number - 1] ?? 1,
        }))];

    private protected static int PriorityOf(ChannelEndpoint endpoint) => ((IPEndPoint)endpoint.EndPoint).Address.GetAddressBytes()[2];

    private protected static int NumberOf(ChannelEndpoint endpoint) => ((IPEndPoint)endpoint.EndPoint).Address.GetAddressBytes()[3];

    private protected static int PriorityOf(PooledChannel channel) => PlaceOf(channel).Priority;

    private protected static (int Priority, int Number) PlaceOf(PooledChannel channel) =>
        IPEndPoint.Parse(channel.Endpoint).Address.GetAddressBytes() is var address ? (address[2], address[3]) : default;

    private protected static int ChannelsTo(ChannelPool pool, int priority) => pool.State.Active.Count(channel => PriorityOf(channel) == priority);

    private protected static void Signal(ChannelPool pool, PooledChannel channel, ChannelSignal signal)
    {
        using var section = pool.State.Enter();
        channel.Signal(signal);
        pool.State.Active.Update(channel);
    }

    /// <summary>Makes calls, so many at a time, and says how many each priority had, by the addresses.</summary>
    private protected static int[] Call(ChannelPool pool, int count, int atATime = 1, bool isStream = false)
    {
        var had = CallEach(pool, count, atATime, isStream);
        return [.. Enumerable.Range(0, pool.Balancer!.Endpoints.Priorities.Max(static priority => priority.Number + 1)).Select(priority => had.Where(one => one.Key.Priority == priority).Sum(static one => one.Value))];
    }

    private protected static Dictionary<(int Priority, int Number), int> CallEach(ChannelPool pool, int count, int atATime = 1, bool isStream = false)
    {
        var had = new Dictionary<(int, int), int>();
        var calling = new Queue<ChannelLease>();
        for (var i = 0; i < count; i++)
        {
            var lease = PoolInTime.Take(pool, isStream);
            had[PlaceOf(lease.Pooled)] = had.GetValueOrDefault(PlaceOf(lease.Pooled)) + 1;
            calling.Enqueue(lease);
            if (calling.Count == atATime)
            {
                calling.Dequeue().Return(LeaseOutcome.Answered);
            }
        }

        foreach (var lease in calling)
        {
            lease.Return(LeaseOutcome.Answered);
        }

        return had;
    }

    private protected static List<(int Priority, int Number)> Places(ChannelPool pool) => [.. Enumerable.Range(0, 2_000).Select(key =>
    {
        using var lease = PoolInTime.Take(pool, key: $"user-{key}");
        return PlaceOf(lease.Pooled);
    })];

    /// <summary>The connections to these endpoints break, and no other can be made.</summary>
    private protected void Lose(ChannelPool pool, IEnumerable<(int Priority, int Number)> places)
    {
        foreach (var place in places)
        {
            Policy.Dead.Add(Endpoints([250, 9, 9], weights: null).Single(endpoint => (PriorityOf(endpoint), NumberOf(endpoint)) == place));
        }

        foreach (var channel in pool.State.Active.Where(channel => places.Contains(PlaceOf(channel))).ToList())
        {
            pool.Picker.MarkFailed(channel, new IOException("lost"));
        }
    }

    private protected void Advance(TimeSpan time)
    {
        for (; time > TimeSpan.Zero; time -= Second)
        {
            Time.Advance(Second);
        }
    }

    private protected TimeSpan PassUntil(Func<bool> condition, TimeSpan? atMost = null)
    {
        var since = Time.GetTimestamp();
        while (!condition() && Time.GetElapsedTime(since) < (atMost ?? (5 * Second)))
        {
            Time.Advance(TimeSpan.FromMilliseconds(100));
        }

        Assert.True(condition());
        return Time.GetElapsedTime(since);
    }

    /// <summary>Gives back so many of the leases that callers have been served. With a random number a tenth of their servers has failed.</summary>
    private protected static async Task ReturnAsync(List<Task<ChannelLease>> waiting, int most = int.MaxValue, Random? random = null)
    {
        foreach (var served in waiting.Where(static one => one.IsCompletedSuccessfully).Take(most).ToList())
        {
            waiting.Remove(served);
            (await served).Return(random?.Next(10) == 0 ? LeaseOutcome.ServerFailed : LeaseOutcome.Answered);
        }
    }

    private protected async Task<ChannelPool> NewPoolAsync(int[] counts, Action<ChannelPoolOptions>? configure = null, int[]? weights = null)
    {
        var pool = New(new EndpointList(Endpoints(counts, weights), Name: null, Resolve: null), configure);
        await pool.ConnectAsync().Soon();
        PoolInTime.Answer(pool);
        return pool;
    }

    private protected ChannelPool New(EndpointList list, Action<ChannelPoolOptions>? configure = null)
    {
        Policy = new EndpointPolicy(Time);
        var options = new ChannelPoolOptions
        {
            TimeProvider = Time,
            Queue = InlineWork.Queue,
            PrimeCallback = Policy.ConnectAsync,
            ProbeDelay = Timeout.InfiniteTimeSpan,
            PooledChannelLifetime = Timeout.InfiniteTimeSpan,
            TargetConcurrentCallsPerChannel = 100,
            AcquireTimeout = Timeout.InfiniteTimeSpan,
            OnEvent = Events.Enqueue,
        };
        configure?.Invoke(options);
        var pool = new ChannelPool(Policy, options.ValidatedCopy(), new Random(1), list);
        _pools.Add(pool);
        return pool;
    }
}

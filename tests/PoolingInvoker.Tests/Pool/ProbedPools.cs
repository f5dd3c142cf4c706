using System.Collections.Concurrent;
using Grpc.Core;
using PoolingInvoker.Testing;

namespace PoolingInvoker.Tests.Pool;

/// <summary>Pools in virtual time whose probes the test answers. A lease that is out is a call that waits.</summary>
public abstract class ProbedPools : IAsyncDisposable
{
    protected static readonly TimeSpan Tick = TimeSpan.FromMilliseconds(250); // how often the pool looks
    protected static readonly TimeSpan LastWord = TimeSpan.FromMilliseconds(100); // at the least

    private readonly ConcurrentQueue<Asked> _asked = new();
    private readonly List<ChannelPool> _pools = [];

    private protected RecordingTime Time { get; } = new(DateTimeOffset.UtcNow);

    private protected StubPolicy Policy { get; } = new();

    private protected IReadOnlyList<Asked> AllAsked => [.. _asked];

    public async ValueTask DisposeAsync()
    {
        foreach (var pool in _pools)
        {
            pool.Dispose();
            var closing = pool.DisposeAsync().AsTask();
            await UntilPassing(() => closing.IsCompleted);
        }

        Assert.All(Policy.Created, static channel => Assert.True(StubPolicy.IsDisposed(channel)));
        GC.SuppressFinalize(this);
    }

    private protected ChannelPool NewPool(int channels, TimeSpan? probeDelay = null, bool hasProbe = true, int mostChannels = 100, int? mostCalls = null)
    {
        var pool = new ChannelPool(Policy, new ChannelPoolOptions
        {
            MinPoolSize = channels,
            MaxPoolSize = mostChannels,
            MaxConcurrentCallsPerChannel = mostCalls,
            ProbeDelay = probeDelay ?? TimeSpan.FromSeconds(1),
            ProbeCallback = !hasProbe ? null : (invoker, token) =>
            {
                var asked = new Asked(invoker);
                _asked.Enqueue(asked);
                return asked.Answer.Task.WaitAsync(token);
            },
            PooledChannelIdleTimeout = Timeout.InfiniteTimeSpan,
            PooledChannelLifetime = Timeout.InfiniteTimeSpan,
            TimeProvider = Time,
            Queue = InlineWork.Queue,
        });
        _pools.Add(pool);
        return pool;
    }

    private protected static Task<ChannelLease> CallAsync(ChannelPool pool) =>
        pool.Queue.AcquireAsync(Timeout.InfiniteTimeSpan, new LeaseRequest(LeaseKind.Call), CancellationToken.None).Soon();

    // A call that is answered at once on this channel, which the pool has to choose.
    private protected static async Task AnswerAsync(ChannelPool pool, PooledChannel channel)
    {
        var lease = await CallAsync(pool);
        Assert.Same(channel, lease.Pooled);
        lease.Return(LeaseOutcome.Answered);
    }

    // They are asked once more.
    private protected Task UntilLastWordAsync(int suspects = 1) =>
        Waiting.Until(() => _asked.GroupBy(static asked => asked.Invoker).Count(static asked => asked.Count() >= 2) == suspects);

    private protected void Pass(TimeSpan time)
    {
        for (; time > TimeSpan.Zero; time -= Tick)
        {
            Time.Advance(time < Tick ? time : Tick);
        }
    }

    private protected Task UntilPassing(Func<bool> condition) => Waiting.Until(() =>
    {
        if (condition())
        {
            return true;
        }

        Time.Advance(TimeSpan.FromMilliseconds(10));
        return condition();
    });

    /// <summary>A probe: of which channel, and what comes of it.</summary>
    private protected sealed record Asked(CallInvoker Invoker)
    {
        public TaskCompletionSource Answer { get; } = new(TaskCreationOptions.RunContinuationsAsynchronously);
    }
}

using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.Tests.Calls;

/// <summary>Calls through pools over scripted exchanges, in virtual time. None of them leaves a lease behind.</summary>
public abstract class ScriptedCalls : IAsyncDisposable
{
    private readonly List<ChannelPool> _pools = [];

    private protected RecordingTime Time { get; } = new(DateTimeOffset.UtcNow);

    private protected ScriptedServer Server { get; } = new();

    public async ValueTask DisposeAsync()
    {
        foreach (var pool in _pools)
        {
            await Waiting.Until(() => pool.GetStatistics() is { CallsInFlight: 0, CallsWaiting: 0 });
            await pool.DisposeAsync();
        }

        GC.SuppressFinalize(this);
    }

    private protected (User.UserClient Client, ChannelPool Pool) NewClient(Action<PoolingCallInvokerOptions>? configure = null)
    {
        var invoker = NewInvoker(configure);
        return (new User.UserClient(invoker), invoker.Pool);
    }

    private protected PoolingCallInvoker NewInvoker(Action<PoolingCallInvokerOptions>? configure = null)
    {
        // However much virtual time passes while another thread makes a channel, it is waited for.
        var options = new PoolingCallInvokerOptions
        {
            Pool =
            {
                TimeProvider = Time,
                Queue = InlineWork.Queue,
                AcquireTimeout = Timeout.InfiniteTimeSpan,
                PooledChannelLifetime = Timeout.InfiniteTimeSpan,
                ProbeDelay = Timeout.InfiniteTimeSpan,
            },
        };
        configure?.Invoke(options);
        var pool = new ChannelPool(Server, options.Pool);
        _pools.Add(pool);
        return new PoolingCallInvoker(pool, options);
    }

    /// <summary>Lets the virtual time pass that the backoff takes.</summary>
    private protected Task Elapse(Task ending) => Elapse(() => ending.IsCompleted);

    /// <inheritdoc cref="Elapse(Task)"/>
    private protected Task Elapse(Func<bool> condition) => Waiting.Until(() =>
    {
        Time.Advance(TimeSpan.FromMilliseconds(50));
        return condition();
    });
}

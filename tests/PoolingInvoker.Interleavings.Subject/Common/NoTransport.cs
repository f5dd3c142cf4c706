#pragma warning disable CA1801, CA1822, CS0067, CS0436, CS9113, IDE0060 // The shape is that of the library's.
using Microsoft.Extensions.ServiceDiscovery;

namespace PoolingInvoker;

/// <summary>In place of the connections of a channel: those of the checker connect when it says so.</summary>
internal sealed class ChannelTransport(TimeProvider time) : IDisposable
{
    private readonly System.Threading.Tasks.TaskCompletionSource _connected = new();

    /// <summary>Gets or sets what happens when the pool asks whether handlers of the user's lie above the connections.</summary>
    public Action OnAsked { get; set; } = static () => { };

    public RefusalDelivery Refusals { get; } = new();

    public event Action<int>? SettingsCame;

    public event Action? GoAwayCame;

    public event Action? ConnectionLost;

    public bool HasConnections => false;

    public bool HasUnread => false;

    public bool IsBroken => false;

    public bool IsWrapped
    {
        get
        {
            OnAsked();
            return true;
        }

        init
        {
        }
    }

    public long ConnectionsMade => 0;

    public long SignsOfLife => 0;

    public long CallFrames => 0;

    public ConnectivityState State => ConnectivityState.Idle;

    public void Supply(SocketsHttpHandler handler, Uri name, Uri address)
    {
    }

    public Task ConnectAsync(CancellationToken cancellationToken) => _connected.Task;

    public void Connect() => _connected.TrySetResult();

    public Task PingAsync(CancellationToken cancellationToken) => Task.Delay(Timeout.InfiniteTimeSpan, time, cancellationToken);

    public void FailIfLost()
    {
    }

    public void Abort(string reason)
    {
    }

    public void Dispose()
    {
    }
}

internal sealed class RefusalDelivery
{
    public System.Runtime.CompilerServices.TaskAwaiter GetAwaiter() => System.Threading.Tasks.Task.CompletedTask.GetAwaiter();
}

internal static class ChannelDialer
{
    public static ValueTask<Stream> ConnectAsync(SocketsHttpConnectionContext context, CancellationToken cancellationToken) => throw new NotSupportedException();
}

/// <summary>In place of what follows the endpoints of a name: those of the checker are given to the pool by hand.</summary>
internal sealed class EndpointWatcher(
    Uri name,
    Func<CancellationToken, ValueTask<ServiceEndpointSource>> resolve,
    TimeProvider time,
    Random random,
    IEndpointListener listener,
    bool keepsAddresses,
    Func<ServiceEndpoint, int>? weigh,
    Func<ServiceEndpoint, int>? rank) : IDisposable
{
    public Task<IReadOnlyList<ChannelEndpoint>> FirstAsync(CancellationToken cancellationToken) => throw new NotSupportedException();

    public void RefreshSoon()
    {
    }

    public void Dispose()
    {
    }
}

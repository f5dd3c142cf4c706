using System.Collections.Concurrent;

namespace PoolingInvoker;

/// <summary>
/// The connections below one channel, as its handler makes them: one as a rule, one after the other. What comes from them is a sign of life
/// that no answer of a slow method is needed for.
/// </summary>
internal sealed class ChannelTransport
{
    private readonly ConcurrentDictionary<ConnectionStream, byte> _connections = new();
    private long _signsOfLife;
    private long _callFrames;
    private long _connectionsMade;
    private Action? _onFirstRead;
    private TaskCompletionSource? _nextSign;

    public bool HasConnections => !_connections.IsEmpty;

    /// <summary>How many connections there have been.</summary>
    public long ConnectionsMade => Interlocked.Read(ref _connectionsMade);

    /// <summary>How often something has come, or the other side has taken what it had not taken at once.</summary>
    public long SignsOfLife => Interlocked.Read(ref _signsOfLife);

    /// <summary>How many frames have come that belong to calls.</summary>
    public long CallFrames => Interlocked.Read(ref _callFrames);

    /// <summary>Sets what is called when something has come for the first time: a server is there.</summary>
    public void OnFirstRead(Action action) => _onFirstRead = action;

    /// <summary>Watches the connections of a handler that has not made one yet.</summary>
    public void Watch(SocketsHttpHandler handler)
    {
        var theirs = handler.PlaintextStreamFilter;
        handler.PlaintextStreamFilter = async (context, cancellationToken) =>
        {
            var stream = theirs is null ? context.PlaintextStream : await theirs(context, cancellationToken).ConfigureAwait(false);
            Interlocked.Increment(ref _connectionsMade);
            var connection = new ConnectionStream(stream, this);
            _connections.TryAdd(connection, 0);
            return connection;
        };
    }

    /// <summary>Sends a ping on each connection that has begun, and waits for a sign of life on any of them, whatever it is.</summary>
    public async Task PingAsync(CancellationToken cancellationToken)
    {
        var sign = new TaskCompletionSource(TaskCreationOptions.RunContinuationsAsynchronously);
        Interlocked.Exchange(ref _nextSign, sign);
        foreach (var connection in _connections.Keys.Where(static connection => connection.IsHttp2))
        {
            connection.PingAsync(cancellationToken).Observe(); // broken meanwhile, or still about to write
        }

        await sign.Task.WaitAsync(cancellationToken).ConfigureAwait(false);
    }

    /// <summary>Breaks all connections: the calls on them end as if the server had.</summary>
    public void Abort()
    {
        foreach (var connection in _connections.Keys)
        {
            connection.Abort();
        }
    }

    public void SawRead(int callFrames)
    {
        SawProgress();
        if (callFrames > 0)
        {
            Interlocked.Add(ref _callFrames, callFrames);
        }

        if (Volatile.Read(ref _onFirstRead) is not null)
        {
            Interlocked.Exchange(ref _onFirstRead, null)?.Invoke();
        }
    }

    public void SawProgress()
    {
        Interlocked.Increment(ref _signsOfLife);
        if (Volatile.Read(ref _nextSign) is not null)
        {
            Interlocked.Exchange(ref _nextSign, null)?.TrySetResult();
        }
    }

    public void Closed(ConnectionStream connection) => _connections.TryRemove(connection, out _);
}

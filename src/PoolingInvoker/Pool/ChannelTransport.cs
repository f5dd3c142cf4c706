using System.Collections.Concurrent;

namespace PoolingInvoker;

/// <summary>
/// The connections below one channel, as its handler makes them: one as a rule, one after the other. What comes from them is a sign of life
/// that no answer of a slow method is needed for.
/// </summary>
internal sealed class ChannelTransport
{
    private readonly ConcurrentDictionary<ConnectionStream, byte> _connections = new();
    private long _reads;
    private long _lastPing = 0x506F_6F6C_0000_0000; // far from the payloads that the handler's own pings count from 0
    private TaskCompletionSource? _nextRead;

    /// <summary>How often something has come.</summary>
    public long Reads => Interlocked.Read(ref _reads);

    /// <summary>Called when something has come for the first time: a server is there.</summary>
    public Action? OnFirstRead { get; set; }

    /// <summary>Watches the connections of a handler that has not made one yet.</summary>
    public void Watch(SocketsHttpHandler handler)
    {
        var theirs = handler.PlaintextStreamFilter;
        handler.PlaintextStreamFilter = async (context, cancellationToken) =>
        {
            var stream = theirs is null ? context.PlaintextStream : await theirs(context, cancellationToken).ConfigureAwait(false);
            var connection = new ConnectionStream(stream, this);
            _connections.TryAdd(connection, 0);
            return connection;
        };
    }

    /// <summary>Sends a ping on each connection, and waits until something has come on one of them, whatever it is.</summary>
    public async Task PingAsync(CancellationToken cancellationToken)
    {
        var read = new TaskCompletionSource(TaskCreationOptions.RunContinuationsAsynchronously);
        Interlocked.Exchange(ref _nextRead, read);
        var payload = Interlocked.Increment(ref _lastPing);
        var pings = _connections.Keys.Where(static connection => connection.IsHttp2).Select(connection => connection.PingAsync(payload, cancellationToken)).ToList();
        try
        {
            await read.Task.WaitAsync(cancellationToken).ConfigureAwait(false);
        }
        finally
        {
            _ = Task.WhenAll(pings).ContinueWith(static pinging => pinging.Exception, TaskScheduler.Default); // broken meanwhile
        }
    }

    /// <summary>Breaks all connections: the calls on them end as if the server had.</summary>
    public void Abort()
    {
        foreach (var connection in _connections.Keys)
        {
            connection.Abort();
        }
    }

    public void SawRead()
    {
        if (Interlocked.Increment(ref _reads) == 1)
        {
            OnFirstRead?.Invoke();
        }

        if (Volatile.Read(ref _nextRead) is not null)
        {
            Interlocked.Exchange(ref _nextRead, null)?.TrySetResult();
        }
    }

    public void Closed(ConnectionStream connection) => _connections.TryRemove(connection, out _);
}

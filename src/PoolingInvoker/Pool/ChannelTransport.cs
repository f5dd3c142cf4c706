using System.Collections.Concurrent;

namespace PoolingInvoker;

/// <summary>
/// The connections below one channel, as its handler makes them: one as a rule, one after the other. What comes from them is a sign of life
/// that no answer of a slow method is needed for, and says how many streams the server takes, and when it takes no more.
/// </summary>
internal sealed class ChannelTransport
{
    private readonly ConcurrentDictionary<ConnectionStream, byte> _connections = new();
    private long _signsOfLife;
    private long _callFrames;
    private long _connectionsMade;
    private IConnectionEvents? _events;
    private TaskCompletionSource? _nextSign;
    private Action? _onConnection;
    private TaskCompletionSource? _nextSettings;

    public bool HasConnections => !_connections.IsEmpty;

    /// <summary>How many connections there have been.</summary>
    public long ConnectionsMade => Interlocked.Read(ref _connectionsMade);

    /// <summary>How often something has come, or the other side has taken what it had not taken at once.</summary>
    public long SignsOfLife => Interlocked.Read(ref _signsOfLife);

    /// <summary>How many frames have come that belong to calls.</summary>
    public long CallFrames => Interlocked.Read(ref _callFrames);

    /// <summary>Sets who is told of what the server says of its connections.</summary>
    public void Tell(IConnectionEvents events) => _events = events;

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
            Interlocked.Exchange(ref _onConnection, null)?.Invoke();
            return connection;
        };
    }

    /// <summary>
    /// Connects, without a request: <paramref name="call"/> is one that the handler makes a connection for, and it is cancelled in the moment
    /// in which the transport is connected. The handler goes on to set the connection up, and keeps it. Ends when the server's SETTINGS have
    /// come; throws what the call fails with.
    /// </summary>
    public async Task ConnectAsync(Func<CancellationToken, Task> call, CancellationToken cancellationToken)
    {
        using var calling = CancellationTokenSource.CreateLinkedTokenSource(cancellationToken);
        var settings = new TaskCompletionSource(TaskCreationOptions.RunContinuationsAsynchronously);
        var isConnected = false;
        Interlocked.Exchange(ref _nextSettings, settings);
        Interlocked.Exchange(ref _onConnection, () =>
        {
            isConnected = true;
            calling.Cancel();
        });
        try
        {
            await call(calling.Token).ConfigureAwait(false);
        }
#pragma warning disable CA1031 // It is the pool that cancelled the call.
        catch (Exception) when (isConnected)
#pragma warning restore CA1031
        {
        }
        finally
        {
            Interlocked.Exchange(ref _onConnection, null);
        }

        await settings.Task.WaitAsync(cancellationToken).ConfigureAwait(false);
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
    }

    public void SawSettings(int maxStreams)
    {
        _events?.ServerTakes(maxStreams);
        Interlocked.Exchange(ref _nextSettings, null)?.TrySetResult();
    }

    public void SawGoAway() => _events?.ServerGoes();

    public void SawProgress()
    {
        Interlocked.Increment(ref _signsOfLife);
        if (Volatile.Read(ref _nextSign) is not null)
        {
            Interlocked.Exchange(ref _nextSign, null)?.TrySetResult();
        }
    }

    public void Closed(ConnectionStream connection)
    {
        _connections.TryRemove(connection, out _);
        if (Volatile.Read(ref _nextSettings) is not null)
        {
            Interlocked.Exchange(ref _nextSettings, null)?.TrySetException(new IOException("The connection was closed before the server had sent its SETTINGS."));
        }
    }
}

/// <summary>What a server says of the connections of a channel.</summary>
internal interface IConnectionEvents
{
    /// <summary>It takes so many streams at a time.</summary>
    void ServerTakes(int maxStreams);

    /// <summary>It takes no new ones on the connection that there is.</summary>
    void ServerGoes();
}

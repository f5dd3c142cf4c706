using System.Collections.Concurrent;
using System.Net.Sockets;
using System.Runtime.ExceptionServices;

namespace PoolingInvoker;

/// <summary>
/// The connections below one channel: one as a rule, one after the other. The pool has them opened, the handler of the channel takes them,
/// and what happens to them is kept as facts: what a failed attempt is judged by. What comes from them is a sign of life, for which no
/// answer of a slow method is needed, and says how many streams the server takes, and when it takes no more.
/// </summary>
/// <remarks>A channel that could not connect stays so, and fails its calls with the cause, until it is replaced or told to connect.</remarks>
internal sealed class ChannelTransport(TimeProvider time) : IDisposable
{
    // A server that closes a connection sooner does not wait for a call.
    private static readonly TimeSpan PatienceOfServers = TimeSpan.FromSeconds(1);

    private readonly object _lock = new();
    private readonly ConcurrentDictionary<ConnectionStream, byte> _connections = new();
#pragma warning disable CA2213 // It has no timer, and an attempt to connect may still look at it.
    private readonly CancellationTokenSource _disposing = new();
#pragma warning restore CA2213
    private long _connectionsMade;
    private long _signsOfLife;
    private long _callFrames;
    private TaskCompletionSource? _nextSign; // of life
    private ChannelDialer? _dialer;

    // Guarded by the lock.
    private (Task<ConnectionStream> Opened, CancellationTokenSource Stop)? _dialling; // the attempt to connect that is under way
    private volatile ExceptionDispatchInfo? _failure; // of the last attempt to connect; read without the lock, too
    private ConnectionFact _lastFact;
    private volatile int _facts; // as many as there were
    private bool _isAwaited;
    private bool _isLost; // the connection that the handler has taken; it may not know that yet, and send requests on it

    public event Action<int>? SettingsCame; // the server takes so many streams at a time
    public event Action? GoAwayCame; // the server takes no new streams on the connection that there is
    public event Action? ConnectionLost; // the server has closed or reset the connection

    public bool IsWrapped { get; init; } // by handlers of the user's, which may answer without a connection
    public bool HasConnections => !_connections.IsEmpty;
    public long ConnectionsMade => Interlocked.Read(ref _connectionsMade);
    public RefusalDelivery Refusals { get; } = new();
    public long SignsOfLife => Interlocked.Read(ref _signsOfLife); // reads, and writes that had to wait for the other side
    public long CallFrames => Interlocked.Read(ref _callFrames); // those that have come and belong to calls

    /// <summary>Whether something has come that has not been read yet: a sign of life that this process has not got to.</summary>
    public bool HasUnread => _connections.Keys.Any(static connection => connection.HasUnread);

    /// <summary>Whether the channel could not connect, or is disposed. Each pick asks.</summary>
    public bool IsBroken => _failure is not null || _disposing.IsCancellationRequested;

    public ConnectivityState State
    {
        get
        {
            lock (_lock)
            {
                return _disposing.IsCancellationRequested ? ConnectivityState.Shutdown
                    : _failure is not null ? ConnectivityState.TransientFailure
                    : HasConnections ? ConnectivityState.Ready
                    : _dialling is not null ? ConnectivityState.Connecting
                    : ConnectivityState.Idle;
            }
        }
    }

    /// <summary>
    /// Calls wait for the connection that there is. Where it ends before they have come to use it, they fail, as on a bare channel, which has
    /// sent them by then.
    /// </summary>
    public void FailIfLost()
    {
        lock (_lock)
        {
            _isAwaited = true;
            if (!_connections.Keys.Any(static connection => connection.IsOpen))
            {
                Fail(NewEndedException());
            }
        }
    }

    /// <summary>Has a handler, which has not connected yet, take its connections from here.</summary>
    public void Supply(SocketsHttpHandler handler, Uri name, Uri address)
    {
        _dialer = new ChannelDialer(handler, name, address);
        handler.UseProxy = false; // the dialer has been through it
        handler.ConnectTimeout = Timeout.InfiniteTimeSpan;
        handler.ConnectCallback = TakeAsync;
        handler.PlaintextStreamFilter = (context, _) => new(_connections.Keys.First(connection => connection.Wire == context.PlaintextStream) as Stream);
    }

    /// <summary>A mark for <see cref="FactSince"/>.</summary>
    public int Mark => _facts;

    /// <summary>What has happened since a mark.</summary>
    public ConnectionFact FactSince(int mark)
    {
        lock (_lock)
        {
            return _facts != mark || _isLost ? _lastFact : _dialer is { HandlerPings: true } ? ConnectionFact.UnharmedOrSilent : ConnectionFact.Unharmed;
        }
    }

    /// <summary>Connects, up to the SETTINGS of the server, if there is no connection. Joins an attempt that is under way; to cancel the wait does not end it.</summary>
    public Task ConnectAsync(CancellationToken cancellationToken) =>
        HasConnections ? Task.CompletedTask : DialAsync(afresh: true).WaitAsync(cancellationToken);

    /// <summary>Sends a ping on each connection, and waits for a sign of life on any of them, whatever it is.</summary>
    public async Task PingAsync(CancellationToken cancellationToken)
    {
        var sign = new TaskCompletionSource(TaskCreationOptions.RunContinuationsAsynchronously);
        sign = Interlocked.CompareExchange(ref _nextSign, sign, null) ?? sign;
        foreach (var connection in _connections.Keys)
        {
            connection.PingAsync(cancellationToken).Observe(); // broken meanwhile, or still about to write
        }

        await sign.Task.WaitAsync(cancellationToken).ConfigureAwait(false);
    }

    /// <summary>Breaks all connections, and ends the attempt to make one: the calls on them end as if the server had.</summary>
    public void Abort(string reason)
    {
        CancellationTokenSource? stop;
        lock (_lock)
        {
            Note(ConnectionFact.Lost);
            stop = _dialling?.Stop;
        }

        stop?.CancelQuietly();
        foreach (var connection in _connections.Keys)
        {
            connection.Abort(reason);
        }
    }

    /// <summary>Closes what the handler may have left open. The channel is disposed.</summary>
    public void Dispose()
    {
        _disposing.CancelQuietly();
        foreach (var connection in _connections.Keys)
        {
            connection.Dispose();
        }
    }

    public void SawLife(int callFrames = 0)
    {
        Interlocked.Increment(ref _signsOfLife);
        if (callFrames > 0)
        {
            Interlocked.Add(ref _callFrames, callFrames);
        }

        if (Volatile.Read(ref _nextSign) is not null)
        {
            Interlocked.Exchange(ref _nextSign, null)?.TrySetResult();
        }
    }

    public void SawSettings(int maxStreams) => SettingsCame?.Invoke(maxStreams);

    public void SawGoAway()
    {
        Note(ConnectionFact.Lost);
        GoAwayCame?.Invoke();
    }

    public void SawEnd(ConnectionStream connection)
    {
        lock (_lock)
        {
            // Nothing had come of a call, and the next connection would end the same way. One that nobody has used is as one that served, and so
            // is one that its server had kept for a while: a call may take long to come to it, as with call credentials.
            var isAwaited = _isAwaited && time.GetElapsedTime(connection.Opening.OpenedAt) < PatienceOfServers;
            if (connection.Frames.CallFrames == 0 && (connection.Opening.IsTaken || isAwaited) && _dialling is null)
            {
                Fail(new IOException("The connection was closed before anything had come of a call."));
            }

            _isLost |= connection.Opening.IsTaken;
            Note(ConnectionFact.Lost);
        }

        ConnectionLost?.Invoke();
    }

    public void Closed(ConnectionStream connection) => _connections.TryRemove(connection, out _);

    private async ValueTask<Stream> TakeAsync(SocketsHttpConnectionContext context, CancellationToken cancellationToken)
    {
        if (_dialer!.Elsewhere(context) is { } elsewhere)
        {
            return (await OpenAsync(elsewhere, cancellationToken).ConfigureAwait(false)).Wire;
        }

        if (TakeOpened(_dialer.IdleTimeout) is { } opened)
        {
            return opened;
        }

        var dialled = await DialAsync(afresh: false).WaitAsync(cancellationToken).ConfigureAwait(false);
        return TakeOpened(TimeSpan.MaxValue) ?? (!dialled.Opening.IsTaken ? throw Fail(NewEndedException())
            : (await OpenAsync(_dialer.Own, cancellationToken).ConfigureAwait(false)).Wire);
    }

    // Null if there is no connection, or it has ended, or it has waited for too long, or its server takes no calls on it: the handler would fail
    // the call, which another connection may serve.
    private Stream? TakeOpened(TimeSpan patience)
    {
        foreach (var connection in _connections.Keys)
        {
            var opening = connection.Opening;
            if (connection.Frames.HasGoneAway || time.GetElapsedTime(opening.OpenedAt) >= patience)
            {
                opening.Discard();
            }
            else if (opening.Take())
            {
                lock (_lock)
                {
                    _isLost = _isAwaited = false;
                }

                return connection.Wire;
            }
        }

        return null;
    }

    // Begins to connect, unless that is under way. What it failed with the last time counts, unless it is to try afresh.
    private Task<ConnectionStream> DialAsync(bool afresh)
    {
        lock (_lock)
        {
            ObjectDisposedException.ThrowIf(_disposing.IsCancellationRequested, this);
            if (_dialling is { } dialling)
            {
                return dialling.Opened;
            }

            if (_failure is { } failure && !afresh)
            {
                Note(FactOf(failure.SourceException));
                failure.Throw();
            }

            _failure = null;
            var stop = new CancellationTokenSource();
            using (ExecutionContext.SuppressFlow())
            {
                _dialling = (Task.Run(() => OpenAsync(elsewhere: null, stop.Token)), stop);
            }

            _dialling.Value.Opened.Observe();
            return _dialling.Value.Opened;
        }
    }

    private static IOException NewEndedException() => new("The connection was closed before it could be used.");

    // All connections are opened here, and what that fails with is what an attempt is judged by. One to elsewhere is for who asked for it.
    private async Task<ConnectionStream> OpenAsync((Uri Address, string? Host)? elsewhere, CancellationToken cancellationToken)
    {
        using var timeout = new CancellationTokenSource();
        using var timer = timeout.CancelAfter(_dialer!.Timeout, time);
        using var stop = CancellationTokenSource.CreateLinkedTokenSource(cancellationToken, timeout.Token, _disposing.Token);
        ConnectionStream? connection = null;
        try
        {
            var (wire, plaintext, socket) = await _dialer.DialAsync(elsewhere, stop.Token).ConfigureAwait(false);
            connection = new ConnectionStream(plaintext, this, wire) { Socket = socket };
            await connection.Opening.OpenAsync(time, stop.Token).ConfigureAwait(false);
            if (elsewhere is not null)
            {
                connection.Opening.Take();
            }

            Interlocked.Increment(ref _connectionsMade);
            _connections.TryAdd(connection, 0);
            connection.Opening.Watch();
            stop.Token.ThrowIfCancellationRequested();
            lock (_lock)
            {
                _dialling = !connection.IsOpen ? throw NewEndedException() : elsewhere is null ? null : _dialling;
            }

            return connection;
        }
        catch (Exception exception)
        {
            if (connection is not null)
            {
                await connection.DisposeAsync().ConfigureAwait(false);
            }

            var error = !stop.IsCancellationRequested ? ChannelDialer.Cause(exception) : new SocketException(
                (int)SocketError.TimedOut,
                timeout.IsCancellationRequested ? $"No connection could be made within {_dialer.Timeout.TotalSeconds:0.###} s." : "The attempt to connect was given up.");
            lock (_lock)
            {
                (_dialling, _failure) = elsewhere is null ? (null, ExceptionDispatchInfo.Capture(error)) : (_dialling, _failure);
                Note(FactOf(error));
            }

            throw error;
        }
    }

    private static ConnectionFact FactOf(Exception error) => ChannelDialer.IsForGood(error) ? ConnectionFact.NotCompatible : ConnectionFact.NotConnected;

    private Exception Fail(Exception error)
    {
        lock (_lock)
        {
            _failure = ExceptionDispatchInfo.Capture(error);
            Note(FactOf(error));
            return error;
        }
    }

    private void Note(ConnectionFact fact)
    {
        lock (_lock)
        {
            _lastFact = fact;
            _facts++;
        }
    }
}

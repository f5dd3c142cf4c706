using System.Collections.Concurrent;
using System.Net.Sockets;
using System.Runtime.ExceptionServices;
using Grpc.Core;

namespace PoolingInvoker;

/// <summary>
/// The connections below one channel: one as a rule, one after the other. The pool has them opened, the handler of the channel takes them,
/// and what happens to them is kept as facts: what a failed attempt is judged by. What comes from them is a sign of life, for which no
/// answer of a slow method is needed, and says how many streams the server takes, and when it takes no more.
/// </summary>
/// <remarks>A channel that could not connect stays so, and fails its calls with the cause, until it is replaced or told to connect.</remarks>
internal sealed class ChannelTransport(TimeProvider time) : IDisposable
{
    private readonly object _lock = new();
    private readonly ConcurrentDictionary<ConnectionStream, byte> _connections = new();
#pragma warning disable CA2213 // It has no timer, and an attempt to connect may still look at it.
    private readonly CancellationTokenSource _disposing = new();
#pragma warning restore CA2213
    private long _signsOfLife;
    private long _callFrames;
    private long _connectionsMade;
    private IConnectionEvents? _events;
    private TaskCompletionSource? _nextSign;

    // Guarded by the lock.
    private ChannelDialer? _dialer;
    private Dial? _dial; // the attempt to connect that is under way
    private ConnectionStream? _ready; // connected, and not yet taken by the handler
    private (ExceptionDispatchInfo Exception, ConnectionFact Fact)? _failure; // of the last attempt to connect
    private ConnectionFact _lastFact;
    private int _facts;
    private bool _disposed;
    private bool _isBroken; // written under the lock, read without it

    public bool HasConnections => !_connections.IsEmpty;

    /// <summary>How many connections there have been.</summary>
    public long ConnectionsMade => Interlocked.Read(ref _connectionsMade);

    /// <summary>How often something has come, or the other side has taken what it had not taken at once.</summary>
    public long SignsOfLife => Interlocked.Read(ref _signsOfLife);

    /// <summary>How many frames have come that belong to calls.</summary>
    public long CallFrames => Interlocked.Read(ref _callFrames);

    /// <summary>Whether the channel could not connect, or is disposed: the question of each pick.</summary>
    public bool IsBroken => Volatile.Read(ref _isBroken);

    /// <summary>Where the channel stands, in the words of gRPC.</summary>
    public ConnectivityState State
    {
        get
        {
            lock (_lock)
            {
                return _disposed ? ConnectivityState.Shutdown
                    : _failure is not null ? ConnectivityState.TransientFailure
                    : HasConnections ? ConnectivityState.Ready
                    : _dial is not null ? ConnectivityState.Connecting
                    : ConnectivityState.Idle;
            }
        }
    }

    /// <summary>Whether handlers of the user's lie above the connections, which may answer without one.</summary>
    public bool IsWrapped { get; init; }

    /// <summary>Sets who is told of what the server says of its connections.</summary>
    public void Tell(IConnectionEvents events) => _events = events;

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
    public int Mark => Volatile.Read(ref _facts);

    /// <summary>What has happened since a mark.</summary>
    public ConnectionFact FactSince(int mark)
    {
        lock (_lock)
        {
            return _facts != mark ? _lastFact : _dialer is { HandlerPings: true } ? ConnectionFact.UnharmedOrSilent : ConnectionFact.Unharmed;
        }
    }

    /// <summary>
    /// Connects, if there is no connection, up to the SETTINGS of the server. Throws what that fails with. An attempt that is under way is
    /// joined, and goes on when the wait for it is cancelled.
    /// </summary>
    public Task ConnectAsync(CancellationToken cancellationToken) =>
        HasConnections ? Task.CompletedTask : DialAsync(afresh: true).WaitAsync(cancellationToken);

    /// <summary>Sends a ping on each connection that has begun, and waits for a sign of life on any of them, whatever it is.</summary>
    public async Task PingAsync(CancellationToken cancellationToken)
    {
        var sign = new TaskCompletionSource(TaskCreationOptions.RunContinuationsAsynchronously);
        sign = Interlocked.CompareExchange(ref _nextSign, sign, null) ?? sign;
        foreach (var connection in _connections.Keys.Where(static connection => connection.IsHttp2))
        {
            connection.PingAsync(cancellationToken).Observe(); // broken meanwhile, or still about to write
        }

        await sign.Task.WaitAsync(cancellationToken).ConfigureAwait(false);
    }

    /// <summary>Breaks all connections, and ends the attempt to make one: the calls on them end as if the server had.</summary>
    public void Abort()
    {
        Dial? dial;
        lock (_lock)
        {
            NoteUnsynchronized(ConnectionFact.Lost);
            dial = _dial;
        }

        dial?.Stop.Cancel();
        foreach (var connection in _connections.Keys)
        {
            connection.Abort();
        }
    }

    /// <summary>Closes what the handler may have left open. The channel is disposed.</summary>
    public void Dispose()
    {
        lock (_lock)
        {
            _disposed = _isBroken = true;
            _ready = null;
        }

        _disposing.Cancel();
        foreach (var connection in _connections.Keys)
        {
            connection.Dispose();
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

    public void SawSettings(int maxStreams) => _events?.ServerTakes(maxStreams);

    public void SawGoAway()
    {
        lock (_lock)
        {
            NoteUnsynchronized(ConnectionFact.Lost);
        }

        _events?.ServerGoes();
    }

    public void SawProgress()
    {
        Interlocked.Increment(ref _signsOfLife);
        if (Volatile.Read(ref _nextSign) is not null)
        {
            Interlocked.Exchange(ref _nextSign, null)?.TrySetResult();
        }
    }

    /// <summary>The peer has closed or reset a connection.</summary>
    /// <param name="isInVain">Whether the handler had taken it, and nothing had come of a call: the next would end the same way.</param>
    public void SawEnd(bool isInVain)
    {
        lock (_lock)
        {
            if (isInVain && _dial is null)
            {
                FailUnsynchronized(new IOException("The connection was closed before anything had come of a call."));
            }

            NoteUnsynchronized(ConnectionFact.Lost);
        }

        _events?.ConnectionLost();
    }

    /// <summary>A connection is there no more.</summary>
    public void Closed(ConnectionStream connection)
    {
        _connections.TryRemove(connection, out _);
        lock (_lock)
        {
            _ready = _ready == connection ? null : _ready;
        }
    }

    private async ValueTask<Stream> TakeAsync(SocketsHttpConnectionContext context, CancellationToken cancellationToken)
    {
        if (_dialer!.Elsewhere(context) is { } elsewhere)
        {
            return await TakeElsewhereAsync(elsewhere, cancellationToken).ConfigureAwait(false);
        }

        if (TakeReady() is { } ready)
        {
            if ((_dialer.IdleTimeout == Timeout.InfiniteTimeSpan || time.GetElapsedTime(ready.OpenedAt) < _dialer.IdleTimeout) && ready.Take() is { } wire)
            {
                return wire;
            }

            await ready.DisposeAsync().ConfigureAwait(false);
        }

        await DialAsync(afresh: false).WaitAsync(cancellationToken).ConfigureAwait(false);
        if (TakeReady()?.Take() is { } dialled)
        {
            return dialled;
        }

        lock (_lock)
        {
            FailUnsynchronized(NewEndedException());
            _failure!.Value.Exception.Throw();
            return null!;
        }

        ConnectionStream? TakeReady()
        {
            lock (_lock)
            {
                (var taken, _ready) = (_ready, null);
                return taken;
            }
        }
    }

    private async Task<Stream> TakeElsewhereAsync((Uri Address, string? Host) elsewhere, CancellationToken cancellationToken)
    {
        using var stop = CancellationTokenSource.CreateLinkedTokenSource(cancellationToken, _disposing.Token);
        try
        {
            return (await OpenAsync(elsewhere, stop.Token).ConfigureAwait(false)).Take() ?? throw NewEndedException();
        }
        catch (Exception exception)
        {
            lock (_lock)
            {
                NoteUnsynchronized(FactOf(exception));
            }

            throw ChannelDialer.Cause(exception);
        }
    }

    // Begins to connect, unless that is under way. What it failed with the last time counts, unless it is to try afresh.
    private Task DialAsync(bool afresh)
    {
        Dial dial;
        lock (_lock)
        {
            ObjectDisposedException.ThrowIf(_disposed, this);
            if (_dial is not null)
            {
                return _dial.Opened.Task;
            }

            if (_failure is { } failure && !afresh)
            {
                NoteUnsynchronized(failure.Fact);
                failure.Exception.Throw();
            }

            _failure = null;
            _isBroken = false;
            _dial = dial = new Dial();
        }

        dial.Opened.Task.Observe();
        ThreadPool.UnsafeQueueUserWorkItem(_ => RunAsync(dial).Observe(), state: null); // without the context of a caller
        return dial.Opened.Task;
    }

    private async Task RunAsync(Dial dial)
    {
        using var timeout = new CancellationTokenSource(_dialer!.Timeout, time);
        using var stop = CancellationTokenSource.CreateLinkedTokenSource(dial.Stop.Token, timeout.Token, _disposing.Token);
        ConnectionStream? connection = null;
        Exception? error = null;
        try
        {
            connection = await OpenAsync(elsewhere: null, stop.Token).ConfigureAwait(false);
        }
#pragma warning disable CA1031 // Whoever waits for the connection gets the exception.
        catch (Exception exception)
#pragma warning restore CA1031
        {
            error = !stop.IsCancellationRequested ? ChannelDialer.Cause(exception) : new SocketException(
                (int)SocketError.TimedOut,
                timeout.IsCancellationRequested ? $"No connection could be made within {_dialer.Timeout.TotalSeconds:0.###} s." : "The attempt to connect was given up.");
        }

        lock (_lock)
        {
            _dial = null;
            if (error is not null)
            {
                FailUnsynchronized(error);
            }
            else if (!_disposed && connection!.IsOpen)
            {
                _ready = connection;
            }
        }

        if (error is not null)
        {
            dial.Opened.SetException(error);
        }
        else
        {
            dial.Opened.SetResult();
        }
    }

    private static IOException NewEndedException() => new("The connection was closed before it could be used.");

    private async Task<ConnectionStream> OpenAsync((Uri Address, string? Host)? elsewhere, CancellationToken cancellationToken)
    {
        var (transport, plaintext) = await _dialer!.DialAsync(elsewhere, cancellationToken).ConfigureAwait(false);
        var connection = new ConnectionStream(plaintext, this, transport);
        try
        {
            await connection.OpenAsync(time, cancellationToken).ConfigureAwait(false);
        }
        catch
        {
            await connection.DisposeAsync().ConfigureAwait(false);
            throw;
        }

        Interlocked.Increment(ref _connectionsMade);
        _connections.TryAdd(connection, 0);
        connection.Watch();
        if (_disposing.IsCancellationRequested)
        {
            await connection.DisposeAsync().ConfigureAwait(false);
        }

        return connection;
    }

    private void FailUnsynchronized(Exception error)
    {
        _isBroken = true;
        _failure = (ExceptionDispatchInfo.Capture(error), FactOf(error));
        NoteUnsynchronized(_failure.Value.Fact);
    }

    private static ConnectionFact FactOf(Exception error) => ChannelDialer.IsForGood(error) ? ConnectionFact.NotCompatible : ConnectionFact.NotConnected;

    private void NoteUnsynchronized(ConnectionFact fact)
    {
        _lastFact = fact;
        Volatile.Write(ref _facts, _facts + 1);
    }

    /// <summary>An attempt to connect.</summary>
    private sealed class Dial
    {
        public TaskCompletionSource Opened { get; } = new(TaskCreationOptions.RunContinuationsAsynchronously);

        public CancellationTokenSource Stop { get; } = new();
    }
}

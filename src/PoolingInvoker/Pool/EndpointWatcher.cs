using System.Diagnostics.CodeAnalysis;
using Microsoft.Extensions.Primitives;
using Microsoft.Extensions.ServiceDiscovery;

namespace PoolingInvoker;

/// <summary>
/// Keeps the list of endpoints of a pool: resolves it, waits until what it was resolved from says that it has changed, and resolves it
/// again. A resolution that fails leaves the last good list as it is, and is tried again after a pause. There is never more than one at a
/// time. Whatever asks for one - a change, a failed connection, the end of a pause - sets the one timer, and a thread of the pool resolves:
/// nobody who signals is made to wait, and no foreign code runs under the lock.
/// </summary>
/// <remarks>A callback that is under way when the watcher is disposed may still end afterwards.</remarks>
internal sealed class EndpointWatcher : IDisposable
{
    /// <summary>How far apart resolutions are that were asked for because connections failed.</summary>
    public static readonly TimeSpan RefreshPause = TimeSpan.FromSeconds(5);

    /// <summary>How far apart resolutions are at least: a source that says of each list that it has changed does not keep a processor busy.</summary>
    public static readonly TimeSpan ShortestPause = TimeSpan.FromSeconds(1);

    /// <summary>When a list is resolved again whose source cannot say that it has changed: as often as service discovery does.</summary>
    public static readonly TimeSpan PollInterval = TimeSpan.FromSeconds(60);

    // https://github.com/grpc/grpc/blob/master/doc/connection-backoff.md
    private const double Multiplier = 1.6;
    private const double Jitter = 0.2;
    private static readonly TimeSpan InitialBackoff = TimeSpan.FromSeconds(1);
    private static readonly TimeSpan LongestBackoff = TimeSpan.FromSeconds(120);

    private readonly object _lock = new();
    private readonly Uri _name;
    private readonly Func<CancellationToken, ValueTask<ServiceEndpointSource>> _resolve;
    private readonly TimeProvider _time;
    private readonly Random _random;
    private readonly Action<IReadOnlyList<ChannelEndpoint>> _onEndpoints;
    private readonly Action<Exception> _onError;
    private readonly CancellationTokenSource _stop = new();
    private readonly CancellationToken _stopping;
    private readonly Link _link;
    private readonly ITimer _timer;

    private bool _disposed;
    private bool _isStarted;
    private bool _isResolving;
    private bool _isFailing;
    private int _resolution; // its number
    private long _resolvedAt;
    private bool _changed; // while it was being resolved
    private TimeSpan? _pause; // until the next resolution, since _pausedAt
    private long _pausedAt;
    private TimeSpan _nextBackoff = InitialBackoff;
    private IDisposable? _changeRegistration;
    private Task<IReadOnlyList<ChannelEndpoint>>? _endpoints;
    private TaskCompletionSource<IReadOnlyList<ChannelEndpoint>>? _first;
    private int _waiting;

    /// <param name="name">The name of the pool: http or https, with what endpoints have no port of their own for.</param>
    /// <param name="resolve">Resolves the endpoints.</param>
    /// <param name="time">The clock.</param>
    /// <param name="random">Gives the jitter.</param>
    /// <param name="onEndpoints">Is told each list that is not the last one: distinct endpoints, at least one. Does not throw.</param>
    /// <param name="onError">Is told why a resolution failed. Does not throw.</param>
    public EndpointWatcher(
        Uri name,
        Func<CancellationToken, ValueTask<ServiceEndpointSource>> resolve,
        TimeProvider time,
        Random random,
        Action<IReadOnlyList<ChannelEndpoint>> onEndpoints,
        Action<Exception> onError)
    {
        _name = name;
        _resolve = resolve;
        _time = time;
        _random = random;
        _onEndpoints = onEndpoints;
        _onError = onError;
        _stopping = _stop.Token;
        _link = new Link(this);
        using (ExecutionContext.SuppressFlow())
        {
            _timer = time.CreateTimer(static state => ((Link)state!).Queue(), _link, Timeout.InfiniteTimeSpan, Timeout.InfiniteTimeSpan);
        }
    }

    /// <summary>The last good list, or null if there is none yet.</summary>
    public IReadOnlyList<ChannelEndpoint>? Current
    {
        get
        {
            lock (_lock)
            {
                return _endpoints?.Result;
            }
        }
    }

    /// <summary>Begins, if it has not begun yet.</summary>
    public void Start()
    {
        lock (_lock)
        {
            StartUnsynchronized();
        }
    }

    /// <summary>
    /// Gives the last good list, or waits for the first one, and throws why a resolution failed that ends meanwhile. Begins, if it has
    /// not begun yet.
    /// </summary>
    /// <exception cref="ObjectDisposedException">The watcher is disposed.</exception>
    public Task<IReadOnlyList<ChannelEndpoint>> FirstAsync(CancellationToken cancellationToken)
    {
        lock (_lock)
        {
            if (_disposed)
            {
                return Task.FromException<IReadOnlyList<ChannelEndpoint>>(Disposed());
            }

            StartUnsynchronized();
            if (_endpoints is not null)
            {
                return _endpoints;
            }

            _first ??= new TaskCompletionSource<IReadOnlyList<ChannelEndpoint>>(TaskCreationOptions.RunContinuationsAsynchronously);
            _waiting++;
            _link.Hold(this);
            return WaitAsync(_first, cancellationToken);
        }
    }

    /// <summary>
    /// Says that an endpoint could not be reached: the list may be out of date. It is resolved now, or <see cref="RefreshPause"/> after the
    /// last time. A resolution that is tried again after a pause has its own.
    /// </summary>
    public void RefreshSoon()
    {
        lock (_lock)
        {
            StartUnsynchronized();
            if (!_disposed && !_isResolving && !_isFailing && _resolution > 0)
            {
                PauseUnsynchronized(RefreshPause - _time.GetElapsedTime(_resolvedAt));
            }
        }
    }

    public void Dispose()
    {
        IDisposable? registration;
        TaskCompletionSource<IReadOnlyList<ChannelEndpoint>>? first;
        lock (_lock)
        {
            if (_disposed)
            {
                return;
            }

            _disposed = true;
            _pause = null;
            (registration, _changeRegistration) = (_changeRegistration, null);
            (first, _first) = (_first, null);
        }

        _timer.Dispose();
        Release(registration);
        StopAsync().Observe();
        Fail(first, Disposed());
    }

    private async Task StopAsync()
    {
        await _stop.CancelAsync().ConfigureAwait(false);
        _stop.Dispose();
    }

    private async Task<IReadOnlyList<ChannelEndpoint>> WaitAsync(TaskCompletionSource<IReadOnlyList<ChannelEndpoint>> first, CancellationToken cancellationToken)
    {
        try
        {
            return await first.Task.WaitAsync(cancellationToken).ConfigureAwait(false);
        }
        finally
        {
            lock (_lock)
            {
                if (--_waiting == 0)
                {
                    _link.LetGo();
                }
            }
        }
    }

    private void StartUnsynchronized()
    {
        if (!_isStarted && !_disposed)
        {
            _isStarted = true;
            PauseUnsynchronized(TimeSpan.Zero);
        }
    }

    // Sets when the next resolution is. Of two wishes the sooner one counts. The timer, which may fire at once, takes no lock.
    private void PauseUnsynchronized(TimeSpan pause)
    {
        if (_pause is not null && RemainingUnsynchronized() <= pause)
        {
            return;
        }

        _pause = pause;
        _pausedAt = _time.GetTimestamp();
        if (pause <= TimeSpan.Zero)
        {
            _link.Queue();
        }
        else
        {
            _timer.Change(pause, Timeout.InfiniteTimeSpan);
        }
    }

    private TimeSpan RemainingUnsynchronized() => _pause!.Value - _time.GetElapsedTime(_pausedAt);

    private void Changed(int resolution)
    {
        lock (_lock)
        {
            if (resolution != _resolution || _disposed)
            {
                return;
            }

            if (_isResolving)
            {
                _changed = true;
            }
            else
            {
                PauseUnsynchronized(ShortestPause - _time.GetElapsedTime(_resolvedAt));
            }
        }
    }

    private void Resolve()
    {
        IDisposable? registration;
        lock (_lock)
        {
            if (_disposed || _isResolving || _pause is null)
            {
                return;
            }

            if (RemainingUnsynchronized() is var remaining && remaining > TimeSpan.Zero)
            {
                // A timer that was set again when it had fired already, or one that is a little early.
                _timer.Change(remaining, Timeout.InfiniteTimeSpan);
                return;
            }

            _pause = null;
            _changed = false;
            _isResolving = true;
            _resolvedAt = _time.GetTimestamp();
            _resolution++;
            (registration, _changeRegistration) = (_changeRegistration, null);
        }

        Release(registration);
        ResolveAsync(_link, _resolve, _stopping).Observe();
    }

    // Static, as a resolution that hangs is no reason for a forgotten watcher to live.
    private static async Task ResolveAsync(Link link, Func<CancellationToken, ValueTask<ServiceEndpointSource>> resolve, CancellationToken stop)
    {
        ServiceEndpointSource? source = null;
        Exception? error = null;
        try
        {
            source = await resolve(stop).ConfigureAwait(false);
        }
#pragma warning disable CA1031 // Whatever it is, it is told, and tried again.
        catch (Exception exception)
#pragma warning restore CA1031
        {
            error = exception;
        }

        if (link.TryGet(out var watcher))
        {
            watcher.Resolved(source, error);
        }
    }

    // No other resolution begins before the end of this.
    private void Resolved(ServiceEndpointSource? source, Exception? error)
    {
        try
        {
            IReadOnlyList<ChannelEndpoint> endpoints = [];
            if (error is null)
            {
                try
                {
                    endpoints = Read(source);
                }
#pragma warning disable CA1031 // As above.
                catch (Exception exception)
#pragma warning restore CA1031
                {
                    error = exception;
                }
            }

            if (error is null)
            {
                Take(endpoints);
            }
            else
            {
                Failed(error);
            }
        }
        finally
        {
            Watch(source, hasFailed: error is not null);
        }
    }

    private ChannelEndpoint[] Read(ServiceEndpointSource? source)
    {
        ChannelEndpoint[] endpoints = [.. (source?.Endpoints ?? []).Select(endpoint => ChannelEndpoint.From(endpoint.EndPoint, _name)).Distinct()];
        return endpoints.Length > 0 ? endpoints : throw new InvalidOperationException($"No endpoint was found for '{_name.Authority}'.");
    }

    private void Take(IReadOnlyList<ChannelEndpoint> endpoints)
    {
        TaskCompletionSource<IReadOnlyList<ChannelEndpoint>>? first;
        lock (_lock)
        {
            _isFailing = false;
            _nextBackoff = InitialBackoff;
            if (_disposed || (_endpoints is not null && _endpoints.Result.ToHashSet().SetEquals(endpoints)))
            {
                return;
            }

            (first, _first) = (_first, null);
            _endpoints = Task.FromResult(endpoints);
        }

        // Statement order is important: who waits finds that the pool knows the list.
        _onEndpoints(endpoints);
        first?.SetResult(endpoints);
    }

    private void Failed(Exception error)
    {
        TaskCompletionSource<IReadOnlyList<ChannelEndpoint>>? first;
        lock (_lock)
        {
            if (_disposed)
            {
                return;
            }

            _isFailing = true;
            (first, _first) = (_first, null);
        }

        _onError(error);
        Fail(first, error);
    }

    private void Watch(ServiceEndpointSource? source, bool hasFailed)
    {
        // The number does not change until the end of this.
        var registration = source is null ? null : Register(source.ChangeToken, _resolution);
        lock (_lock)
        {
            _isResolving = false;
            if (!_disposed)
            {
                (_changeRegistration, registration) = (registration, null);
                if (hasFailed)
                {
                    PauseUnsynchronized(_nextBackoff * (1 + (Jitter * ((2 * _random.NextDouble()) - 1))));
                    _nextBackoff = _nextBackoff * Multiplier < LongestBackoff ? _nextBackoff * Multiplier : LongestBackoff;
                }
                else if (_changeRegistration is null)
                {
                    PauseUnsynchronized(PollInterval);
                }

                if (_changed)
                {
                    PauseUnsynchronized(ShortestPause - _time.GetElapsedTime(_resolvedAt));
                }
            }
        }

        Release(registration);
    }

    // Null if the token does not call back. One that has changed already calls back from within.
    private IDisposable? Register(IChangeToken token, int resolution)
    {
        try
        {
            using (ExecutionContext.SuppressFlow())
            {
                return token.ActiveChangeCallbacks
                    ? token.RegisterChangeCallback(static state => ((Change)state!).Tell(), new Change(_link, resolution))
                    : null;
            }
        }
#pragma warning disable CA1031 // The list is good; when it changes cannot be known.
        catch (Exception exception)
#pragma warning restore CA1031
        {
            _onError(exception);
            return null;
        }
    }

    private void Release(IDisposable? registration)
    {
        try
        {
            registration?.Dispose();
        }
#pragma warning disable CA1031 // It is of a list that nobody looks at any more.
        catch (Exception exception)
#pragma warning restore CA1031
        {
            _onError(exception);
        }
    }

    private static void Fail(TaskCompletionSource<IReadOnlyList<ChannelEndpoint>>? first, Exception error)
    {
        if (first is not null)
        {
            first.SetException(error);
            _ = first.Task.Exception; // all who waited may have gone
        }
    }

    private ObjectDisposedException Disposed() => new(GetType().FullName);

    /// <summary>
    /// What timers, change tokens and resolutions hold: it leads to the watcher, and keeps it alive, and with it the pool, only while
    /// somebody waits for the first list. They could be reached from nowhere else.
    /// </summary>
    private sealed class Link(EndpointWatcher watcher) : IThreadPoolWorkItem
    {
        private readonly WeakReference<EndpointWatcher> _watcher = new(watcher);
        private EndpointWatcher? _held;

        public void Hold(EndpointWatcher watcher) => _held = watcher;

        public void LetGo() => _held = null;

        public bool TryGet([NotNullWhen(true)] out EndpointWatcher? watcher) => _watcher.TryGetTarget(out watcher);

        public void Queue() => ThreadPool.UnsafeQueueUserWorkItem(this, preferLocal: false);

        public void Execute()
        {
            if (TryGet(out var watcher))
            {
                watcher.Resolve();
            }
        }
    }

    /// <summary>The change of what was resolved. It is told on a thread of our own: whoever makes a change may hold a lock.</summary>
    private sealed class Change(Link link, int resolution) : IThreadPoolWorkItem
    {
        public void Tell() => ThreadPool.UnsafeQueueUserWorkItem(this, preferLocal: false);

        public void Execute()
        {
            if (link.TryGet(out var watcher))
            {
                watcher.Changed(resolution);
            }
        }
    }
}

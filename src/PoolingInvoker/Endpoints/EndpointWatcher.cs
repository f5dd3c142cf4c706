using Microsoft.Extensions.Primitives;
using Microsoft.Extensions.ServiceDiscovery;

namespace PoolingInvoker;

/// <summary>
/// Keeps the list of endpoints of a pool, in one loop: resolve, and wait until a pause is over, which a change of the source or a failed
/// connection shortens. A resolution that fails leaves the last good list as it is. All foreign code runs in the loop, which has the
/// context of nobody, and never under a lock. The loop keeps no pool alive, and ends with it.
/// </summary>
internal sealed class EndpointWatcher(
    Uri name,
    Func<CancellationToken, ValueTask<ServiceEndpointSource>> resolve,
    TimeProvider time,
    Random random,
    IEndpointListener listener,
    bool keepsAddresses = false,
    Func<ServiceEndpoint, int>? weigh = null,
    Func<ServiceEndpoint, int>? rank = null) : IDisposable
{
    public static readonly TimeSpan RefreshPause = TimeSpan.FromSeconds(5); // between resolutions that failed connections ask for
    public static readonly TimeSpan ShortestPause = TimeSpan.FromSeconds(1); // of a source that says of each list that it has changed
    public static readonly TimeSpan PollInterval = TimeSpan.FromSeconds(60); // of a source that cannot say so: as service discovery does

    private readonly object _lock = new();
    private readonly ReconnectBackoff _backoff = new(time, random, first: TimeSpan.FromSeconds(1), longest: TimeSpan.FromSeconds(120));
    private readonly WeakReference<IEndpointListener> _listener = new(listener);
#pragma warning disable CA2213 // It has no timer, and a resolution may still look at it; the loop disposes each round.
    private readonly CancellationTokenSource _disposing = new();

    // Guarded by the lock.
    private Round? _round;
#pragma warning restore CA2213
    private TaskCompletionSource<IReadOnlyList<ChannelEndpoint>> _endpoints = NewList(); // the last good list, or the first one to come
    private bool _isStarted;

    private IEndpointListener? Listener => _listener.TryGetTarget(out var listener) ? listener : null;
    private bool IsDisposed => _disposing.IsCancellationRequested;

    /// <summary>Gives the last good list, or waits for the first one, and throws why a resolution failed that ends meanwhile.</summary>
    public Task<IReadOnlyList<ChannelEndpoint>> FirstAsync(CancellationToken cancellationToken)
    {
        lock (_lock)
        {
            StartUnsynchronized();
            return _endpoints.Task.WaitAsync(cancellationToken);
        }
    }

    /// <summary>
    /// Says that an endpoint could not be reached: the list may be out of date. It is resolved now, or <see cref="RefreshPause"/> after the
    /// last time. A resolution that is under way, or is tried again after a pause, is not hurried.
    /// </summary>
    public void RefreshSoon()
    {
        lock (_lock)
        {
            StartUnsynchronized();
            if (_round is { HasSucceeded: true })
            {
                _round.EndAfter(RefreshPause);
            }
        }
    }

    public void Dispose()
    {
        lock (_lock)
        {
            if (!IsDisposed)
            {
                _disposing.CancelAsync().Observe();
                _endpoints = _endpoints.Task.IsCompleted ? NewList() : _endpoints;
                FailUnsynchronized(new ObjectDisposedException(GetType().FullName));
                _round?.EndAfter(TimeSpan.Zero);
            }
        }
    }

    private static bool IsTheSame(IReadOnlyList<ChannelEndpoint> last, IReadOnlyList<ChannelEndpoint> now) =>
        last.Select(static endpoint => (endpoint, endpoint.Weight, endpoint.Priority)).ToHashSet()
            .SetEquals(now.Select(static endpoint => (endpoint, endpoint.Weight, endpoint.Priority)));

    private static TaskCompletionSource<IReadOnlyList<ChannelEndpoint>> NewList() => new(TaskCreationOptions.RunContinuationsAsynchronously);

    private void FailUnsynchronized(Exception error)
    {
        _endpoints.TrySetException(error);
        _endpoints.Task.Observe(); // all who waited may have gone
    }

    private void StartUnsynchronized()
    {
        if (!_isStarted && !IsDisposed)
        {
            _isStarted = true;
            ThreadPool.UnsafeQueueUserWorkItem(static watcher => watcher.RunAsync().Observe(), this, preferLocal: false);
        }
    }

    private async Task RunAsync()
    {
        while (NextRound() is { } next)
        {
            using var round = next;
            ServiceEndpointSource? source = null;
            try
            {
                source = await resolve(_disposing.Token).ConfigureAwait(false);
                Resolved(Read(source), round);
            }
            catch (Exception exception) // Whatever it is, it is told, and tried again.
            {
                Failed(exception, round);
            }

            var registration = source is null ? null : Watch(source.ChangeToken, round);
            await round.Over.ConfigureAwait(false);
            TellFailure(() => registration?.Dispose());
        }
    }

    private Round? NextRound()
    {
        lock (_lock)
        {
            return IsDisposed || Listener is null ? null : _round = new Round(time);
        }
    }

    private ChannelEndpoint[] Read(ServiceEndpointSource? source)
    {
        var found = source?.Endpoints ?? [];
        ChannelEndpoint[] endpoints = [.. found
            .Select(endpoint => (keepsAddresses ? ChannelEndpoint.OfService(endpoint, name) : ChannelEndpoint.From(endpoint.EndPoint, name)) with
            {
                Weight = Asked(weigh, endpoint, nameof(ChannelPoolOptions.EndpointWeight), "weight", least: 1, ChannelAddress.MostWeight),
                Priority = Asked(rank, endpoint, nameof(ChannelPoolOptions.EndpointPriority), "priority", least: 0, ChannelAddress.LastPriority),
            })
            .Distinct()];
        return endpoints.Length > 0 ? endpoints : throw new InvalidOperationException($"No endpoint was found for '{name.Authority}'.");
    }

    private static int Asked(Func<ServiceEndpoint, int>? ask, ServiceEndpoint endpoint, string option, string what, int least, int most)
    {
        var given = ask?.Invoke(endpoint) ?? least;
        return given >= least && given <= most ? given : throw new InvalidOperationException(
            FormattableString.Invariant($"Pool.{option} gave the endpoint '{endpoint}' the {what} {given}. It must be from {least} to {most}."));
    }

    private void Resolved(IReadOnlyList<ChannelEndpoint> endpoints, Round round)
    {
        _backoff.Reset();
        TaskCompletionSource<IReadOnlyList<ChannelEndpoint>> list;
        lock (_lock)
        {
            round.HasSucceeded = true;
            if (IsDisposed || (_endpoints.Task.IsCompleted && IsTheSame(_endpoints.Task.Result, endpoints)))
            {
                return;
            }

            list = _endpoints = _endpoints.Task.IsCompleted ? NewList() : _endpoints;
        }

        // Statement order is important: who waits finds that the pool knows the list.
        Listener?.EndpointsChanged(endpoints);
        list.TrySetResult(endpoints);
    }

    private void Failed(Exception error, Round round)
    {
        if (IsDisposed)
        {
            return;
        }

        Listener?.ResolutionFailed(error);
        _backoff.Dialed();
        round.EndAfter(round.Elapsed + _backoff.Pause);
        lock (_lock)
        {
            if (!_endpoints.Task.IsCompleted)
            {
                FailUnsynchronized(error);
                _endpoints = NewList(); // for who comes later
            }
        }
    }

    // A token that has changed already calls back at once. A source whose token does not call back, or throws, is polled.
    private IDisposable? Watch(IChangeToken token, Round round)
    {
        IDisposable? registration = null;
        TellFailure(() =>
            registration = token.ActiveChangeCallbacks
                ? token.RegisterChangeCallback(static round => ((Round)round!).EndAfter(ShortestPause), round)
                : null);
        if (registration is null)
        {
            round.EndAfter(round.Elapsed + PollInterval);
        }

        return registration;
    }

    private void TellFailure(Action foreign)
    {
        try
        {
            foreign();
        }
        catch (Exception exception) // It is told.
        {
            Listener?.ResolutionFailed(exception);
        }
    }

    /// <summary>One resolution, and the pause until the next. Nobody who shortens it is made to wait.</summary>
    private sealed class Round : IDisposable
    {
        private readonly TaskCompletionSource _over = new(TaskCreationOptions.RunContinuationsAsynchronously);
        private readonly TimeProvider _time;
        private readonly long _began;
        private readonly ITimer _timer;
        private TimeSpan _length = TimeSpan.MaxValue;

        public Round(TimeProvider time)
        {
            (_time, _began) = (time, time.GetTimestamp());
            _timer = time.CreateTimer(static over => ((TaskCompletionSource)over!).TrySetResult(), _over, Timeout.InfiniteTimeSpan, Timeout.InfiniteTimeSpan);
        }

        public Task Over => _over.Task;
        public TimeSpan Elapsed => _time.GetElapsedTime(_began);
        public bool HasSucceeded { get; set; } // guarded by the lock of the watcher

        /// <summary>Ends it so long after its begin, if it does not end sooner.</summary>
        public void EndAfter(TimeSpan length)
        {
            lock (_over)
            {
                if (length < _length)
                {
                    _length = length;
                    var left = length - Elapsed;
                    _timer.Change(left > TimeSpan.Zero ? left : TimeSpan.Zero, Timeout.InfiniteTimeSpan);
                }
            }
        }

        public void Dispose() => _timer.Dispose();
    }
}

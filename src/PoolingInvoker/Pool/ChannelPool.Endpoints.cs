using Microsoft.Extensions.ServiceDiscovery;

namespace PoolingInvoker;

// Several endpoints.
//
// Channels are spread evenly: a new one goes to the endpoint with the fewest. There are at least as many as there are endpoints, as far as
// MaxPoolSize and the size of a subset allow. One that cannot be reached is left out, and tried again after a pause, longer each time. While
// channels are not even - an endpoint is new, or back, or gone - they are looked at once a second, and move: a new one is connected, then the
// old one drains, a few at a time.
public partial class ChannelPool : IEndpointListener
{
    private static readonly TimeSpan BalancePeriod = TimeSpan.FromSeconds(1);

    private readonly PoolEndpoints? _endpoints;
    private readonly EndpointWatcher? _endpointWatcher;
    private readonly PoolTimer _balanceWatch;
    private bool _isBalanceWatched;
    private Exception? _resolutionError;

    private int MinimumUnsynchronized => _endpoints is null
        ? _options.MinPoolSize
        : Math.Max(_options.MinPoolSize, Math.Min(_options.MaxPoolSize, Math.Min(_endpoints.Count, PoolEndpoints.SubsetSize)));

    private bool MayBeMadeAtOnceUnsynchronized => _options.PrimeAsync is null && _endpoints is not { Count: 0 };

    void IEndpointListener.EndpointsChanged(IReadOnlyList<ChannelEndpoint> endpoints) => EndpointsChanged(endpoints);

    void IEndpointListener.ResolutionFailed(Exception error)
    {
        Volatile.Write(ref _resolutionError, error);
        _log.ResolutionFailed(Target, error);
    }

    /// <summary>The endpoints are these from now on.</summary>
    internal void EndpointsChanged(IReadOnlyList<ChannelEndpoint> endpoints)
    {
        lock (_lock)
        {
            _resolutionError = null;
            _endpoints!.Update(endpoints);
        }

        Balance();
    }

    /// <summary>Moves channels, a few at a time, so that they are even.</summary>
    internal void Balance()
    {
        using (Enter())
        {
            if (_disposed)
            {
                return;
            }

            var moves = MovesUnsynchronized;
            for (var i = _active.Count - 1; i >= 0; i--)
            {
                var channel = _active[i];
                if (channel is not { State: PooledChannelState.Active, Server: { } server } || !(server.IsGone || server.IsFailing))
                {
                    continue;
                }

                if (!server.IsGone)
                {
                    // Nobody takes it as long as there are others, so nobody else would find that it is broken.
                    if (moves > 0 && ReasonToReplaceUnsynchronized(channel, thorough: false) is not null)
                    {
                        moves--;
                        ReplaceUnsynchronized(channel, "its endpoint cannot be reached");
                    }
                }
                else if (channel.Leases == 0 && _active.Count + _creating > MinimumUnsynchronized)
                {
                    RetireUnsynchronized(channel, "its endpoint is gone");
                }
                else if (moves > 0)
                {
                    moves--;
                    RefreshUnsynchronized(channel, "its endpoint is gone");
                }
            }

            if (moves > 0 && _endpoints!.Imbalance(_active.Count + _creating) is { From: var from }
                && _active.FirstOrDefault(channel => channel.Server == from && channel.State == PooledChannelState.Active) is { } moved)
            {
                RefreshUnsynchronized(moved, "another endpoint has fewer channels");
            }

            if (_active.Count + _creating > 0)
            {
                GrowUnsynchronized("there are more endpoints than channels", isCall: true);
            }

            _isBalanceWatched = false;
            if (_endpoints!.IsUneven(_active.Count + _creating))
            {
                WatchTheBalanceUnsynchronized();
            }
        }
    }

    // Waits for the first list of endpoints. Gives why there is none, and after that at once, until there is one.
    private async ValueTask<Exception?> ResolveAsync()
    {
        if (_endpointWatcher is null || Knows())
        {
            return null;
        }

        if (Volatile.Read(ref _resolutionError) is { } error)
        {
            return Unresolved(error);
        }

        var resolving = _endpointWatcher.FirstAsync(_closing.Token);
        var failure = await FailureOfAsync(resolving).ConfigureAwait(false);
        if (failure is null && !Knows())
        {
            EndpointsChanged(await resolving.ConfigureAwait(false)); // it is just about to be told
        }

        return failure is null ? null : Unresolved(failure);

        // A new one each time: one that many callers throw would keep the stacks of all.
        HttpRequestException Unresolved(Exception error) =>
            new(HttpRequestError.NameResolutionError, $"The endpoints of {Target} could not be found: {error.Message}", error);

        bool Knows()
        {
            lock (_lock)
            {
                return _endpoints!.Count > 0;
            }
        }
    }

    private PoolEndpoint? TakeEndpoint(PooledChannel? inPlaceOf)
    {
        if (_endpoints is null)
        {
            return null;
        }

        lock (_lock)
        {
            return _endpoints.Take(_active.Count + _creating, inPlaceOf?.Server);
        }
    }

    private void LeaveEndpoint(PoolEndpoint? endpoint)
    {
        if (endpoint is not null)
        {
            lock (_lock)
            {
                _endpoints!.Leave(endpoint);
            }
        }
    }

    private void LeaveEndpointUnsynchronized(PooledChannel channel)
    {
        if (channel.Server is { } server)
        {
            channel.Server = null;
            _endpoints!.Leave(server);
            WatchTheBalanceUnsynchronized();
        }
    }

    private void CouldNotReachUnsynchronized(PooledChannel channel)
    {
        if (channel.Server is { } server)
        {
            server.Failed();
            _endpointWatcher?.RefreshSoon();
            WatchTheBalanceUnsynchronized();
        }
    }

    private void WatchTheBalanceUnsynchronized()
    {
        if (!_isBalanceWatched && !_disposed)
        {
            _isBalanceWatched = true;
            _balanceWatch.Start(BalancePeriod);
        }
    }
}

/// <summary>What the channels of a pool go to: endpoints that are known, or those that a name has.</summary>
internal sealed record EndpointList(IReadOnlyList<ChannelEndpoint> Known, Uri? Name, Func<CancellationToken, ValueTask<ServiceEndpointSource>>? Resolve);

using Microsoft.Extensions.ServiceDiscovery;

namespace PoolingInvoker;

/// <summary>
/// Spreads the channels of a pool over several endpoints. A new channel goes to the endpoint with the fewest. There are at least as many
/// channels as endpoints, as far as MaxPoolSize and the size of a subset allow. An endpoint that cannot be reached is left out, and tried
/// again after a pause, longer each time. While channels are not even - an endpoint is new, or back, or gone - they are looked at once a
/// second, and move: a new one is connected, then the old one drains, a few at a time.
/// </summary>
internal sealed class EndpointBalancer : IEndpointListener, IDisposable
{
    private static readonly TimeSpan Period = TimeSpan.FromSeconds(1);

    private readonly PoolState _state;
    private readonly ChannelConnector _connector;
    private readonly PoolGrowth _growth;
    private readonly PoolEndpoints _endpoints;
    private readonly EndpointWatcher? _watcher;
    private readonly PoolTimer _timer;
    private readonly string _target;
    private Exception? _resolutionError;

    public EndpointBalancer(PoolState state, ChannelConnector connector, PoolGrowth growth, EndpointList list, string target)
    {
        (_state, _connector, _growth, _target) = (state, connector, growth, target);
        _endpoints = new PoolEndpoints(state.Clock, state.Random);
        _endpoints.Update(list.Known);
        _watcher = list.Resolve is null ? null : new EndpointWatcher(list.Name!, list.Resolve, state.Time, state.Random, this);
        _timer = new PoolTimer(state, this, static balancer => ((EndpointBalancer)balancer).Balance());
    }

    public bool MayDial => _endpoints.MayDial; // whether there is an endpoint that may be dialled
    public bool IsEmpty => _endpoints.Count == 0;
    public int MinimumOf(int most) => Math.Min(most, Math.Min(_endpoints.Count, PoolEndpoints.SubsetSize));

    public void Dispose()
    {
        _timer.Dispose();
        _watcher?.Dispose();
    }

    public void ResolutionFailed(Exception error)
    {
        Volatile.Write(ref _resolutionError, error);
        _state.Log.ResolutionFailed(_target, error);
    }

    public void EndpointsChanged(IReadOnlyList<ChannelEndpoint> endpoints)
    {
        using (_state.Enter())
        {
            _resolutionError = null;
            _endpoints.Update(endpoints);
        }

        Balance();
    }

    public Task WaitForFirstAsync(CancellationToken cancellationToken) => _watcher?.FirstAsync(cancellationToken) ?? Task.CompletedTask;

    /// <summary>Waits for the first list of endpoints. Gives why there is none, to later callers at once.</summary>
    public async ValueTask<Exception?> ResolveAsync()
    {
        if (_watcher is null || IsKnown())
        {
            return null;
        }

        var error = Volatile.Read(ref _resolutionError);
        if (error is null)
        {
            var resolving = _watcher.FirstAsync(_state.Closing.Token);
            error = await ChannelConnector.FailureOfAsync(resolving).ConfigureAwait(false);
            if (error is null && !IsKnown())
            {
                EndpointsChanged(await resolving.ConfigureAwait(false)); // it is just about to be told
            }
        }

        // A new one each time: one that many callers throw would keep the stacks of all.
        return error is null ? null
            : new HttpRequestException(HttpRequestError.NameResolutionError, $"The endpoints of {_target} could not be found: {error.Message}", error);
    }

    private bool IsKnown()
    {
        using var section = _state.Enter();
        return !IsEmpty;
    }

    public PoolEndpoint Take(PooledChannel? inPlaceOf)
    {
        using var section = _state.Enter();
        return _endpoints.Take(_state.Count, inPlaceOf?.Server);
    }

    public void Leave(PoolEndpoint? server)
    {
        using var section = _state.Enter();
        _endpoints.Leave(server!);
    }

    public void Leave(PooledChannel channel)
    {
        if (channel.Server is { } server)
        {
            channel.Server = null;
            _endpoints.Leave(server);
            StartTimer();
        }
    }

    public void CouldNotReach(PooledChannel channel)
    {
        if (channel.Server is { } server)
        {
            server.Failed();
            _watcher?.RefreshSoon();
            StartTimer();
        }
    }

    /// <summary>Moves channels, a few at a time, so that they are even.</summary>
    public void Balance()
    {
        using var section = _state.Enter();
        if (_state.IsDisposed)
        {
            return;
        }

        _timer.IsStarted = false;
        var moves = _state.Moves;
        for (var i = _state.Active.Count - 1; i >= 0; i--)
        {
            var channel = _state.Active[i];
            if (channel is not { State: PooledChannelState.Active, Server: { } server })
            {
                continue;
            }

            if (server.IsGone && channel.Leases == 0 && _state.Count > _state.Minimum)
            {
                _state.Retire(channel, "its endpoint is gone");
            }
            else if (moves > 0 && server.IsGone)
            {
                moves--;
                _connector.Refresh(channel, "its endpoint is gone");
            }
            else if (moves > 0 && server.IsFailing && channel.ReasonToReplace(_state.Backoff, thorough: false) is not null)
            {
                moves--;
                _connector.Replace(channel, "its endpoint cannot be reached");
            }
        }

        if (moves > 0 && _endpoints.Imbalance(_state.Count) is { From: var from }
            && _state.Active.FirstOrDefault(channel => channel.Server == from && channel.State == PooledChannelState.Active) is { } moved)
        {
            _connector.Refresh(moved, "another endpoint has fewer channels");
        }

        if (_state.Count > 0)
        {
            _growth.Grow("there are more endpoints than channels", isCall: true);
        }

        if (_endpoints.IsUneven(_state.Count))
        {
            StartTimer();
        }
    }

    private void StartTimer()
    {
        if (!_state.IsDisposed)
        {
            _timer.Start(Period);
        }
    }
}

/// <summary>Is told what the endpoints of a pool are. Does not throw.</summary>
internal interface IEndpointListener
{
    void EndpointsChanged(IReadOnlyList<ChannelEndpoint> endpoints); // distinct ones, at least one, and not the last ones
    void ResolutionFailed(Exception error); // or what they were resolved from cannot be watched
}

/// <summary>What the channels of a pool go to: endpoints that are known, or those that a name has.</summary>
internal sealed record EndpointList(IReadOnlyList<ChannelEndpoint> Known, Uri? Name, Func<CancellationToken, ValueTask<ServiceEndpointSource>>? Resolve);

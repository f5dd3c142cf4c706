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
    private readonly PoolTimer _timer;
    private readonly string _target;
    private Exception? _resolutionError;
    private bool _isProbing;
    private int _begun; // how many channels are being made that have no endpoint yet

    public EndpointBalancer(PoolState state, ChannelConnector connector, PoolGrowth growth, EndpointList list, string target)
    {
        (_state, _connector, _growth, _target) = (state, connector, growth, target);
        Endpoints = new PoolEndpoints(state.Clock, state.Random);
        Endpoints.Update(list.Known);
        Watcher = list.Resolve is null ? null : new EndpointWatcher(list.Name!, list.Resolve, state.Time, state.Random, this, list.KeepsAddresses, state.Options.EndpointWeight, state.Options.EndpointPriority);
        _timer = new PoolTimer(state, this, static balancer => ((EndpointBalancer)balancer).Balance());
        state.Affinity.Endpoints = Endpoints;
        Endpoints.Split(state.Options);
    }

    public PoolEndpoints Endpoints { get; }
    public EndpointWatcher? Watcher { get; } // of those that a name has
    public bool MayDialElsewhere => Endpoints is { HasPriorities: true, MayDialWell: true }; // whether a failure says nothing of the next one
    public int MinimumOf(int least, int most) => Math.Min(most, Math.Max(least, Endpoints.Minimum) + Endpoints.StandingBy());

    private bool IsFull => _state.Count >= _state.Options.MaxPoolSize;

    public void Dispose() => Watcher?.Dispose();

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
            Endpoints.Update(endpoints);
            _state.Active.Version++;
            UpdateChannels();
        }

        Balance();
    }

    /// <summary>Waits for the first list of endpoints. Gives why there is none, to later callers at once.</summary>
    public async ValueTask<Exception?> ResolveAsync()
    {
        if (Watcher is null || Endpoints.Count > 0)
        {
            return null;
        }

        var error = Volatile.Read(ref _resolutionError);
        if (error is null)
        {
            error = await Watcher.FirstAsync(_state.Closing.Token).FailureAsync().ConfigureAwait(false);
        }

        // A new one each time: one that many callers throw would keep the stacks of all.
        return error is null ? null
            : new HttpRequestException(HttpRequestError.NameResolutionError, $"The endpoints of {_target} could not be found: {error.Message}", error);
    }

    /// <summary>Chooses where a new channel goes.</summary>
    public PoolEndpoint Take(PooledChannel? inPlaceOf)
    {
        if (Endpoints.HasPriorities)
        {
            _timer.Start(_state, Period);
        }

        _begun -= _begun > 0 ? 1 : 0;
        return Endpoints.Take(_state.Count, inPlaceOf?.Server);
    }

    public void Leave(PooledChannel channel)
    {
        if (channel.Server is { } server)
        {
            (channel.LastPriority, channel.Server) = (server.Priority.Number, null);
            Endpoints.Leave(server);
            _timer.Start(_state, Period);
        }
    }

    public void CouldNotReach(PooledChannel channel)
    {
        if (channel.Server is { } server)
        {
            server.Failed();
            Split();
            _state.After(() => Watcher?.RefreshSoon());
            _timer.Start(_state, Period);
        }
    }

    /// <summary>
    /// Whether a channel that takes long to connect is not waited for, as there are endpoints of another priority. In a pool that is full it
    /// gives up its place.
    /// </summary>
    public bool GoesElsewhere(PooledChannel connecting)
    {
        if (Endpoints.HasPriorities)
        {
            CouldNotReach(connecting);
        }

        if (MayDialElsewhere && _growth.Places == 0)
        {
            _state.After(() => connecting.Transport?.Abort("Its place is needed for an endpoint of another priority."));
        }

        return MayDialElsewhere;
    }

    /// <summary>
    /// Whether a broken channel need not be replaced: its endpoint is lost, and others have channels enough for the calls of late. One that
    /// stands by is made anew when its endpoint may be dialled.
    /// </summary>
    public bool IsTooMany(PooledChannel broken) => Endpoints.HasPriorities && broken.Server is { IsFailing: true } && _state.Active.Good > 0
        && (broken.StandsBy || _state.Count > Math.Max(_state.Minimum, _growth.Needed));

    /// <summary>
    /// A channel could not be replaced where it was. If it is broken it is replaced elsewhere at once. It goes where others are being made already:
    /// calls would spend their attempts on it meanwhile.
    /// </summary>
    public void Stays(PooledChannel channel)
    {
        if (channel is not { State: PooledChannelState.Active, Server.IsFailing: true, Health: >= ChannelHealth.Broken } || !MayDialElsewhere)
        {
            return;
        }

        if (_state.Creating > 0)
        {
            _state.Retire(channel, PoolReason.EndpointUnreachable);
        }
        else
        {
            _connector.Replace(channel, PoolReason.EndpointUnreachable, countsAsDial: false);
        }
    }

    public void Balance()
    {
        using var section = _state.Enter();
        if (_state.IsDisposed)
        {
            return;
        }

        _timer.IsStarted = false;
        _begun = 0;
        Split();
        var moves = _state.Moves;
        foreach (var channel in _state.Active.Reverse()) // a copy
        {
            if (channel is not { State: PooledChannelState.Active, Server: { } server })
            {
                continue;
            }

            if (server.IsGone && channel.Leases == 0 && _state.Count > _state.Minimum)
            {
                _state.Retire(channel, PoolReason.EndpointGone);
            }
            else if ((channel.Leases == 0 || IsFull) && IsSurplus(channel))
            {
                _state.Retire(channel, PoolReason.PriorityBack);
            }
            else if (moves > 0 && server.IsGone)
            {
                moves--;
                _connector.Refresh(channel, PoolReason.EndpointGone);
            }
            else if (moves > 0 && server.IsFailing && channel.ReasonToReplace(_state.Backoff, thorough: false) is not null)
            {
                moves--;
                _connector.Replace(channel, PoolReason.EndpointUnreachable);
            }
        }

        if (BeginMissing() == 0 && moves > 0 && Endpoints.Imbalance(_state.Count, IsFull) is var (from, to)
            && _state.Active.FirstOrDefault(channel => channel.Server == from && channel.State == PooledChannelState.Active) is { } moved)
        {
            if (to.Priority.Share > 0)
            {
                _connector.Refresh(moved, PoolReason.EndpointsUneven);
            }
            else if (!_isProbing)
            {
                _isProbing = true;
                _state.After(() => _state.Work.Begin(() => ProbeAsync(moved)));
            }
        }

        if (_state.Count > 0)
        {
            _growth.Grow(PoolReason.MoreEndpoints, isCall: true);
        }

        if (Endpoints.IsUneven(_state.Count, IsFull))
        {
            _timer.Start(_state, Period);
        }
    }

    // Whether a channel goes to a priority that gets no calls, and has enough of those, and calls have others.
    private bool IsSurplus(PooledChannel channel) => channel.Server is { } server && server.Priority.StandBysMissing < 0
        && _state.Active.Good > _state.Active.OnStandby;

    /// <summary>Says which priorities get which part of the calls.</summary>
    public void Split()
    {
        if (!Endpoints.HasPriorities)
        {
            return;
        }

        LookForSilence();
        var (isOther, areOthersInUse) = Endpoints.Split(_state.Options);
        _state.Active.Version++;
        if (isOther)
        {
            UpdateChannels();
            _state.Diary.PriorityChanged(PoolReason.PriorityChanged(Endpoints.Priorities));
        }

        if (isOther || areOthersInUse)
        {
            BeginMissing();
            _timer.Start(_state, Period);
        }
    }

    // In a pool that is full a lost endpoint is dialled by a channel that does not join: none gives way before it is well.
    private async Task ProbeAsync(PooledChannel inPlaceOf)
    {
        var created = _connector.Create(inPlaceOf, out var error);
        error ??= await _connector.FailureOfAsync(created!, _connector.ConnectAsync(created!)).ConfigureAwait(false);
        using var section = _state.Enter();
        _isProbing = false;
        if (error is null)
        {
            created!.Server?.Reached();
        }
        else if (created is not null && !_state.IsDisposed)
        {
            CouldNotReach(created);
        }

        _state.Discard(created);
    }

    private int BeginMissing()
    {
        var missing = Math.Max(0, Math.Min(Endpoints.Missing(_state.Count) - _begun, _growth.Places));
        _begun += missing;
        for (var i = 0; i < missing; i++)
        {
            _connector.BeginCreating(PoolReason.MoreEndpoints);
        }

        return missing;
    }

    private void UpdateChannels()
    {
        foreach (var channel in _state.Active.ToList())
        {
            _state.Active.Update(channel);
        }
    }

    private void LookForSilence()
    {
        foreach (var priority in Endpoints.Priorities)
        {
            priority.Known.ForEach(static endpoint => endpoint.IsSilent = false);
        }

        foreach (var channels in _state.Active.GroupBy(static channel => channel.Server))
        {
            channels.Key?.IsSilent = channels.All(static channel => channel.Health is ChannelHealth.Suspect or ChannelHealth.GivenUp);
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
internal sealed record EndpointList(IReadOnlyList<ChannelEndpoint> Known, Uri? Name, Func<CancellationToken, ValueTask<ServiceEndpointSource>>? Resolve, bool KeepsAddresses = false);

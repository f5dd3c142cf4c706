namespace PoolingInvoker;

/// <summary>
/// Makes channels, connects them up to the SETTINGS of their servers, and primes them: new ones, in a place that was reserved under the
/// lock, and those that take the place of another one. A channel joins only then, as long as there are others; where there are none it
/// joins all the same, so that calls end with what there is to say.
/// </summary>
internal sealed class ChannelConnector(PoolState state, IChannelFactory factory)
{
    public static readonly TimeSpan PatienceAlone = TimeSpan.FromSeconds(1); // where there is no other channel
    public static readonly TimeSpan Patience = TimeSpan.FromSeconds(5); // where calls can go elsewhere
    private static readonly TimeSpan PrimePatience = TimeSpan.FromSeconds(10);

    private int _limitsUnknown;

    public TimeSpan ConnectTime { get; private set; } // how long it took to connect and to prime the last new channel
    public bool LastCreationFailed { get; set; } // whether the last one could not be made; a caller that begins to wait has it tried again
    public bool LastConnectFailed { get; private set; } // whether the last channel could not be connected
    public Exception? LastError { get; private set; }
    public int? Announced { get; set; } // how many streams the servers took last
    public TaskCompletionSource? NextCreated { get; set; } // is completed when one of the new channels is made, or is not to be

    /// <summary>Reserves a place, and begins to make a channel in it.</summary>
    public void BeginCreating(PoolReason because)
    {
        state.Creating++;
        state.After(() => state.Work.Begin(() => DialAsync(old: null, because)));
    }

    /// <summary>
    /// Replaces a channel that takes no calls meanwhile: by one that is made, or by a fresh one on which a server has answered. Or it goes,
    /// where none is needed in its place.
    /// </summary>
    public void Replace(PooledChannel old, PoolReason because, bool countsAsDial = true, bool isIdle = false, PooledChannel? by = null)
    {
        if (!old.Proven && countsAsDial)
        {
            state.Backoff.Dialed();
        }

        if (by is null && state.Balancer is { } balancer && balancer.IsTooMany(old))
        {
            state.Retire(old, PoolReason.EndpointUnreachable);
            return;
        }

        old.State = PooledChannelState.Replacing;
        state.Replacing++;
        state.Active.Update(old);
        if (by is null)
        {
            BeginReplacing(old, because, isIdle);
        }
        else
        {
            Join(old, by, error: null, because, connectedIn: null);
        }
    }

    /// <summary>Begins to make the replacement of a channel that takes calls meanwhile.</summary>
    public void Refresh(PooledChannel old, PoolReason because, bool isIdle = false)
    {
        old.State = PooledChannelState.Refreshing;
        state.Replacing++;
        BeginReplacing(old, because, isIdle);
    }

    /// <summary>
    /// Makes a channel in the place of an old one, or in one that was reserved, and has it join when it is connected. Does not throw, and
    /// says whether the channel was made at all.
    /// </summary>
    public async Task<(Exception? Error, bool IsMade)> DialAsync(PooledChannel? old, PoolReason because)
    {
        var began = state.Time.GetTimestamp();
        var error = state.Balancer is { } balancer ? await balancer.ResolveAsync().ConfigureAwait(false) : null;
        var created = error is null ? Create(old, out error) : null;
        if (created is not null)
        {
            var isForSilent = old is { Health: ChannelHealth.GivenUp }; // it may lead to the same server
            var connecting = isForSilent ? AnswerAsync(created) : ConnectAsync(created);
            if (!isForSilent && await JoinsUnconnectedAsync(old, created, connecting, because).ConfigureAwait(false))
            {
                return (null, true);
            }

            error = await FailureOfAsync(created, connecting).ConfigureAwait(false);
        }

        using (state.Enter(old is null ? because : PoolReason.CallsNeedIt))
        {
            error = Join(old, created, error, because, state.Since(began));
        }

        return state.IsDisposed ? (PoolState.NewDisposedException(), false) : (error, created is not null);
    }

    /// <summary>The channel that was made joins, or is discarded. Gives what speaks against it.</summary>
    public Exception? Join(PooledChannel? old, PooledChannel? created, Exception? error, PoolReason because, TimeSpan? connectedIn)
    {
        EndDial(old);
        error ??= created is { IsGoing: true }
            ? new IOException($"The server of channel #{created.Id} took no more calls on the connection (GOAWAY) before the channel had joined.")
            : null;
        var joins = created is not null && !state.IsDisposed && (error is null || IsBetterThanNothing(old));
        if (error is not null)
        {
            Failed(old, created, error, joins);
        }
        else
        {
            LastCreationFailed &= old is not null;
            LastConnectFailed &= old is not null || connectedIn is null;
            ConnectTime = old is null ? connectedIn ?? ConnectTime : ConnectTime;
            if (connectedIn is { } time)
            {
                created!.Server?.Reached();
                state.After(() => state.Metrics.Connected(time, created.Endpoint));
                if (old is null && created.Transport is { } transport && state is { Backoff: { HasWorked: false, MayDial: true }, Waiters.Count: > 0 })
                {
                    transport.FailIfLost();
                    state.Backoff.Dialed();
                }
            }
        }

        if (joins)
        {
            Publish(old, created!, old is null && error is not null ? PoolReason.NoOther : because);
        }
        else
        {
            state.Discard(created);
        }

        return error;
    }

    /// <summary>Makes a channel that has not joined yet.</summary>
    public PooledChannel? Create(PooledChannel? inPlaceOf, out Exception? error)
    {
        int id;
        PoolEndpoint? server;
        using (state.Enter())
        {
            (id, server) = (++state.LastId, state.Balancer?.Take(inPlaceOf));
            state.Making.Add(id); // before anything of it is made, for a refresh
        }

        try
        {
            var (channel, transport) = factory.Create(server?.Endpoint);
            var options = state.Options;
            var limit = options.MaxConcurrentCallsPerChannel;
            var created = new PooledChannel(
                id, channel, server?.Endpoint.ToString() ?? factory.Target, transport, limit, state.Time.GetTimestamp(), state.NewLifetime())
            {
                Breakable = transport is null && state.Options.ProbeCallback is not null ? new() : null,
            };
            new ConnectionEvents(state, this, created).Watch(transport);
            if (transport is null && limit is null && Interlocked.Increment(ref _limitsUnknown) == 1)
            {
                state.Log.LimitUnknown(factory.WhyLimitIsUnknown, created.Capacity);
            }

            using var section = state.Enter();
            if (!state.Channels.TryAdd(channel, created))
            {
                throw new InvalidOperationException("it returned a channel that is in the pool already; each call of Create must make a new one");
            }

            state.Making.Remove(id);
            created.Server = server;
            state.Adopt(created, options);
            error = null;
            return created;
        }
        catch (Exception exception) // Whatever a policy throws, the place of its channel is given back.
        {
            using (state.Enter())
            {
                state.Making.Remove(id);
                state.Balancer?.Endpoints.Leave(server!);
            }

            error = factory.Explain(exception);
            return null;
        }
    }

    private void Publish(PooledChannel? old, PooledChannel created, PoolReason because)
    {
        // Statement order is important: the pool is never without either of them.
        state.Active.Add(created);
        state.Created++;
        if (old is null)
        {
            state.Diary.Created(created, because);
            return;
        }

        (created.Seat, state.Replaced) = (old.Seat, state.Replaced + 1);
        state.Diary.Replaced(created, old, because);
        state.Drain(old);
    }

    public Task ConnectAsync(PooledChannel channel) =>
        state.WithinAsync(token => channel.ConnectAsync(token), Patience, $"Channel #{channel.Id} did not connect to {channel.Endpoint}");

    /// <summary>Connects, and waits until a server has answered the probe of the user's, too, if there is one.</summary>
    public Task AnswerAsync(PooledChannel channel)
    {
        var complaint = $"No server answered on channel #{channel.Id} to {channel.Endpoint}";
        return state.WithinAsync(ConnectAndProbeAsync, state.Options.ProbeTimeout, complaint);

        async Task ConnectAndProbeAsync(CancellationToken cancellationToken)
        {
            await channel.ConnectAsync(cancellationToken).ConfigureAwait(false);
            if (!await state.Options.IsAnsweredAsync(channel.CallInvoker, cancellationToken).ConfigureAwait(false))
            {
                throw new IOException($"{complaint}.");
            }

            using var section = state.Enter();
            channel.FoundAlive();
        }
    }

    /// <summary>Primes a channel when it is connected, and gives what either failed with.</summary>
    public async Task<Exception?> FailureOfAsync(PooledChannel channel, Task connecting) =>
        await connecting.FailureAsync().ConfigureAwait(false) ?? await PrimeAsync(channel).FailureAsync().ConfigureAwait(false);

    private Task PrimeAsync(PooledChannel channel) => state.Options.PrimeCallback is { } prime
        ? state.WithinAsync(token => prime(channel.CallInvoker, token), PrimePatience, "Pool.PrimeCallback did not end")
        : Task.CompletedTask;

    // The replacement of an idle channel connects with its first call, unless it has to be primed.
    private void BeginReplacing(PooledChannel old, PoolReason because, bool isIdle) => state.After(() =>
    {
        if (!isIdle || state.Options.PrimeCallback is not null)
        {
            state.Work.Begin(() => DialAsync(old, because));
            return;
        }

        var created = Create(old, out var error);
        using var section = state.Enter(PoolReason.CallsNeedIt);
        Join(old, created, error, because, connectedIn: null);
    });

    // Where there is no other channel, calls may as well wait on one that takes long to connect, as they would on a bare channel. They do
    // so at once where handlers of the user's may answer them without a connection.
    private async ValueTask<bool> JoinsUnconnectedAsync(PooledChannel? old, PooledChannel created, Task connecting, PoolReason because)
    {
        connecting.Observe(); // it may not be looked at any more
        var (isWrapped, primes) = (created.Transport is { IsWrapped: true }, state.Options.PrimeCallback is not null);
        if (!isWrapped && !primes)
        {
            await connecting.WaitAsync(PatienceAlone, state.Time).ConfigureAwait(ConfigureAwaitOptions.SuppressThrowing);
        }

        if (connecting.IsCompleted || primes)
        {
            return false;
        }

        using var section = state.Enter(because);
        if (!IsAlone(old) || state.IsDisposed || state.Balancer?.GoesElsewhere(created) == true)
        {
            return false;
        }

        EndDial(old);
        created.IsUntried &= isWrapped; // the server may be about to say how many calls it takes
        if (!isWrapped)
        {
            state.Balancer?.CouldNotReach(created); // if it fails the next one goes elsewhere
        }

        Publish(old, created, old is null ? PoolReason.NoOtherYet : because);
        return true;
    }

    private void EndDial(PooledChannel? old)
    {
        if (old is not null)
        {
            state.Replacing--;
            return;
        }

        state.Creating--;
        NextCreated?.TrySetResult();
        NextCreated = null;
    }

    // Whether calls have no other channel to go to than the one that is made.
    private bool IsAlone(PooledChannel? old) =>
        old is null ? state.Active.Count == 0 : old.State == PooledChannelState.Replacing && state.Active.Count == 1;

    // A new channel that could not be connected joins where calls have no other one to go to.
    private bool IsBetterThanNothing(PooledChannel? old) => old is null
        ? IsAlone(old) && state.Balancer is not { Endpoints.MayDial: true }
        : (IsAlone(old) && state.Balancer is not { MayDialElsewhere: true }) || (old.State == PooledChannelState.Replacing && old.BrokenState(thorough: true) == ConnectivityState.Shutdown);

    private void Failed(PooledChannel? old, PooledChannel? created, Exception error, bool joins)
    {
        if (state.IsDisposed)
        {
            return;
        }

        LastError = error;
        if (created is not null)
        {
            created.IsUntried = false;
            created.LastError = error;
            LastConnectFailed |= old is null || joins;
            state.Balancer?.CouldNotReach(created);
        }

        if (created is not null || old is not null)
        {
            state.Backoff.Dialed();
        }

        if (old is null)
        {
            state.Diary.CreationFailed(error);
            LastCreationFailed |= created is null;
            if (created is null && state.Active.Count == 0)
            {
                state.NextWaiter()?.SetException(error); // the next one has it tried in its turn
            }
        }
        else if (!joins)
        {
            // It goes on. If its connection broke, be it while it was refreshed, it is replaced when the pool may dial again.
            var failedAt = created?.Endpoint ?? old.Endpoint;
            old.Proven &= old.State == PooledChannelState.Refreshing;
            (old.LastError, old.ReplaceError) = (failedAt == old.Endpoint ? error : old.LastError, error);
            old.State = PooledChannelState.Active;
            old.Proven &= old.ReasonToReplace(state.Backoff, thorough: true) is null;
            state.Active.Update(old);
            state.Diary.ReplacementFailed(old, failedAt, error);
            state.Balancer?.Stays(old);
        }
    }
}

using Grpc.Core;

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

    private int _lastId;

    public TimeSpan ConnectTime { get; private set; } // how long it took to connect and to prime the last new channel
    public bool LastCreationFailed { get; set; } // whether the last one could not be made; a caller that begins to wait has it tried again
    public bool LastConnectFailed { get; private set; } // whether the last channel could not be connected
    public Exception? LastError { get; private set; }
    public int? Announced { get; set; } // how many streams the servers took last
    public TaskCompletionSource? NextCreated { get; set; } // is completed when one of the new channels is made, or is not to be

    /// <summary>Reserves a place, and begins to make a channel in it.</summary>
    public void BeginCreating(string because)
    {
        state.Creating++;
        state.After(() => state.Work.Begin(() => DialAsync(old: null, because)));
    }

    /// <summary>Begins to make the replacement of a channel that takes no calls meanwhile.</summary>
    public void Replace(PooledChannel old, string because, bool countsAsDial = true, bool isIdle = false)
    {
        MarkReplacing(old, countsAsDial);
        BeginReplacing(old, because, isIdle);
    }

    /// <summary>Begins to make the replacement of a channel that takes calls meanwhile.</summary>
    public void Refresh(PooledChannel old, string because, bool isIdle = false)
    {
        old.State = PooledChannelState.Refreshing;
        state.Replacing++;
        BeginReplacing(old, because, isIdle);
    }

    public void MarkReplacing(PooledChannel old, bool countsAsDial)
    {
        if (!old.Proven && countsAsDial)
        {
            state.Backoff.Dialed();
        }

        old.State = PooledChannelState.Replacing;
        state.Replacing++;
        state.Active.Update(old);
    }

    /// <summary>
    /// Makes a channel in the place of an old one, or in one that was reserved, and has it join when it is connected. Does not throw, and
    /// says whether the channel was made at all.
    /// </summary>
    public async Task<(Exception? Error, bool IsMade)> DialAsync(PooledChannel? old, string because)
    {
        var began = state.Time.GetTimestamp();
        var error = state.Balancer is { } balancer ? await balancer.ResolveAsync().ConfigureAwait(false) : null;
        var created = error is null ? Create(old, out error) : null;
        if (created is not null)
        {
            var connecting = ConnectAsync(created);
            if (await JoinsUnconnectedAsync(old, created, connecting, because).ConfigureAwait(false))
            {
                return (null, true);
            }

            error = await FailureOfAsync(connecting).ConfigureAwait(false) ?? await FailureOfAsync(PrimeAsync(created)).ConfigureAwait(false);
        }

        using (state.Enter(old is null ? because : "calls need it"))
        {
            Join(old, created, ref error, because, state.Time.GetElapsedTime(began, state.Now));
        }

        return state.IsDisposed ? (PoolState.NewDisposedException(), false) : (error, created is not null);
    }

    /// <summary>The channel that was made joins, or is discarded.</summary>
    public void Join(PooledChannel? old, PooledChannel? created, ref Exception? error, string because, TimeSpan? connectedIn)
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
            (connectedIn is null ? null : created!.Server)?.Reached();
            if (old is null && connectedIn is not null && created!.Transport is { } transport
                && state is { Backoff: { HasWorked: false, MayDial: true }, Waiters.Count: > 0 })
            {
                transport.FailIfLost();
                state.Backoff.Dialed();
            }
        }

        if (joins)
        {
            Publish(old, created!, old is null && error is not null ? "there is no other, although it could not be connected" : because);
        }
        else
        {
            state.Discard(created);
        }
    }

    /// <summary>Makes a channel that has not joined yet.</summary>
    public PooledChannel? Create(PooledChannel? inPlaceOf, out Exception? error)
    {
        var server = state.Balancer?.Take(inPlaceOf);
        try
        {
            var (channel, transport) = factory.Create(server?.Endpoint);
            var lifetime = state.Options.PooledChannelLifetime;
            lifetime = lifetime == Timeout.InfiniteTimeSpan ? lifetime : lifetime * (1 - (0.1 * state.Random.NextDouble()));
            var limit = state.Options.MaxConcurrentCallsPerChannel;
            var created = new PooledChannel(
                Interlocked.Increment(ref _lastId), channel, server?.Endpoint.ToString() ?? factory.Target, transport, limit, state.Time.GetTimestamp(), lifetime);
            var events = new ConnectionEvents(state, this, created);
            transport?.SettingsCame += events.ServerTakes;
            transport?.GoAwayCame += events.ServerGoes;
            transport?.ConnectionLost += events.ConnectionLost;
            if (transport is null && limit is null && created.Id == 1)
            {
                state.Log.LimitUnknown(factory.WhyLimitIsUnknown, created.Capacity);
            }

            using var section = state.Enter();
            if (!state.Channels.TryAdd(channel, created))
            {
                throw new InvalidOperationException("it returned a channel that is in the pool already; each call of Create must make a new one");
            }

            created.Server = server;
            error = null;
            return created;
        }
        catch (Exception exception) // Whatever a policy throws, the place of its channel is given back.
        {
            state.Balancer?.Leave(server);
            error = factory.Explain(exception);
            return null;
        }
    }

    public void Publish(PooledChannel? old, PooledChannel created, string because)
    {
        // Statement order is important: the pool is never without either of them.
        state.Publish(created);
        if (old is null)
        {
            state.Diary.Created(created, because);
            return;
        }

        state.Replaced++;
        state.Diary.Replaced(created, old, because);
        state.Drain(old);
    }

    public Task ConnectAsync(PooledChannel channel) =>
        WithinAsync(token => channel.ConnectAsync(token), Patience, $"Channel #{channel.Id} did not connect to {channel.Endpoint}");

    public Task PrimeAsync(PooledChannel channel) => state.Options.PrimeAsync is { } prime
        ? WithinAsync(token => prime(channel.CallInvoker, token), PrimePatience, "Pool.PrimeAsync did not end")
        : Task.CompletedTask;

    public static async Task<Exception?> FailureOfAsync(Task task)
    {
        await task.ConfigureAwait(ConfigureAwaitOptions.SuppressThrowing);
        return task.Failure();
    }

    // The replacement of an idle channel connects with its first call, unless it has to be primed.
    private void BeginReplacing(PooledChannel old, string because, bool isIdle) => state.After(() =>
    {
        if (isIdle && state.Options.PrimeAsync is null)
        {
            ReplaceUnconnected(old, because);
        }
        else
        {
            state.Work.Begin(() => DialAsync(old, because));
        }
    });

    private void ReplaceUnconnected(PooledChannel old, string because)
    {
        var created = Create(old, out var error);
        using var section = state.Enter("calls need it");
        Join(old, created, ref error, because, connectedIn: null);
    }

    // Where there is no other channel, calls may as well wait on one that takes long to connect, as they would on a bare channel. They do
    // so at once where handlers of the user's may answer them without a connection.
    private async ValueTask<bool> JoinsUnconnectedAsync(PooledChannel? old, PooledChannel created, Task connecting, string because)
    {
        connecting.Observe(); // it may not be looked at any more
        if (!connecting.IsCompleted && state.Options.PrimeAsync is null && created.Transport is not { IsWrapped: true })
        {
            await connecting.WaitAsync(PatienceAlone, state.Time).ConfigureAwait(ConfigureAwaitOptions.SuppressThrowing);
        }

        if (connecting.IsCompleted || state.Options.PrimeAsync is not null)
        {
            return false;
        }

        using var section = state.Enter(because);
        var active = state.Active;
        var isAlone = active.Count == 0 || (active.Count == 1 && active[0] == old && old.State == PooledChannelState.Replacing);
        if (!isAlone || state.IsDisposed)
        {
            return false;
        }

        EndDial(old);
        created.IsUntried = false;
        if (created.Transport is not { IsWrapped: true })
        {
            state.Balancer?.CouldNotReach(created); // if it fails the next one goes elsewhere
        }

        Publish(old, created, old is null ? "there is no other, although it takes long to connect" : because);
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

    // A new channel that could not be connected joins where calls have no other one to go to.
    private bool IsBetterThanNothing(PooledChannel? old) => old is null
        ? state.Active.Count == 0 && state.Balancer is not { MayDial: true }
        : old.State == PooledChannelState.Replacing && (state.Active.Count == 1 || old.BrokenState(thorough: true) == ConnectivityState.Shutdown);

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
            // Its connection broke, and there is none to be had. It goes on, and is replaced when the pool may dial again.
            var failedAt = created?.Endpoint ?? old.Endpoint;
            old.Proven &= old.State == PooledChannelState.Refreshing;
            old.LastError = failedAt == old.Endpoint ? error : old.LastError;
            old.State = PooledChannelState.Active;
            old.Signal(ChannelSignal.ReplacementFailed);
            state.Active.Update(old);
            state.Diary.ReplacementFailed(old, failedAt, error);
        }
    }

    private async Task WithinAsync(Func<CancellationToken, Task> what, TimeSpan patience, string complaint)
    {
        using var ended = CancellationTokenSource.CreateLinkedTokenSource(state.Closing.Token);
        var doing = what(ended.Token);
        doing.Observe(); // it may go on for longer than it is waited for
        try
        {
            await doing.WaitAsync(patience, state.Time, state.Closing.Token).ConfigureAwait(false);
        }
        catch (Exception exception) when (!doing.IsCompleted)
        {
            // The source is disposed before a dispose of the pool has come to it.
            await ended.CancelAsync().ConfigureAwait(ConfigureAwaitOptions.SuppressThrowing);
            throw exception is TimeoutException ? new TimeoutException($"{complaint} within {patience.TotalSeconds} s.") : exception;
        }
        catch (Exception exception) when (exception is TimeoutException or OperationCanceledException)
        {
            await doing.ConfigureAwait(false); // it may have ended in the moment in which the patience did
        }
    }
}

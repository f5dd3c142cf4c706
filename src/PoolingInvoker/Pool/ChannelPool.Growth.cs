namespace PoolingInvoker;

// How channels come to be, and how many.
//
// A channel is made in a place that was reserved for it under the lock, then connected, up to the SETTINGS of its server, and primed, and
// only then it joins. So no call waits for the channel that it caused, no server gets calls before it has said how many it takes, and what
// cannot be reached takes nobody's call, as long as there are others, or other endpoints to try. Where there are none it joins all the same,
// so that calls end with what there is to say.
//
// More are made for three reasons.
//
//  * There are fewer than MinPoolSize.
//  * Calls wait in line. A cold pool makes at once what the line needs. One that has channels looks first whether those will have served the
//    line by the time that another one is connected: it knows how long that took the last time, and sees how fast leases come back. Where
//    it takes next to no time, at most as many are made at once as there are.
//  * Calls crowd: for a while channels have carried more than TargetConcurrentCallsPerChannel (see ChannelTarget), though they take more, or
//    calls had to share one with streams that last.
public partial class ChannelPool
{
    // How long a channel that cannot connect is waited for: where calls could go elsewhere, and where there is nothing else.
    private static readonly TimeSpan ConnectPatience = TimeSpan.FromSeconds(5);
    private static readonly TimeSpan ConnectPatienceAlone = TimeSpan.FromSeconds(1);
    private static readonly TimeSpan PrimePatience = TimeSpan.FromSeconds(10);

    private static readonly TimeSpan LinePeriod = TimeSpan.FromMilliseconds(10);
    private static readonly TimeSpan CrowdPeriod = TimeSpan.FromMilliseconds(50);

    private readonly PoolTimer _lineWatch;
    private readonly PoolTimer _crowdWatch;

    private int? _announced; // what the servers took last
    private TimeSpan _connectTime;
    private bool _isLineWatched;
    private TaskCompletionSource? _nextCreated; // for who waits until something that is being made is, or is not to be
    private long _returns;
    private bool _lastCreationFailed;
    private bool _lastConnectFailed;
    private (long Returns, long At) _line; // when the line was last looked at
    private bool _isCrowdWatched;
    private (long Picks, long Calls, long Streams) _picked; // since the crowd was last looked at
    private (double Calls, double Streams) _crowd; // as it was seen then
    private (long Since, long Last)? _shares; // when calls were among streams that last, because there was no other channel

    // When to look at the line again: what takes long to connect is begun a little later, so that more is seen of how fast leases come back.
    private TimeSpan LinePause => _connectTime / 5 is var pause && pause < LinePeriod ? LinePeriod : pause < FirstPause ? pause : FirstPause;

    private long ExpectedCapacityUnsynchronized =>
        Math.Max(1, Math.Min(_options.MaxConcurrentCallsPerChannel ?? int.MaxValue, _announced ?? _options.MaxConcurrentCallsPerChannel ?? PooledChannel.FallbackCapacity));

    // How many channels may be made now. When the last one could not be connected it is one, after a pause, as long as there are others.
    private int PlacesUnsynchronized
    {
        get
        {
            var places = _disposed ? 0 : Math.Max(0, _options.MaxPoolSize - _active.Count - _creating);
            return !_lastConnectFailed || _active.Count == 0 ? places
                : _creating == 0 && _backoff.MayDial ? Math.Min(places, 1)
                : 0;
        }
    }

    // Makes the channels that are missing now. What the minimum lacks is made when a call comes, and when one got nothing, and does not
    // wait, one for those that come after it.
    private void GrowUnsynchronized(string because, bool isCall = false, bool isRefused = false)
    {
        if (PlacesUnsynchronized == 0)
        {
            WatchTheLineUnsynchronized(_lastConnectFailed);
            return;
        }

        var below = Math.Max(
            isCall ? MinimumUnsynchronized - _active.Count - _creating : 0,
            isRefused && _creating + _waiters.Count == 0 ? 1 : 0);
        CreateUnsynchronized(Math.Max(below, MissingUnsynchronized(seen: null)), because);
    }

    // Makes so many, or as many as there are places. These are reserved at once.
    private void CreateUnsynchronized(long count, string because)
    {
        for (count = Math.Min(count, PlacesUnsynchronized); count > 0; count--)
        {
            _creating++;
            BeginCreatingUnsynchronized(because);
        }
    }

    private void BeginCreatingUnsynchronized(string because) => AfterUnsynchronized(() => BeginWork(() => CreateAsync(because)));

    // How many channels those in line need, beyond those on their way. With what was seen of the line it is known how many of them will
    // have been served before another channel is connected.
    private long MissingUnsynchronized(double? seen)
    {
        var missing = _waiters.Count - ((_creating + _replacing) * ExpectedCapacityUnsynchronized);
        if (missing > 0)
        {
            // A server that takes nothing now will say when it does, and another connection to it would bring no more.
            missing -= _active.Count(static channel => channel.Capacity == 0) * ExpectedCapacityUnsynchronized;
        }

        if (missing <= 0 || (_lastCreationFailed && _active.Count > 0))
        {
            return 0;
        }

        var atMost = long.MaxValue;
        if (_active.Count > 0)
        {
            var isSlow = _connectTime > 2 * LinePeriod;
            if (isSlow && seen is null)
            {
                WatchTheLineUnsynchronized(true);
                return 0;
            }

            missing -= isSlow ? (long)(seen!.Value * _connectTime.TotalSeconds) : 0;
            atMost = isSlow ? atMost : Math.Max(0, _active.Count - _creating);
            WatchTheLineUnsynchronized(missing > 0);
        }

        return Math.Min(atMost, (missing + ExpectedCapacityUnsynchronized - 1) / ExpectedCapacityUnsynchronized);
    }

    // Makes the channel that was reserved under the lock, and publishes it when it is connected. Gives what that failed with, and whether it
    // was made at all. It does not throw.
    private async Task<(Exception? Error, bool IsMade)> CreateAsync(string because)
    {
        var began = _time.GetTimestamp();
        PooledChannel? created = null;
        var error = await ResolveAsync().ConfigureAwait(false);
        if (error is null)
        {
            created = CreateChannel(out error);
        }

        if (created is not null)
        {
            var connecting = ConnectChannelAsync(created);
            if (!await IsWorthWaitingAsync(created, connecting, old: null).ConfigureAwait(false) && TryPublishUnconnected(created, because))
            {
                return (null, true);
            }

            error = await BringUpAsync(created, connecting).ConfigureAwait(false);
        }

        using (Enter(because))
        {
            CreatedUnsynchronized();
            error ??= GoneUnsynchronized(created);
            if (error is null)
            {
                ConnectedUnsynchronized(created!, began);
            }
            else
            {
                FailedUnsynchronized(created, error);
            }

            if (created is not null && !_disposed && (error is null || (_active.Count == 0 && _endpoints is not { MayDial: true })))
            {
                PublishUnsynchronized(created, error is null ? because : "there is no other, although it could not be connected");
            }
            else
            {
                DiscardUnsynchronized(created);
            }

            return _disposed ? (Disposed(), false) : (error, created is not null);
        }
    }

    // Whether calls have somewhere else to go, but the channel that is replaced, while one connects that takes long. If not they may as
    // well wait on that one, as they would on a bare channel, unless it has to be primed; and at once, if handlers of the user's may answer
    // them without a connection.
    private async ValueTask<bool> IsWorthWaitingAsync(PooledChannel channel, Task connecting, PooledChannel? old)
    {
        connecting.Observe(); // it may not be looked at any more
        if (connecting.IsCompleted || _options.PrimeAsync is not null || !IsAlone())
        {
            return true;
        }

        if (channel.Transport is { IsWrapped: true })
        {
            return false;
        }

        await connecting.WaitAsync(ConnectPatienceAlone, _time).ConfigureAwait(ConfigureAwaitOptions.SuppressThrowing);
        return connecting.IsCompleted || !IsAlone();

        bool IsAlone()
        {
            lock (_lock)
            {
                return _active.Count == 0 || (_active.Count == 1 && _active[0] == old && old.State == PooledChannelState.Replacing);
            }
        }
    }

    // One that was being made is, or is not to be.
    private void CreatedUnsynchronized()
    {
        _creating--;
        _nextCreated?.TrySetResult();
        _nextCreated = null;
    }

    private bool TryPublishUnconnected(PooledChannel channel, string because)
    {
        using (Enter(because))
        {
            if (_active.Count > 0 || _disposed)
            {
                return false;
            }

            channel.IsUntried = false;
            CreatedUnsynchronized();
            PublishUnsynchronized(channel, "there is no other, although it takes long to connect");
            return true;
        }
    }

    // Waits until a channel is connected, and primes it. Gives what that failed with.
    private async Task<Exception?> BringUpAsync(PooledChannel channel, Task connecting) =>
        await FailureOfAsync(connecting).ConfigureAwait(false) ?? await FailureOfAsync(PrimeChannelAsync(channel)).ConfigureAwait(false);

    private Task ConnectChannelAsync(PooledChannel channel) =>
        WithinAsync(token => channel.ConnectAsync(token), ConnectPatience, $"Channel #{channel.Id} did not connect to {channel.Endpoint}");

    private Task PrimeChannelAsync(PooledChannel channel) => _options.PrimeAsync is { } prime
        ? WithinAsync(token => prime(channel.CallInvoker, token), PrimePatience, "Pool.PrimeAsync did not end")
        : Task.CompletedTask;

    private async Task WithinAsync(Func<CancellationToken, Task> what, TimeSpan patience, string complaint)
    {
        using var ended = CancellationTokenSource.CreateLinkedTokenSource(_closing.Token);
        var doing = what(ended.Token);
        try
        {
            await doing.WaitAsync(patience, _time, _closing.Token).ConfigureAwait(false);
        }
        catch (Exception exception) when (exception is TimeoutException or OperationCanceledException)
        {
            if (doing.IsCompleted)
            {
                await doing.ConfigureAwait(false); // in the moment in which the patience ended, if it was not itself that threw
                return;
            }

            // It is not waited for any more, and is told so here: the source is disposed before a dispose of the pool has come to it.
            await ended.CancelAsync().ConfigureAwait(ConfigureAwaitOptions.SuppressThrowing);
            if (exception is OperationCanceledException)
            {
                throw;
            }

            throw new TimeoutException($"{complaint} within {patience.TotalSeconds} s.");
        }
        finally
        {
            doing.Observe(); // it may go on for longer than it is waited for
        }
    }

    private static async Task<Exception?> FailureOfAsync(Task task)
    {
        try
        {
            await task.ConfigureAwait(false);
            return null;
        }
#pragma warning disable CA1031 // Whatever it is, the channel cannot be used, and the exception says why.
        catch (Exception exception)
#pragma warning restore CA1031
        {
            return exception;
        }
    }

    private PooledChannel? CreateChannel(out Exception? error, PooledChannel? inPlaceOf = null)
    {
        var server = TakeEndpoint(inPlaceOf);
        try
        {
            var channel = (server is null ? _policy.Create() : ((IEndpointPolicy)_policy).Create(server.Endpoint)) ?? throw new InvalidOperationException("it returned null");
            var lifetime = _options.PooledChannelLifetime;
            lifetime = lifetime == Timeout.InfiniteTimeSpan ? lifetime : lifetime * (1 - (0.1 * _random.NextDouble()));
            var transport = (_policy as AddressChannelPolicy)?.TransportOf(channel);
            var pooled = new PooledChannel(
                Interlocked.Increment(ref _lastId), channel, server?.Endpoint.ToString() ?? Target, transport, _options.MaxConcurrentCallsPerChannel, _time.GetTimestamp(), lifetime);
            transport?.SettingsCame += maxStreams => ServerTakes(pooled, maxStreams);
            transport?.GoAwayCame += () => ServerGoes(pooled);
            transport?.ConnectionLost += () => ConnectionLost(pooled);
            if (transport is null && _options.MaxConcurrentCallsPerChannel is null && pooled.Id == 1)
            {
                _log.LimitUnknown(_policy is AddressChannelPolicy ? "the transport is not the pool's own, or not HTTP/2" : "a policy makes the channels", pooled.Capacity);
            }

            lock (_lock)
            {
                if (!_channels.TryAdd(channel, pooled))
                {
                    throw new InvalidOperationException("it returned a channel that is in the pool already; each call of Create must make a new one");
                }

                pooled.Server = server;
            }

            error = null;
            return pooled;
        }
#pragma warning disable CA1031 // Whatever a policy throws, the place that was reserved for its channel is given up in an orderly way.
        catch (Exception exception)
#pragma warning restore CA1031
        {
            LeaveEndpoint(server);
            error = _policy is AddressChannelPolicy
                ? exception
                : new InvalidOperationException($"{_policy.GetType().Name}.Create did not make a channel: {exception.Message}", exception);
            return null;
        }
    }

    // For who cannot wait: makes a channel and takes the first lease on it, before it is connected.
    private ChannelLease CreateAndLease(bool isStream)
    {
        PooledChannel? created = null;
        Exception? error = null;
        InNobodysContext(() => created = CreateChannel(out error));
        ChannelLease? lease = null;
        using (Enter("calls need it"))
        {
            CreatedUnsynchronized();
            if (_disposed)
            {
                DiscardUnsynchronized(created);
                throw Disposed();
            }

            if (created is not null)
            {
                _lastCreationFailed = false;
                PublishUnsynchronized(created, "calls need it");
            }
            else
            {
                FailedUnsynchronized(created, error!);
            }

            lease = (created ?? _active.Pick(isStream, avoid: null)) is { } channel ? LeaseUnsynchronized(channel, isStream) : null;
        }

        return lease is not null ? Begin(lease) : throw error!;
    }

    // A server has said how many streams it takes: when it is connected, and whenever it likes.
    internal void ServerTakes(PooledChannel channel, int maxStreams)
    {
        bool isNews;
        using (Enter("calls need it"))
        {
            isNews = channel.Announced != maxStreams;
            channel.Announced = maxStreams;
            channel.IsGoing = false; // it is another connection
            _announced = maxStreams > 0 ? maxStreams : _announced; // that is for now, and of this connection
            channel.IsUntried = false;
            FoundAliveUnsynchronized(channel);
        }

        if (isNews)
        {
            _log.LimitAnnounced(channel, maxStreams);
        }
    }

    private void ConnectedUnsynchronized(PooledChannel channel, long began)
    {
        _lastCreationFailed = _lastConnectFailed = false;
        channel.Server?.Reached();
        if (channel.Transport is not null && _backoff is { HasWorked: false, MayDial: true } && _waiters.Count > 0)
        {
            channel.Transport.FailIfLost();
            _backoff.Dialed();
        }

        _connectTime = _time.GetElapsedTime(began);
    }

    // Of a channel that takes the place of another it is the error of that one.
    private void FailedUnsynchronized(PooledChannel? channel, Exception error, bool replaces = false)
    {
        _lastCreationError = error;
        if (!replaces && !_disposed)
        {
            _diary.CreationFailed(error);
        }

        if (channel is not null)
        {
            channel.IsUntried = false;
            channel.LastError = error;
            CouldNotReachUnsynchronized(channel);
            _lastConnectFailed = true;
            _backoff.Dialed();
            return;
        }

        // The next in line has it tried in its turn: nobody waits for what will not come.
        _lastCreationFailed = true;
        if (_active.Count == 0 && _waiters.Count > 0)
        {
            _waiters.Dequeue().SetException(error);
        }
    }

    private void PublishUnsynchronized(PooledChannel channel, string because)
    {
        PublishUnsynchronized(channel);
        _diary.Created(channel, because);
    }

    private void PublishUnsynchronized(PooledChannel channel)
    {
        _active.Add(channel);
        _created++;
    }

    private void WatchTheLineUnsynchronized(bool on)
    {
        if (on && _waiters.Count > 0 && !_isLineWatched)
        {
            _isLineWatched = true;
            _line = (_returns, _time.GetTimestamp());
            _lineWatch.Start(LinePause);
        }
    }

    private void LookAtTheLine()
    {
        using (Enter())
        {
            _isLineWatched = false;
            var elapsed = _time.GetElapsedTime(_line.At).TotalSeconds;
            CreateUnsynchronized(MissingUnsynchronized(elapsed > 0 ? (_returns - _line.Returns) / elapsed : 0), "calls wait");
            WatchTheLineUnsynchronized(!_disposed && _active.Count + _creating < _options.MaxPoolSize);
        }
    }

    private void CountTheCrowdUnsynchronized()
    {
        _mostCalls.Now = Math.Max(_mostCalls.Now, _active.Calls);
        if (_active.OfCalls > 0)
        {
            _shares = null;
        }
        else if (_active is { Calls: > 0, Streams: > 0 })
        {
            var now = _time.GetTimestamp();
            _shares = (_shares is { } shares && _time.GetElapsedTime(shares.Last, now) < IdleConnection ? shares.Since : now, now);
        }

        if (_isCrowdWatched)
        {
            _picked = (_picked.Picks + 1, _picked.Calls + _active.Calls, _picked.Streams + _active.Streams);
        }
        else if (_active.AreCrowded && _active.Spare == 0 && _active.Count + _creating < _options.MaxPoolSize)
        {
            _isCrowdWatched = true;
            _crowd = default;
            _picked = default;
            _crowdWatch.Start(CrowdPeriod);
        }
    }

    internal void LookAtTheCrowd()
    {
        using (Enter())
        {
            // As those saw it who came; where nobody came, as it is.
            (double Calls, double Streams) seen = _picked.Picks == 0
                ? (_active.Calls, _active.Streams)
                : ((double)_picked.Calls / _picked.Picks, (double)_picked.Streams / _picked.Picks);
            var wanted = ChannelsForUnsynchronized(seen.Calls) + ChannelsForUnsynchronized(seen.Streams);
            var lasting = ChannelsForUnsynchronized(Math.Min(seen.Calls, _crowd.Calls)) + ChannelsForUnsynchronized(Math.Min(seen.Streams, _crowd.Streams));
            if (_shares is { } shares && _time.GetElapsedTime(shares.Since) >= 2 * CrowdPeriod)
            {
                lasting = Math.Max(lasting, _active.OfStreams + 1); // the calls are few, but come again and again
            }

            var there = _active.Count - _active.Spare + _creating;
            CreateUnsynchronized(lasting - there, $"channels carry more than {_options.TargetConcurrentCallsPerChannel} calls, or calls share one with streams that last");
            _crowd = seen;
            _picked = default;
            _isCrowdWatched = !_disposed && wanted > _active.Count - _active.Spare + _creating && _active.Count + _creating < _options.MaxPoolSize;
            if (_isCrowdWatched)
            {
                _crowdWatch.Start(CrowdPeriod);
            }
        }
    }

    private int ChannelsForUnsynchronized(double load) => _target.ChannelsFor(load, ExpectedCapacityUnsynchronized);
}

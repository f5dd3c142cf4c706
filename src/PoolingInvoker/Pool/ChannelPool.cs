// How a pool of channels works.
//
// A channel carries many calls at a time. What the pool gives out is a lease: the right to run one call on a channel. A channel
// with fewer leases than its capacity has room. To acquire is to take a lease on a channel with room, the less loaded of two drawn
// at random; where no channel has room, to make another channel, up to MaxPoolSize; and where that is not possible either, to wait
// in line. A lease that comes back makes room, which goes to the head of the line.
//
// A channel that is found broken, has failed a call, or is too old is replaced: it takes no more leases while its replacement is
// made (Replacing), then the replacement is published and the old one drains (Draining) until its last lease has come back, when it
// is disposed (Closed). If no replacement can be made the old one goes on (Active). A channel on which a server has answered is
// replaced at once. One that has never worked is replaced after a pause, longer each time and shared by the whole pool: so many
// callers and a dead server make few dials, and calls meanwhile fail with the connect error, as they do on a bare channel.
//
// The laws. They hold at the end of each locked section, where AssertLawsUnsynchronized checks them.
//
//  1. Lease law. Every lease is returned exactly once (ChannelLease holds the gate).
//  2. Capacity. 0 <= leases <= capacity on every channel, counted at the pick. Channels, with those being made, are never more than
//     MaxPoolSize; draining ones are counted apart.
//  3. No lost wake-up. Nobody waits while an active channel has room, or while one could be made that nobody else is making; when the
//     last one could not be made, those in line wait for the channels that there are. Waiters are served first come, first served. A
//     cancelled waiter takes nothing.
//  4. Draining. A draining channel is never leased again; it is disposed on its last return, never before. The replacement is
//     published before the old one starts to drain.
//  5. No foreign code under the lock: no channel creation, no dispose, no user callback, no continuation of a waiter.
using System.Diagnostics;
using System.Diagnostics.CodeAnalysis;
using Grpc.Net.Client;
using Microsoft.Extensions.ObjectPool;

namespace PoolingInvoker;

/// <summary>
/// A pool of channels. <see cref="PoolingCallInvoker"/> leases from it for each call; <see cref="Get"/> and <see cref="Return(GrpcChannel)"/>,
/// or <see cref="AcquireAsync(CancellationToken)"/>, are for who needs a channel of their own for a while.
/// </summary>
/// <remarks>All members can be used from many threads at a time.</remarks>
public partial class ChannelPool : ObjectPool<GrpcChannel>, IAsyncDisposable, IDisposable
{
    private readonly object _lock = new();
    private readonly IPooledObjectPolicy<GrpcChannel> _policy;
    private readonly ChannelPoolOptions _options;
    private readonly TimeProvider _time;
    private readonly Random _random;
    private readonly PoolingInvokerLog _log;
    private readonly LeaseLeakDetector? _leakDetector;
    private readonly ReconnectBackoff _backoff;
    private readonly ActiveChannels _active;
    private readonly LeaseWaiterQueue _waiters = new();
    private readonly Dictionary<GrpcChannel, PooledChannel> _channels = new(ReferenceEqualityComparer.Instance); // active and draining
    private readonly TaskCompletionSource _closed = new(TaskCreationOptions.RunContinuationsAsynchronously);

    private int _creating; // channels that are being made, replacements excepted
    private int _replacing; // channels whose replacement is being made
    private int _draining;
    private int _leases;
    private int _lastId;
    private bool _lastCreationFailed;
    private bool _disposed;
    private long _created;
    private long _replaced;
    private long _retries;
    private long _leaksReclaimed;
    private Exception? _lastCreationError;

    /// <summary>
    /// Makes a pool whose channels <paramref name="policy"/> makes and judges: <c>Create</c> gives a new channel, and <c>Return</c>
    /// says after each call whether the channel is still good. <see cref="ChannelPoolOptions.ConfigureChannel"/> and
    /// <see cref="ChannelPoolOptions.ConfigureHandler"/> cannot be set: they change channels that the pool makes itself.
    /// </summary>
    /// <param name="policy">Makes each channel anew, and does not dial in <c>Create</c>: callers wait for it.</param>
    /// <param name="options">The options, or <see langword="null"/> for the defaults.</param>
    /// <exception cref="ArgumentException">An option is not valid.</exception>
    public ChannelPool(IPooledObjectPolicy<GrpcChannel> policy, ChannelPoolOptions? options = null)
        : this(policy, (options ?? new ChannelPoolOptions()).ValidatedCopy(), Random.Shared)
    {
        if (options?.ConfigureChannel is not null || options?.ConfigureHandler is not null)
        {
            throw new ArgumentException(
                "ConfigureChannel and ConfigureHandler change channels that the pool makes itself. With a policy of your own, do it in its Create.",
                nameof(options));
        }
    }

    internal ChannelPool(IPooledObjectPolicy<GrpcChannel> policy, ChannelPoolOptions validated, Random random)
    {
        ArgumentNullException.ThrowIfNull(policy);
        _policy = policy;
        _options = validated;
        _time = validated.TimeProvider;
        _random = random;
        _log = new PoolingInvokerLog(validated.LoggerFactory);
        _backoff = new ReconnectBackoff(_time, random);
        _active = new ActiveChannels(random);
        _leakDetector = validated.LeakDetectionThreshold > TimeSpan.Zero ? new LeaseLeakDetector(validated.LeakDetectionThreshold, _time, _log) : null;
        _maintenance = StartMaintenance();
        _watch = NewTimer(static pool => pool.Look(), Timeout.InfiniteTimeSpan);
        if (policy is AddressChannelPolicy { HasServiceConfigRetries: true })
        {
            _log.ServiceConfigRetries();
        }
    }

    internal TimeProvider TimeProvider => _time;

    /// <summary>Where the channels connect to, as far as the pool knows.</summary>
    internal string Target => (_policy as AddressChannelPolicy)?.Target ?? _policy.GetType().Name;

    internal TimeSpan AcquireTimeout => _options.AcquireTimeout;

    internal PoolingInvokerLog Log => _log;

    /// <summary>Whether channels throw <see cref="OperationCanceledException"/> where others throw an RpcException.</summary>
    internal bool ThrowsOperationCanceled => (_policy as AddressChannelPolicy)?.ThrowsOperationCanceled ?? false;

    private int Capacity => _options.MaxConcurrentCallsPerChannel ?? 100;

    /// <summary>Makes a pool of channels to one address.</summary>
    /// <param name="address">The address, with its scheme, as in <c>http://users:5000</c>.</param>
    /// <param name="options">The options, or <see langword="null"/> for the defaults.</param>
    /// <exception cref="ArgumentException">The address is not an http or https one, or an option is not valid.</exception>
    public static ChannelPool ForAddress(string address, ChannelPoolOptions? options = null) =>
        ForAddress(AddressChannelPolicy.ParseAddress(address), options);

    /// <inheritdoc cref="ForAddress(string, ChannelPoolOptions?)"/>
    public static ChannelPool ForAddress(Uri address, ChannelPoolOptions? options = null)
    {
        AddressChannelPolicy.CheckAddress(address);
        var validated = (options ?? new ChannelPoolOptions()).ValidatedCopy();
        return new ChannelPool(new AddressChannelPolicy(address, validated), validated, Random.Shared);
    }

    /// <summary>
    /// Takes a lease on a channel, and waits for one, blocking, as long as <see cref="AcquireAsync(CancellationToken)"/> does.
    /// Each <see cref="Get"/> needs a <see cref="Return(GrpcChannel)"/>.
    /// </summary>
    /// <returns>A channel of the pool, shared with other leases if <see cref="ChannelPoolOptions.MaxConcurrentCallsPerChannel"/> is not 1.</returns>
    /// <inheritdoc cref="AcquireAsync(CancellationToken)" path="/exception"/>
    public override GrpcChannel Get()
    {
        var acquiring = AcquireAsync(CancellationToken.None);
        var lease = acquiring.IsCompleted ? acquiring.Result : acquiring.AsTask().GetAwaiter().GetResult();
        var channel = lease.Pooled;
        lock (_lock)
        {
            // From here on another thread that returns this channel may take this lease back for its own: they are all the same.
            channel.ExplicitLeases.Push(lease);
        }

        return channel.Channel;
    }

    /// <summary>Gives back a channel that <see cref="Get"/> gave.</summary>
    /// <param name="obj">The channel.</param>
    /// <exception cref="ArgumentException">The channel is not one of this pool's, or is closed already.</exception>
    /// <exception cref="InvalidOperationException">The channel has been given back as often as it was taken.</exception>
    public override void Return(GrpcChannel obj)
    {
        ArgumentNullException.ThrowIfNull(obj);
        ChannelLease? lease;
        lock (_lock)
        {
            if (!_channels.TryGetValue(obj, out var channel))
            {
                if (_disposed)
                {
                    return; // closed with the pool
                }

                throw new ArgumentException(
                    $"The channel to {obj.Target} is not one of this pool's, or has been returned before and is closed. Return what Get gave, once.",
                    nameof(obj));
            }

            if (!channel.ExplicitLeases.TryPop(out lease))
            {
                throw new InvalidOperationException(
                    $"Channel #{channel.Id} to {obj.Target} was returned more often than Get gave it. Each Get needs one Return; a ChannelLease is given back by its Dispose.");
            }
        }

        lease.Dispose();
    }

    /// <summary>Takes a lease if that is possible without waiting.</summary>
    /// <param name="lease">The lease; dispose it to give it back.</param>
    /// <returns>Whether there was room on a channel, or a channel could be made.</returns>
    /// <exception cref="ObjectDisposedException">The pool is disposed.</exception>
    /// <exception cref="InvalidOperationException">The policy did not make a channel, and there is none. What <see cref="ChannelPoolOptions.ConfigureChannel"/> throws is thrown as it is.</exception>
    public bool TryAcquire([NotNullWhen(true)] out ChannelLease? lease)
    {
        var taken = TryTake(avoid: null, playsSafe: false, mayWait: false);
        lease = taken.Channel is { } channel ? NewLease(channel)
            : taken.Replaces is { } old ? ReplaceAndLease(old)
            : taken.Creates ? CreateAndLease(mayWait: false, out _)
            : null;
        if (lease is null)
        {
            return false;
        }

        ByHand(lease);
        return true;
    }

    /// <summary>
    /// Takes a lease, and waits in line for one when the pool is full: up to <see cref="ChannelPoolOptions.AcquireTimeout"/>.
    /// </summary>
    /// <param name="cancellationToken">Ends the wait.</param>
    /// <returns>The lease; dispose it to give it back.</returns>
    /// <exception cref="TimeoutException">No channel became free within <see cref="ChannelPoolOptions.AcquireTimeout"/>.</exception>
    /// <exception cref="InvalidOperationException"><see cref="ChannelPoolOptions.MaxCallsWaiting"/> calls wait already, or the policy did not make a channel, and there is none. What <see cref="ChannelPoolOptions.ConfigureChannel"/> throws is thrown as it is.</exception>
    /// <exception cref="ObjectDisposedException">The pool is disposed, or was while this call waited.</exception>
    /// <exception cref="OperationCanceledException"><paramref name="cancellationToken"/> was cancelled.</exception>
    public ValueTask<ChannelLease> AcquireAsync(CancellationToken cancellationToken = default)
    {
        var acquiring = AcquireAsync(_options.AcquireTimeout, avoid: null, playsSafe: false, cancellationToken);
        return acquiring.IsCompletedSuccessfully ? new ValueTask<ChannelLease>(ByHand(acquiring.Result)) : WaitAsync(acquiring);

        async ValueTask<ChannelLease> WaitAsync(ValueTask<ChannelLease> acquiring) => ByHand(await acquiring.ConfigureAwait(false));
    }

    /// <summary>Takes a lease for a call.</summary>
    /// <param name="timeout">How long it waits in line at the most.</param>
    /// <param name="avoid">The channel that has failed the call, which gets another one where there is one or one can be made.</param>
    /// <param name="playsSafe">Whether the call has failed more than once, and gets the channel that has succeeded most.</param>
    /// <param name="cancellationToken">Ends the wait.</param>
    internal ValueTask<ChannelLease> AcquireAsync(TimeSpan timeout, PooledChannel? avoid, bool playsSafe, CancellationToken cancellationToken)
    {
        if (cancellationToken.IsCancellationRequested)
        {
            return ValueTask.FromCanceled<ChannelLease>(cancellationToken);
        }

        try
        {
            var taken = TryTake(avoid, playsSafe, mayWait: timeout != TimeSpan.Zero);
            var waiter = taken.Waiter;
            var lease = taken.Channel is { } channel ? NewLease(channel)
                : taken.Replaces is { } old ? ReplaceAndLease(old)
                : taken.Creates ? CreateAndLease(mayWait: timeout != TimeSpan.Zero, out waiter)
                : null;
            return lease is not null ? new ValueTask<ChannelLease>(lease)
                : waiter is not null ? new ValueTask<ChannelLease>(WaitAsync(waiter))
                : throw TimedOut(timeout);
        }
#pragma warning disable CA1031 // The exception reaches the caller, through the task.
        catch (Exception exception)
#pragma warning restore CA1031
        {
            return ValueTask.FromException<ChannelLease>(exception);
        }

        async Task<ChannelLease> WaitAsync(LeaseWaiter waiter)
        {
            try
            {
                await waiter.Task.WaitAsync(timeout, _time, cancellationToken).ConfigureAwait(false);
            }
            catch (TimeoutException)
            {
                LeaveLine(waiter, timeout);
            }
            catch (OperationCanceledException)
            {
                GiveUp(waiter);
                throw;
            }

            // Granted, perhaps in the moment in which the time was up; or the pool was disposed.
            if (await waiter.Task.ConfigureAwait(false) is { } granted)
            {
                return NewLease(granted);
            }

            return CreateAndLease(mayWait: true, out var again) ?? await WaitAsync(again!).ConfigureAwait(false);
        }
    }

    /// <summary>Takes a lease on a channel that has room, without making one: the fast path of a call.</summary>
    internal bool TryLease([NotNullWhen(true)] out ChannelLease? lease)
    {
        PooledChannel? channel;
        lock (_lock)
        {
            ObjectDisposedException.ThrowIf(_disposed, this);
            channel = _active.Count + _creating < _options.MinPoolSize ? null : _active.Pick(avoid: null);
            if (channel is null || ReasonToReplaceUnsynchronized(channel, thorough: false) is not null)
            {
                lease = null;
                return false;
            }

            LeaseUnsynchronized(channel);
            AssertLawsUnsynchronized();
        }

        lease = NewLease(channel);
        return true;
    }

    /// <summary>Whether there is room on a channel that works, other than this one.</summary>
    internal bool HasReady(PooledChannel? otherThan)
    {
        lock (_lock)
        {
            for (var i = 0; i < _active.Good; i++)
            {
                if (_active[i].IsAlive && _active[i] != otherThan)
                {
                    return true;
                }
            }

            return false;
        }
    }

    internal void ThrowIfDisposed() => ObjectDisposedException.ThrowIf(Volatile.Read(ref _disposed), this);

    /// <summary>Takes the numbers of this moment.</summary>
    public ChannelPoolStatistics GetStatistics()
    {
        lock (_lock)
        {
            var idle = 0;
            for (var i = 0; i < _active.Count; i++)
            {
                idle += _active[i].Leases == 0 ? 1 : 0;
            }

            return new ChannelPoolStatistics
            {
                Channels = _active.Count + _creating,
                IdleChannels = idle,
                DrainingChannels = _draining,
                CallsInFlight = _leases,
                CallsWaiting = _waiters.Count,
                ChannelsCreated = _created,
                ChannelsReplaced = _replaced,
                ChannelsGivenUp = Interlocked.Read(ref _givenUp),
                Retries = Interlocked.Read(ref _retries),
                LeaksReclaimed = Interlocked.Read(ref _leaksReclaimed),
            };
        }
    }

    internal void CountRetry() => Interlocked.Increment(ref _retries);

    internal void CountReclaimedLeak() => Interlocked.Increment(ref _leaksReclaimed);

    /// <summary>Gives a lease back; <see cref="ChannelLease"/> sees to it that this happens once.</summary>
    internal void Return(ChannelLease lease, PooledChannel channel, LeaseOutcome outcome)
    {
        _leakDetector?.Returned(lease);
        var good = IsGood(channel) && outcome != LeaseOutcome.ChannelFailed && (outcome != LeaseOutcome.CouldNotConnect || channel.IsConnected);
        var closes = false;
        string? reason;
        lock (_lock)
        {
            Debug.Assert(channel.Leases > 0, "A lease came back that was not out.");
            channel.Leases--;
            _leases--;
            channel.IdleSince = _time.GetTimestamp();
            channel.Pulse.Answering -= lease.IsAnswered ? 1 : 0;
            channel.Pulse.ByHand -= lease.IsByHand ? 1 : 0;
            lease.IsAnswered = true;
            if (outcome is LeaseOutcome.Answered or LeaseOutcome.ServerFailed)
            {
                ServerAnsweredUnsynchronized(channel, fails: outcome == LeaseOutcome.ServerFailed);
            }
            else if (outcome != LeaseOutcome.Unknown)
            {
                channel.Pulse.IsNotSilent(channel.IdleSince); // it fails aloud
                channel.Streak = 0;
            }

            channel.Failed |= !good;
            _active.Update(channel);
            reason = ReasonToReplaceUnsynchronized(channel, thorough: outcome != LeaseOutcome.Answered);
            if (reason is not null)
            {
                BeginReplacingUnsynchronized(channel);
            }
            else if (channel is { State: PooledChannelState.Draining, Leases: 0 })
            {
                closes = true;
                CloseUnsynchronized(channel);
            }

            ServeWaitersUnsynchronized();
            AssertLawsUnsynchronized();
        }

        if (closes)
        {
            DisposeChannel(channel);
        }
        else if (reason is not null)
        {
            Replace(channel, reason, andLease: false);
        }
    }

    private Taken TryTake(PooledChannel? avoid, bool playsSafe, bool mayWait)
    {
        lock (_lock)
        {
            ObjectDisposedException.ThrowIf(_disposed, this);
            var hasPlace = mayWait && _waiters.Count < _options.MaxCallsWaiting;
            var isBelowMinimum = _active.Count + _creating < _options.MinPoolSize;
            var mayCreate = isBelowMinimum || MayCreateUnsynchronized(newCallers: 1, hasPlace);
            Taken taken = default;
            var picked = isBelowMinimum ? null : (playsSafe ? _active.PickSafest(avoid) : null) ?? _active.Pick(avoid);
            if (picked is not null && picked == avoid && _creating + _waiters.Count == 0 && _active.Count < _options.MaxPoolSize)
            {
                // There is no other one to try: one is made, by whoever comes first.
                _creating++;
                taken = new Taken { Creates = true };
            }
            else if (picked is { } channel)
            {
                if (ReasonToReplaceUnsynchronized(channel, thorough: true) is not null)
                {
                    BeginReplacingUnsynchronized(channel);
                    taken = new Taken { Replaces = channel };
                }
                else
                {
                    LeaseUnsynchronized(channel);
                    taken = new Taken { Channel = channel };
                }
            }
            else if (mayCreate && _waiters.Count == 0)
            {
                _creating++;
                taken = new Taken { Creates = true };
            }
            else if (hasPlace)
            {
                taken = new Taken { Waiter = _waiters.Enqueue() };
                if (mayCreate)
                {
                    // What the newcomer may have made goes to whoever is first in line.
                    _creating++;
                    _waiters.Dequeue().SetResult(null);
                }
            }
            else if (mayWait)
            {
                throw new TooManyWaitingException(
                    $"No channel is free and too many calls wait for one already ({CountsUnsynchronized()}). Raise {KnobsUnsynchronized()} or Pool.MaxCallsWaiting ({_options.MaxCallsWaiting}).");
            }

            AssertLawsUnsynchronized();
            return taken;
        }
    }

    private ChannelLease NewLease(PooledChannel channel)
    {
        var lease = new ChannelLease(this, channel);
        _leakDetector?.Taken(lease);
        StartWatching();
        return lease;
    }

    // Makes the channel that was reserved under the lock, and takes the first lease on it. If it cannot be made but there are others, a
    // lease on one of them will do, and if they are full the head of the line. Null if there is no lease, and no waiter if none was asked for.
    private ChannelLease? CreateAndLease(bool mayWait, out LeaseWaiter? waiter)
    {
        waiter = null;
        var created = CreateChannel(out var error);
        PooledChannel? leased = null;
        bool disposed;
        lock (_lock)
        {
            _creating--;
            disposed = _disposed;
            _lastCreationFailed = created is null;
            if (!disposed)
            {
                if (created is not null)
                {
                    PublishUnsynchronized(created);
                }

                leased = created ?? _active.Pick(avoid: null);
                if (leased is not null)
                {
                    LeaseUnsynchronized(leased);
                }
                else if (mayWait && _active.Count > 0)
                {
                    waiter = _waiters.EnqueueFirst();
                }
            }

            ServeWaitersUnsynchronized();
            CompleteDisposeUnsynchronized();
            AssertLawsUnsynchronized();
        }

        if (disposed && created is not null)
        {
            DisposeChannel(created);
        }

        if (created is null)
        {
            _log.CreationFailed(error!);
        }
        else if (!disposed)
        {
            _log.Created(created, "calls need it");
        }

        return leased is not null ? NewLease(leased)
            : waiter is not null ? null
            : throw (disposed ? Disposed() : error!);
    }

    private ChannelLease ReplaceAndLease(PooledChannel old) => NewLease(Replace(old, "it was found broken", andLease: true) ?? throw Disposed());

    // Makes the replacement of a channel in state Replacing; the old one stays if none can be made. Returns the channel on which a lease
    // was taken, or, if none was asked for, the replacement; null if the pool is disposed.
    private PooledChannel? Replace(PooledChannel old, string because, bool andLease, bool onProbation = false)
    {
        var created = CreateChannel(out var error);
        if (created is null)
        {
            _log.ReplacementFailed(old, error!);
        }

        PooledChannel? leased = null;
        var closes = false;
        bool unwanted;
        lock (_lock)
        {
            _replacing--;
            unwanted = _disposed;
            if (_disposed)
            {
                CompleteDisposeUnsynchronized();
            }
            else if (created is null)
            {
                _backoff.Dialed();
                old.State = PooledChannelState.Active;
                _active.Update(old);
            }
            else
            {
                created.IsOnProbation = onProbation;
                closes = PublishInPlaceOfUnsynchronized(old, created);
            }

            if (andLease && !_disposed)
            {
                leased = created ?? old;
                LeaseUnsynchronized(leased);
            }

            ServeWaitersUnsynchronized();
            AssertLawsUnsynchronized();
        }

        if (created is not null)
        {
            if (unwanted)
            {
                DisposeChannel(created);
            }
            else
            {
                _log.Replaced(created, old, because);
            }
        }

        if (closes)
        {
            DisposeChannel(old);
        }

        return andLease ? leased : unwanted ? null : created;
    }

    private PooledChannel? CreateChannel(out Exception? error)
    {
        try
        {
            var channel = _policy.Create() ?? throw new InvalidOperationException("it returned null");
            var lifetime = _options.PooledChannelLifetime;
            lifetime = lifetime == Timeout.InfiniteTimeSpan ? lifetime : lifetime * (1 - (0.1 * _random.NextDouble()));
            var transport = (_policy as AddressChannelPolicy)?.TransportOf(channel);
            var pooled = new PooledChannel(Interlocked.Increment(ref _lastId), channel, transport, Capacity, _time.GetTimestamp(), lifetime);
            if (transport is not null)
            {
                transport.OnFirstRead(() => FoundAlive(pooled));
            }

            lock (_lock)
            {
                if (!_channels.TryAdd(channel, pooled))
                {
                    throw new InvalidOperationException("it returned a channel that is in the pool already; each call of Create must make a new one");
                }
            }

            error = null;
            return pooled;
        }
#pragma warning disable CA1031 // Whatever a policy throws, the place that was reserved for its channel is given up in an orderly way.
        catch (Exception exception)
#pragma warning restore CA1031
        {
            error = _policy is AddressChannelPolicy
                ? exception
                : new InvalidOperationException($"{_policy.GetType().Name}.Create did not make a channel: {exception.Message}", exception);
            Volatile.Write(ref _lastCreationError, error);
            return null;
        }
    }

    private bool IsGood(PooledChannel channel)
    {
        try
        {
            return _policy.Return(channel.Channel);
        }
#pragma warning disable CA1031 // The call is over and keeps its outcome; a policy that cannot judge the channel does not want it.
        catch (Exception exception)
#pragma warning restore CA1031
        {
            _log.PolicyThrew(channel, exception);
            return false;
        }
    }

    private void DisposeChannel(PooledChannel channel)
    {
        try
        {
            channel.Channel.Dispose();
            _log.Closed(channel);
        }
#pragma warning disable CA1031 // Whoever gives the last lease back has nothing to do with what a handler of the user's throws.
        catch (Exception exception)
#pragma warning restore CA1031
        {
            _log.CloseFailed(channel, exception);
        }

        lock (_lock)
        {
            _channels.Remove(channel.Channel);
            CompleteDisposeUnsynchronized();
        }
    }

    private void LeaseUnsynchronized(PooledChannel channel)
    {
        Debug.Assert(Monitor.IsEntered(_lock) && channel.HasRoom, "A lease needs the lock, and room.");
        channel.Leases++;
        channel.Pulse.Started++;
        _leases++;
        _active.Update(channel);
    }

    private void PublishUnsynchronized(PooledChannel channel)
    {
        _active.Add(channel);
        _created++;
    }

    // Whether the old one has no leases, and closes.
    private bool PublishInPlaceOfUnsynchronized(PooledChannel old, PooledChannel created)
    {
        // Statement order is important: the pool is never without either of them.
        PublishUnsynchronized(created);
        _replaced++;
        StartDrainingUnsynchronized(old);
        if (old.Leases > 0)
        {
            return false;
        }

        CloseUnsynchronized(old);
        return true;
    }

    private void StartDrainingUnsynchronized(PooledChannel channel)
    {
        _active.Remove(channel);
        channel.State = PooledChannelState.Draining;
        _draining++;
    }

    // Whoever closes a channel under the lock disposes it outside.
    private void CloseUnsynchronized(PooledChannel channel)
    {
        Debug.Assert(channel.State == PooledChannelState.Draining, "Only a draining channel closes.");
        channel.State = PooledChannelState.Closed;
        _draining--;
    }

    // A channel on which a server has answered is replaced at once; one that has never worked when the pool may dial again.
    private string? ReasonToReplaceUnsynchronized(PooledChannel channel, bool thorough)
    {
        if (channel.State != PooledChannelState.Active || (!channel.Proven && !_backoff.MayDial))
        {
            return null;
        }

        return channel.BrokenState(thorough) is { } state ? $"it was in {state}"
            : channel.Failed ? "a call failed because of it"
            : null;
    }

    private void BeginReplacingUnsynchronized(PooledChannel channel, bool countsAsDial = true)
    {
        if (!channel.Proven && countsAsDial)
        {
            _backoff.Dialed();
        }

        channel.State = PooledChannelState.Replacing;
        _replacing++;
        _active.Update(channel);
    }

    // Whether one more channel is of use: there is space for it, and those on their way do not carry all who wait, or the new caller
    // cannot wait for them. Those in line make none while that fails, as long as there are channels that will have room.
    private bool MayCreateUnsynchronized(int newCallers, bool mayWait = true) =>
        _active.Count + _creating < _options.MaxPoolSize
        && (!mayWait || _waiters.Count + newCallers + _creating > (_creating + _replacing) * (long)Capacity)
        && (newCallers > 0 || !_lastCreationFailed || _active.Count == 0);

    private void ServeWaitersUnsynchronized()
    {
        while (_waiters.Count > 0)
        {
            if (_active.Pick(avoid: null) is { } channel)
            {
                LeaseUnsynchronized(channel);
                _waiters.Dequeue().SetResult(channel);
            }
            else if (MayCreateUnsynchronized(newCallers: 0))
            {
                _creating++;
                _waiters.Dequeue().SetResult(null);
            }
            else
            {
                break;
            }
        }
    }

    // The time of a waiter is up: throws, unless it has been granted something in this moment.
    private void LeaveLine(LeaseWaiter waiter, TimeSpan timeout)
    {
        bool left;
        lock (_lock)
        {
            left = _waiters.Remove(waiter);
        }

        if (left)
        {
            throw TimedOut(timeout);
        }
    }

    private TimeoutException TimedOut(TimeSpan timeout)
    {
        lock (_lock)
        {
            return new TimeoutException(
                $"No channel became free within {timeout.TotalSeconds:0.###} s ({CountsUnsynchronized()}). Raise {KnobsUnsynchronized()} or Pool.AcquireTimeout.",
                _lastCreationError);
        }
    }

    // A cancelled waiter takes nothing: what it has been granted in this moment goes to the next one.
    private void GiveUp(LeaseWaiter waiter)
    {
        PooledChannel? granted;
        lock (_lock)
        {
            if (_waiters.Remove(waiter) || waiter.Task.Exception is not null)
            {
                return;
            }

            granted = waiter.Task.Result;
            if (granted is null)
            {
                _creating--;
                ServeWaitersUnsynchronized();
                CompleteDisposeUnsynchronized();
            }

            AssertLawsUnsynchronized();
        }

        if (granted is not null)
        {
            NewLease(granted).Dispose();
        }
    }

    private string CountsUnsynchronized() =>
        $"channels {_active.Count + _creating}, in flight {_leases}, waiting {_waiters.Count}";

    private string KnobsUnsynchronized() =>
        $"Pool.MaxPoolSize ({_options.MaxPoolSize}), Pool.MaxConcurrentCallsPerChannel ({Capacity})";

    private ObjectDisposedException Disposed() => new(GetType().FullName);

    /// <summary>What a caller gets: a lease on a channel, the right to replace or to make one, a place in line, or nothing.</summary>
    private readonly struct Taken
    {
        public PooledChannel? Channel { get; init; }

        public PooledChannel? Replaces { get; init; }

        public bool Creates { get; init; }

        public LeaseWaiter? Waiter { get; init; }
    }

    [Conditional("DEBUG")]
    private void AssertLawsUnsynchronized()
    {
        Debug.Assert(Monitor.IsEntered(_lock), "The laws hold under the lock.");
        var leases = 0;
        for (var i = 0; i < _active.Count; i++)
        {
            var channel = _active[i];
            leases += channel.Leases;
            Debug.Assert(channel.Leases >= 0 && channel.Leases <= channel.Capacity, "Law 2: leases are from 0 to the capacity.");
            Debug.Assert(channel.State is PooledChannelState.Active or PooledChannelState.Replacing, "Law 4: a draining channel is not leased.");
        }

        Debug.Assert(leases <= _leases, "Law 1: each lease is counted once.");
        Debug.Assert(_creating >= 0 && _replacing >= 0 && _draining >= 0, "What was begun ends once.");
        Debug.Assert(_active.Count + _creating <= _options.MaxPoolSize, "Law 2: the pool is no larger than MaxPoolSize.");
        Debug.Assert(_waiters.Count == 0 || !(_active.HasRoom || MayCreateUnsynchronized(newCallers: 0)), "Law 3: nobody waits while there is room.");
    }
}

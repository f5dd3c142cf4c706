// How a pool of channels works.
//
// A channel carries many calls at a time. What the pool gives out is a lease: the right to run one call on a channel. A channel
// with fewer leases than its capacity has room. The capacity is what its server says that it takes. To acquire is to take a lease on a
// channel with room, the less loaded of two drawn at random, and where no channel has room to wait in line for one. A lease that comes
// back makes room, which goes to the head of the line.
//
// Channels are made in the background, as many as it takes (ChannelPool.Growth.cs), and join when they are connected. Whoever waits gets
// the first room that there is, whichever channel has it.
//
// A channel that is found broken, has failed a call, or whose server takes no more calls on its connection is replaced: it takes no more
// leases while its replacement is connected (Replacing), then the replacement is published and the old one drains (Draining) until its
// last lease has come back, when it is disposed (Closed). If no replacement can be made the old one goes on (Active). One that is only
// old takes leases until its replacement is connected (Refreshing). A channel on which a server has answered is replaced at once. One that
// has never worked is replaced after a pause, longer each time and shared by the whole pool: so many callers and a dead server make few
// dials, and calls meanwhile fail with the connect error, as they do on a bare channel.
//
// The laws. They hold at the end of each locked section, where AssertLawsUnsynchronized checks them.
//
//  1. Lease law. Every lease is returned exactly once (ChannelLease holds the gate).
//  2. Capacity. No lease is taken on a channel at its capacity, counted at the pick; a server that lowers its limit gets no new calls until
//     enough have ended. Channels, with those being made, are never more than MaxPoolSize; draining ones are counted apart.
//  3. No lost wake-up. Nobody waits while an active channel has room, or without something that will end the wait: a lease that will come
//     back, a channel that is being made, a look at the line that is due, or a server that takes nothing and will say when it does. Waiters
//     are served first come, first served. A cancelled waiter takes nothing.
//  4. Draining. A draining channel is never leased again; it is disposed on its last return, never before. The replacement is
//     published before the old one starts to drain.
//  5. No foreign code under the lock: no channel creation, no dispose, no user callback, no continuation of a waiter.
using System.Diagnostics;
using System.Diagnostics.CodeAnalysis;
using Grpc.Net.Client;
using Microsoft.Extensions.ObjectPool;
using Microsoft.Extensions.ServiceDiscovery;

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
    private readonly PoolDiary _diary;
    private readonly LeaseLeakDetector? _leakDetector;
    private readonly ReconnectBackoff _backoff;
    private readonly ChannelTarget _target;
    private readonly ActiveChannels _active;
    private readonly LeaseWaiterQueue _waiters = new();
    private readonly Dictionary<GrpcChannel, PooledChannel> _channels = new(ReferenceEqualityComparer.Instance); // active and draining
    private readonly TaskCompletionSource _closed = new(TaskCreationOptions.RunContinuationsAsynchronously);

#pragma warning disable CA2213 // It has no timer, and what is being connected may still look at it.
    private readonly CancellationTokenSource _closing = new();
#pragma warning restore CA2213

    private int _creating; // channels that are being made, replacements excepted
    private int _replacing; // channels whose replacement is being made
    private int _draining;
    private int _leases;
    private int _lastId;
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
        : this(policy, ValidatedFor(policy, options), Random.Shared)
    {
    }

    /// <param name="policy">Makes the channels; an <see cref="IEndpointPolicy"/> if there are endpoints.</param>
    /// <param name="validated">The options.</param>
    /// <param name="random">Draws.</param>
    /// <param name="endpoints">What the channels go to, in a pool that has several.</param>
    internal ChannelPool(IPooledObjectPolicy<GrpcChannel> policy, ChannelPoolOptions validated, Random random, EndpointList? endpoints = null)
    {
        _policy = policy;
        _options = validated;
        _time = validated.TimeProvider;
        _random = random;
        _log = new PoolingInvokerLog(validated.LoggerFactory);
        _diary = new PoolDiary(_lock, AfterUnsynchronized, _log, validated, Target);
        _backoff = new ReconnectBackoff(_time, random, TimeSpan.FromSeconds(0.1), TimeSpan.FromSeconds(1));
        _target = new ChannelTarget(validated.TargetConcurrentCallsPerChannel ?? int.MaxValue);
        _active = new ActiveChannels(random, _target);
        _leakDetector = validated.LeakDetectionThreshold > TimeSpan.Zero ? new LeaseLeakDetector(validated.LeakDetectionThreshold, _time, _log) : null;
        _maintenance = StartMaintenance();
        _watch = new PoolTimer(this, static pool => pool.Look());
        _lineWatch = new PoolTimer(this, static pool => pool.LookAtTheLine());
        _crowdWatch = new PoolTimer(this, static pool => pool.LookAtTheCrowd());
        _balanceWatch = new PoolTimer(this, static pool => pool.Balance());
        if (endpoints is not null)
        {
            _endpoints = new PoolEndpoints(_time, random);
            _endpoints.Update(endpoints.Known);
            _endpointWatcher = endpoints.Resolve is null ? null : new EndpointWatcher(endpoints.Name!, endpoints.Resolve, _time, random, this);
        }

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

    /// <summary>Makes a pool of channels to one address, or to all addresses that a name has.</summary>
    /// <param name="address">
    /// The address, with its scheme, as in <c>http://users:5000</c>. With <c>dns:///users:5000</c> channels are spread over the addresses that
    /// the name has, and follow them; to the servers, and for TLS, they are to the name. They speak plain text, unless
    /// <see cref="ChannelPoolOptions.ConfigureChannel"/> sets credentials of TLS (<c>ChannelCredentials.SecureSsl</c>).
    /// </param>
    /// <param name="options">The options, or <see langword="null"/> for the defaults.</param>
    /// <exception cref="ArgumentException">The address is not an http, https or dns one, or an option is not valid.</exception>
    public static ChannelPool ForAddress(string address, ChannelPoolOptions? options = null) =>
        ForAddress(AddressChannelPolicy.ParseAddress(address), options);

    /// <inheritdoc cref="ForAddress(string, ChannelPoolOptions?)"/>
    public static ChannelPool ForAddress(Uri address, ChannelPoolOptions? options = null)
    {
        ArgumentNullException.ThrowIfNull(address);
        if (address.IsAbsoluteUri && address.Scheme == DnsEndpoints.Scheme)
        {
            return OverEndpoints(
                options,
                validated => new AddressChannelPolicy(address, validated),
                (policy, time) => new EndpointList([], policy.Address, new DnsEndpoints(policy.Address, time).ResolveAsync));
        }

        AddressChannelPolicy.CheckAddress(address);
        var validated = (options ?? new ChannelPoolOptions()).ValidatedCopy();
        return new ChannelPool(new AddressChannelPolicy(address, validated), validated, Random.Shared);
    }

    /// <summary>Makes a pool of channels that are spread over several addresses. Each keeps its own authority.</summary>
    /// <param name="addresses">The addresses, with their scheme, which is the same for all, as in <c>http://10.0.0.1:5000</c>.</param>
    /// <param name="options">The options, or <see langword="null"/> for the defaults.</param>
    /// <exception cref="ArgumentException">There are no addresses, one is not an http or https one, they have different schemes, or an option is not valid.</exception>
    public static ChannelPool ForAddresses(IEnumerable<string> addresses, ChannelPoolOptions? options = null)
    {
        var list = ChannelEndpoint.ParseList(addresses);
        return OverEndpoints(options, validated => new AddressChannelPolicy(list, validated), (_, _) => new EndpointList(list, Name: null, Resolve: null));
    }

    /// <summary>
    /// Makes a pool of channels that are spread over the endpoints that a service has, as service discovery finds them and follows them. To the
    /// servers, and for TLS, the channels are to the name of the service.
    /// </summary>
    /// <param name="address">The name of the service, with the scheme that it speaks, as in <c>http://users</c>.</param>
    /// <param name="resolve">
    /// Finds the endpoints, and says when they have changed: with Microsoft.Extensions.ServiceDiscovery
    /// <c>token =&gt; resolver.GetEndpointsAsync("http://users", token)</c>, where <c>resolver</c> is its <c>ServiceEndpointResolver</c>.
    /// </param>
    /// <param name="options">The options, or <see langword="null"/> for the defaults.</param>
    /// <exception cref="ArgumentException">The address is not an http or https one, or an option is not valid.</exception>
    public static ChannelPool ForService(string address, Func<CancellationToken, ValueTask<ServiceEndpointSource>> resolve, ChannelPoolOptions? options = null)
    {
        ArgumentNullException.ThrowIfNull(resolve);
        var name = AddressChannelPolicy.ParseAddress(address);
        AddressChannelPolicy.CheckAddress(name);
        return OverEndpoints(options, validated => new AddressChannelPolicy(name, validated, pins: true), (policy, _) => new EndpointList([], policy.Address, resolve));
    }

    private static ChannelPoolOptions ValidatedFor(IPooledObjectPolicy<GrpcChannel> policy, ChannelPoolOptions? options)
    {
        ArgumentNullException.ThrowIfNull(policy);
        var validated = (options ?? new ChannelPoolOptions()).ValidatedCopy();
        return validated is { ConfigureChannel: null, ConfigureHandler: null } ? validated : throw new ArgumentException(
            "ConfigureChannel and ConfigureHandler change channels that the pool makes itself. With a policy of your own, do it in its Create.",
            nameof(options));
    }

    private static ChannelPool OverEndpoints(
        ChannelPoolOptions? options, Func<ChannelPoolOptions, AddressChannelPolicy> newPolicy, Func<AddressChannelPolicy, TimeProvider, EndpointList> newList)
    {
        var validated = (options ?? new ChannelPoolOptions()).ValidatedCopy();
        var policy = newPolicy(validated);
        return new ChannelPool(policy, validated, Random.Shared, newList(policy, validated.TimeProvider));
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

    /// <summary>
    /// Takes a lease if that is possible without waiting: on a channel that has room, or on one that can be made at once, which with
    /// <see cref="ChannelPoolOptions.PrimeAsync"/> none can.
    /// </summary>
    /// <param name="lease">The lease; dispose it to give it back.</param>
    /// <returns>Whether there was room on a channel, or a channel could be made.</returns>
    /// <exception cref="ObjectDisposedException">The pool is disposed.</exception>
    /// <exception cref="InvalidOperationException">The policy did not make a channel, and there is none. What <see cref="ChannelPoolOptions.ConfigureChannel"/> throws is thrown as it is.</exception>
    public bool TryAcquire([NotNullWhen(true)] out ChannelLease? lease)
    {
        lease = TakeAtOnce(isStream: false);
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
        var acquiring = AcquireAsync(_options.AcquireTimeout, isStream: false, avoid: null, playsSafe: false, cancellationToken);
        return acquiring.IsCompletedSuccessfully ? new ValueTask<ChannelLease>(ByHand(acquiring.Result)) : WaitAsync(acquiring);

        async ValueTask<ChannelLease> WaitAsync(ValueTask<ChannelLease> acquiring) => ByHand(await acquiring.ConfigureAwait(false));
    }

    /// <summary>Takes a lease for a call.</summary>
    /// <param name="timeout">How long it waits in line at the most.</param>
    /// <param name="isStream">Whether it is for a call that streams.</param>
    /// <param name="avoid">The channel that has failed the call, which gets another one where there is one or one can be made.</param>
    /// <param name="playsSafe">Whether the call has failed more than once, and gets the channel that has succeeded most.</param>
    /// <param name="cancellationToken">Ends the wait.</param>
    internal ValueTask<ChannelLease> AcquireAsync(TimeSpan timeout, bool isStream, PooledChannel? avoid, bool playsSafe, CancellationToken cancellationToken)
    {
        if (cancellationToken.IsCancellationRequested)
        {
            return ValueTask.FromCanceled<ChannelLease>(cancellationToken);
        }

        try
        {
            if (timeout == TimeSpan.Zero)
            {
                return new ValueTask<ChannelLease>(TakeAtOnce(isStream, avoid, playsSafe) ?? throw TimedOut(timeout));
            }

            var taken = Take(isStream, avoid, playsSafe, mayWait: true);
            return taken.Lease is { } lease ? new ValueTask<ChannelLease>(Begin(lease))
                : taken.Waiter is { } waiter ? new ValueTask<ChannelLease>(WaitAsync(waiter, timeout))
                : taken.CreatesForItself ? new ValueTask<ChannelLease>(WaitForNewOneAsync())
                : new ValueTask<ChannelLease>(TakeAtOnce(isStream, avoid, playsSafe) ?? throw LineIsFull());
        }
#pragma warning disable CA1031 // The exception reaches the caller, through the task.
        catch (Exception exception)
#pragma warning restore CA1031
        {
            return ValueTask.FromException<ChannelLease>(exception);
        }

        async Task<ChannelLease> WaitAsync(LeaseWaiter waiter, TimeSpan left)
        {
            try
            {
                await waiter.Task.WaitAsync(left, _time, cancellationToken).ConfigureAwait(false);
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
            return Begin(await waiter.Task.ConfigureAwait(false));
        }

        // If it cannot be made the one that was to be avoided has to do.
        async Task<ChannelLease> WaitForNewOneAsync()
        {
            var began = _time.GetTimestamp();
            Task creating = DoAsync(() => CreateAsync("a call failed on the only other one"));
            await creating.WaitAsync(timeout, _time, cancellationToken).ConfigureAwait(ConfigureAwaitOptions.SuppressThrowing);
            cancellationToken.ThrowIfCancellationRequested();
            var left = timeout == Timeout.InfiniteTimeSpan ? timeout : TimeSpan.FromTicks(Math.Max(0, (timeout - _time.GetElapsedTime(began)).Ticks));
            var taken = Take(isStream, avoid, playsSafe, mayWait: true, mayCreateForItself: false);
            return taken.Lease is { } lease ? Begin(lease)
                : taken.Waiter is { } waiter ? await WaitAsync(waiter, left).ConfigureAwait(false)
                : throw LineIsFull();
        }
    }

    /// <summary>Takes a lease on a channel that has room, without making one: the fast path of a call.</summary>
    internal bool TryLease(bool isStream, [NotNullWhen(true)] out ChannelLease? lease)
    {
        using (Enter())
        {
            lease = PickReadyUnsynchronized(isStream) is { } channel ? LeaseUnsynchronized(channel, isStream) : null;
        }

        return lease is not null && Begin(lease) is not null;
    }

    /// <summary>The same for a unary call, which is the lease itself, and the gate: it gives the lease back once.</summary>
    internal PooledChannel? TryLease(object call)
    {
        PooledChannel? channel;
        using (Enter())
        {
            channel = PickReadyUnsynchronized(isStream: false);
            if (channel is null)
            {
                return null;
            }

            CountLeaseUnsynchronized(channel, isStream: false);
        }

        Begin(call);
        return channel;
    }

    private PooledChannel? PickReadyUnsynchronized(bool isStream)
    {
        ObjectDisposedException.ThrowIf(_disposed, this);
        var channel = _active.Count + _creating < MinimumUnsynchronized ? null : _active.Pick(isStream, avoid: null);
        return channel is null || ReasonToReplaceUnsynchronized(channel, thorough: false) is not null ? null : channel;
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

    internal bool IsDisposed => Volatile.Read(ref _disposed);

    internal void ThrowIfDisposed() => ObjectDisposedException.ThrowIf(Volatile.Read(ref _disposed), this);

    /// <summary>Takes the numbers of this moment.</summary>
    public ChannelPoolStatistics GetStatistics()
    {
        lock (_lock)
        {
            return new ChannelPoolStatistics
            {
                Channels = _active.Count + _creating,
                IdleChannels = _active.Count(static channel => channel.Leases == 0),
                DrainingChannels = _draining,
                CallsInFlight = _leases,
                CallsWaiting = _waiters.Count,
                ChannelsCreated = _created,
                ChannelsReplaced = _replaced,
                ChannelsGivenUp = _givenUp,
                Retries = Interlocked.Read(ref _retries),
                LeaksReclaimed = Interlocked.Read(ref _leaksReclaimed),
            };
        }
    }

    /// <summary>Takes a picture of each channel, draining ones included, in the order in which they were made.</summary>
    public IReadOnlyList<PooledChannelSnapshot> GetChannels()
    {
        lock (_lock)
        {
            return [.. _channels.Values.OrderBy(static channel => channel.Id).Select(channel => new PooledChannelSnapshot
            {
                Id = channel.Id,
                State = channel.State,
                ConnectivityState = channel.ConnectivityState,
                Endpoint = channel.Endpoint,
                CallsInFlight = channel.Leases,
                Capacity = channel.Capacity,
                Age = _time.GetElapsedTime(channel.CreatedAt),
                LastError = channel.LastError,
            })];
        }
    }

    internal void CountRetry() => Interlocked.Increment(ref _retries);

    internal void CountReclaimedLeak() => Interlocked.Increment(ref _leaksReclaimed);

    /// <summary>Gives a lease back; <see cref="ChannelLease"/>, or the call that is the lease, sees to it that this happens once.</summary>
    internal void Return(object leaseOrCall, PooledChannel channel, LeaseOutcome outcome, Exception? error)
    {
        _leakDetector?.Returned(leaseOrCall);
        var lease = leaseOrCall as ChannelLease;
        var good = IsGood(channel) && outcome != LeaseOutcome.ChannelFailed && (outcome != LeaseOutcome.CouldNotConnect || channel.IsConnected);
        using (Enter())
        {
            Debug.Assert(channel.Leases > 0, "A lease came back that was not out.");
            _active.Returned(channel, lease is { IsStream: true }, lease?.Looks ?? 0);
            _leases--;
            _returns++;
            channel.IdleSince = _time.GetTimestamp();
            channel.Pulse.Answering -= lease is { IsAnswered: true } ? 1 : 0;
            channel.Pulse.ByHand -= lease is { IsByHand: true } ? 1 : 0;
            lease?.IsAnswered = true;
            if (outcome is LeaseOutcome.Answered or LeaseOutcome.ServerFailed)
            {
                ServerAnsweredUnsynchronized(channel, fails: outcome == LeaseOutcome.ServerFailed);
            }
            else if (outcome != LeaseOutcome.Unknown)
            {
                channel.Pulse.IsNotSilent(channel.IdleSince); // it fails aloud
                channel.Streak = 0;
                channel.IsUntried = false;
            }

            channel.LastError = outcome is LeaseOutcome.Answered or LeaseOutcome.Unknown ? channel.LastError : error;
            channel.Failed |= !good;
            _active.Update(channel);
            if (ReasonToReplaceUnsynchronized(channel, thorough: outcome != LeaseOutcome.Answered) is { } reason)
            {
                ReplaceUnsynchronized(channel, reason);
            }
            else if (channel is { State: PooledChannelState.Draining, Leases: 0 })
            {
                CloseUnsynchronized(channel);
            }
        }
    }

    // For who does not wait: a channel that has to be made is made at once, and not connected before.
    private ChannelLease? TakeAtOnce(bool isStream, PooledChannel? avoid = null, bool playsSafe = false)
    {
        var taken = Take(isStream, avoid, playsSafe, mayWait: false);
        return taken.Lease is { } lease ? Begin(lease)
            : taken.CreatesForItself ? CreateAndLease(isStream)
            : null;
    }

    private Taken Take(bool isStream, PooledChannel? avoid, bool playsSafe, bool mayWait, bool mayCreateForItself = true)
    {
        while (true)
        {
            var areBroken = false;
            Taken taken;
            using (Enter())
            {
                ObjectDisposedException.ThrowIf(_disposed, this);
                var picked = Pick();
                while (picked is not null && ReasonToReplaceUnsynchronized(picked, thorough: true) is { } reason)
                {
                    areBroken = true;
                    ReplaceUnsynchronized(picked, reason);
                    picked = Pick();
                }

                taken = TakeUnsynchronized(picked);
                GrowUnsynchronized("calls need it", isCall: true, isRefused: !taken.IsSomething && !mayWait);
            }

            if (taken.IsSomething || mayWait || !areBroken)
            {
                return taken;
            }

            // It does not wait for those that are replaced. But some may have been by now.
        }

        PooledChannel? Pick() => (playsSafe ? _active.PickSafest(avoid) : null) ?? _active.Pick(isStream, avoid);

        Taken TakeUnsynchronized(PooledChannel? picked)
        {
            var isAlone = picked is not null && picked == avoid && _creating + _waiters.Count == 0 && (_backoff.HasWorked || _backoff.MayDial);
            if (mayCreateForItself && (isAlone || (picked is null && !mayWait)) && (mayWait || MayBeMadeAtOnceUnsynchronized) && PlacesUnsynchronized > 0)
            {
                // There is no other one to try, or nothing to wait for.
                _creating++;
                return new Taken { CreatesForItself = true };
            }

            if (picked is not null)
            {
                return new Taken { Lease = LeaseUnsynchronized(picked, isStream) };
            }

            if (mayWait && _waiters.Count < _options.MaxCallsWaiting)
            {
                _lastCreationFailed = false; // who comes new has it tried again
                return new Taken { Waiter = _waiters.Enqueue(isStream) };
            }

            return default;
        }
    }

    // What a new lease sets off, outside of the lock.
    private T Begin<T>(T lease)
        where T : class
    {
        _leakDetector?.Taken(lease);
        StartWatching();
        return lease;
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
        var isClosed = false;
        try
        {
            channel.Channel.Dispose();
            channel.Transport?.Dispose();
            isClosed = true;
        }
#pragma warning disable CA1031 // Whoever gives the last lease back has nothing to do with what a handler of the user's throws.
        catch (Exception exception)
#pragma warning restore CA1031
        {
            _log.CloseFailed(channel, exception);
        }

        using (Enter())
        {
            LeaveEndpointUnsynchronized(channel); // if it never joined
            _channels.Remove(channel.Channel);
            if (isClosed)
            {
                _diary.Closed(channel);
            }
        }
    }

    private ChannelLease LeaseUnsynchronized(PooledChannel channel, bool isStream)
    {
        CountLeaseUnsynchronized(channel, isStream);
        return new ChannelLease(this, channel, isStream);
    }

    private void CountLeaseUnsynchronized(PooledChannel channel, bool isStream)
    {
        Debug.Assert(Monitor.IsEntered(_lock) && channel.HasRoom, "A lease needs the lock, and room.");
        channel.Pulse.Started++;
        channel.IsSpare = false;
        _leases++;
        _active.Leased(channel, isStream);
        CountTheCrowdUnsynchronized();
    }

    private void ServeWaitersUnsynchronized()
    {
        while (_waiters.Count > 0 && _active.Pick(_waiters.First.IsStream, avoid: null) is { } channel)
        {
            var waiter = _waiters.Dequeue();
            waiter.SetResult(LeaseUnsynchronized(channel, waiter.IsStream));
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

    private TimeoutException TimedOut(TimeSpan timeout) => Refused(() => new TimeoutException(
        $"No channel became free within {timeout.TotalSeconds:0.###} s ({CountsUnsynchronized()}). {AdviceUnsynchronized("Pool.AcquireTimeout")}",
        _lastCreationError));

    private TooManyWaitingException LineIsFull() => Refused(() => new TooManyWaitingException(
        $"No channel is free and too many calls wait for one already ({CountsUnsynchronized()}). {AdviceUnsynchronized($"Pool.MaxCallsWaiting ({_options.MaxCallsWaiting})")}"));

    // A refusal has the numbers of one moment, and is told.
    private T Refused<T>(Func<T> newUnsynchronized)
        where T : Exception
    {
        using (Enter())
        {
            var refusal = newUnsynchronized();
            _diary.Refused(refusal);
            return refusal;
        }
    }

    // A cancelled waiter takes nothing: what it has been granted in this moment goes to the next one.
    private void GiveUp(LeaseWaiter waiter)
    {
        lock (_lock)
        {
            if (_waiters.Remove(waiter) || waiter.Task.Exception is not null)
            {
                return;
            }
        }

        Begin(waiter.Task.Result).Dispose();
    }

    private string CountsUnsynchronized() =>
        $"channels {_active.Count + _creating}, in flight {_leases}, waiting {_waiters.Count}";

    // What to raise, where that would help.
    private string AdviceUnsynchronized(string option)
    {
        if (_active.Count + _creating < _options.MaxPoolSize)
        {
            return _lastCreationFailed || _lastConnectFailed ? $"The pool may have {_options.MaxPoolSize}, but another could not be made and connected: {_lastCreationError?.Message}"
                : _active.Any(static channel => channel.Capacity == 0) ? $"The pool may have {_options.MaxPoolSize}, but a server takes no calls for now (SETTINGS_MAX_CONCURRENT_STREAMS is 0)."
                : $"The pool may have {_options.MaxPoolSize}, but no other was connected in time. Raise {option}.";
        }

        var isOurLimit = _options.MaxConcurrentCallsPerChannel is { } limit && (_announced is null || limit < _announced);
        return $"Raise Pool.MaxPoolSize ({_options.MaxPoolSize}){(isOurLimit ? $", Pool.MaxConcurrentCallsPerChannel ({_options.MaxConcurrentCallsPerChannel})" : string.Empty)} or {option}.";
    }

    private ObjectDisposedException Disposed() => new(GetType().FullName);

    /// <summary>What a caller gets: a lease, a place in line, the right to make a channel, or nothing.</summary>
    private readonly struct Taken
    {
        public ChannelLease? Lease { get; init; }

        public LeaseWaiter? Waiter { get; init; }

        public bool CreatesForItself { get; init; }

        public bool IsSomething => Lease is not null || Waiter is not null || CreatesForItself;
    }

    [Conditional("DEBUG")]
    private void AssertLawsUnsynchronized()
    {
        Debug.Assert(Monitor.IsEntered(_lock), "The laws hold under the lock.");
        var leases = 0;
        var takesNothing = false;
        for (var i = 0; i < _active.Count; i++)
        {
            var channel = _active[i];
            leases += channel.Leases;
            takesNothing |= channel.Capacity == 0;
            Debug.Assert(channel.Leases >= channel.Streams && channel.Streams >= channel.NewStreams + channel.LongStreams && channel is { NewStreams: >= 0, LongStreams: >= 0 }, "Law 1: each lease comes back once.");
            Debug.Assert(channel.State is not (PooledChannelState.Draining or PooledChannelState.Closed), "Law 4: a draining channel is not leased.");
        }

        Debug.Assert(leases <= _leases && leases == _active.Calls + _active.Streams, "Law 1: each lease is counted once.");
        Debug.Assert(_creating >= 0 && _replacing >= 0 && _draining >= 0, "What was begun ends once.");
        Debug.Assert(_active.Count + _creating <= _options.MaxPoolSize, "Law 2: the pool is no larger than MaxPoolSize.");
        Debug.Assert(_waiters.Count == 0 || !_active.HasRoom, "Law 3: nobody waits while there is room.");
        Debug.Assert(_waiters.Count == 0 || leases + _creating + _replacing > 0 || _isLineWatched || takesNothing, "Law 3: nobody waits for nothing.");
    }
}

// How a pool of channels works.
//
// A lease is the right to run one call on a channel. A channel with fewer leases than its server takes has room. To acquire is to take a
// lease on the less loaded of two channels with room, drawn at random. Where no channel has room a call waits in the queue, and the first
// room that comes free goes to its head. Channels are made in the background (PoolGrowth.cs), and join when they are connected.
//
// A channel that is broken, has failed a call, is silent, or whose server takes no more calls on its connection is replaced: it takes no
// leases while its replacement is connected (Replacing), then the replacement is published and the old one drains (Draining) until its last
// lease has come back, when it is disposed (Closed). If no replacement can be made the old one goes on (Active). One that is only old takes
// leases until its replacement is connected (Refreshing). A channel on which a server has answered is replaced at once, one that has never
// worked after a pause that the whole pool shares: many callers and a dead server make few dials, and calls fail with the connect error
// meanwhile.
//
// The laws are at the top of PoolState.cs.
using System.Diagnostics.CodeAnalysis;
using Grpc.Net.Client;
using Microsoft.Extensions.ObjectPool;
using Microsoft.Extensions.ServiceDiscovery;

namespace PoolingInvoker;

/// <summary>
/// A pool of channels. <see cref="PoolingCallInvoker"/> leases from it for each call; <see cref="Get"/> and <see
/// cref="Return(GrpcChannel)"/>, or <see cref="AcquireAsync(CancellationToken)"/>, are for who needs a channel of their own for a while.
/// </summary>
/// <remarks>All members can be used from many threads at a time.</remarks>
public sealed class ChannelPool : ObjectPool<GrpcChannel>, IAsyncDisposable, IDisposable
{
    private readonly IChannelFactory _factory;
    private readonly ChannelConnector _connector;
    private readonly PoolRefresh _refresh;
    private readonly PoolUpkeep _upkeep;
    private readonly PoolCounts _counts;

    /// <summary>
    /// Makes a pool whose channels <paramref name="policy"/> makes and judges: <c>Create</c> gives a new channel, and <c>Return</c>
    /// says after each call whether the channel is still good. <see cref="ChannelPoolOptions.ConfigureChannel"/> and
    /// <see cref="ChannelPoolOptions.ConfigureHandler"/> cannot be set: they change channels that the pool makes itself.
    /// </summary>
    /// <param name="policy">Makes each channel anew, and does not dial in <c>Create</c>: callers wait for it.</param>
    /// <param name="options">The options, or <see langword="null"/> for the defaults.</param>
    /// <exception cref="ArgumentException">An option is not valid.</exception>
    public ChannelPool(IPooledObjectPolicy<GrpcChannel> policy, ChannelPoolOptions? options = null)
        : this(PolicyChannelFactory.Of(policy, options), ValidatedCopyOf(options), Random.Shared)
    {
    }

    internal ChannelPool(IChannelFactory factory, ChannelPoolOptions validated, Random random, EndpointList? endpoints = null)
    {
        _factory = factory;
        State = new PoolState(validated, random, factory.Target);
        _connector = new ChannelConnector(State, factory);
        _refresh = new PoolRefresh(State, _connector, factory);
        Growth = new PoolGrowth(State, _connector);
        var leakDetector = validated.LeakDetectionThreshold > TimeSpan.Zero ? new LeaseLeakDetector(validated.LeakDetectionThreshold, State.Time, State.Log) : null;
        _upkeep = new PoolUpkeep(State, _connector, Growth, leakDetector);
        Picker = new ChannelPicker(State, factory, _connector, Growth, new SilenceWatch(State, _connector), leakDetector);
        Queue = new LeaseQueue(State, Picker, _connector, Growth, keepsStacks: leakDetector is not null);
        _counts = new PoolCounts(State);
        State.Metrics.Read = _counts.Read;
        State.Balancer = endpoints is null ? null : new EndpointBalancer(State, _connector, Growth, endpoints, factory.Target);
    }

    /// <summary>Gets the name of the pool: <see cref="ChannelPoolOptions.Name"/>, or its target.</summary>
    public string Name => State.Name;

    /// <summary>The data plane: calls ask it for their leases.</summary>
    internal ChannelPicker Picker { get; }
    internal LeaseQueue Queue { get; } // of those that wait for one
    internal PoolState State { get; }
    internal string Target => _factory.Target;
    internal bool ThrowsOperationCanceled => _factory.ThrowsOperationCanceled; // where others throw an RpcException
    internal PoolGrowth Growth { get; }
    internal EndpointBalancer? Balancer => State.Balancer;

    /// <summary>Makes a pool of channels to one address, or to all addresses that a name has.</summary>
    /// <param name="address">
    /// The address, with its scheme, as in <c>http://users:5000</c>. With <c>dns:///users:5000</c> channels are spread over the addresses
    /// that the name has, and follow them; to the servers, and for TLS, they are to the name. They speak plain text, unless <see
    /// cref="ChannelPoolOptions.ConfigureChannel"/> sets credentials of TLS (<c>ChannelCredentials.SecureSsl</c>).
    /// </param>
    /// <param name="options">The options, or <see langword="null"/> for the defaults.</param>
    /// <exception cref="ArgumentException">The address is not an http, https or dns one, or an option is not valid.</exception>
    public static ChannelPool ForAddress(string address, ChannelPoolOptions? options = null) =>
        ForAddress(AddressChannelPolicy.ParseAddress(address), options);

    /// <inheritdoc cref="ForAddress(string, ChannelPoolOptions?)"/>
    public static ChannelPool ForAddress(Uri address, ChannelPoolOptions? options = null)
    {
        ArgumentNullException.ThrowIfNull(address);
        var isDns = address.IsAbsoluteUri && address.Scheme == DnsEndpoints.Scheme;
        var policy = new AddressChannelPolicy(isDns ? address : AddressChannelPolicy.Checked(address), ValidatedCopyOf(options));
        return New(policy, isDns ? new EndpointList([], policy.Address, new DnsEndpoints(policy.Address, policy.Options.TimeProvider).ResolveAsync) : null);
    }

    /// <summary>Makes a pool of channels that are spread over several addresses. Each keeps its own authority.</summary>
    /// <param name="addresses">The addresses, with their scheme, which is the same for all, as in <c>http://10.0.0.1:5000</c>.</param>
    /// <param name="options">The options, or <see langword="null"/> for the defaults.</param>
    /// <exception cref="ArgumentException">There are no addresses, one is not an http or https one, they have different schemes, or an option is not valid.</exception>
    public static ChannelPool ForAddresses(IEnumerable<string> addresses, ChannelPoolOptions? options = null) =>
        ForAddresses(addresses?.Select(static address => new ChannelAddress(address))!, options);

    /// <summary>Makes a pool of channels that are spread over several addresses, each of which has its share of the calls. Each keeps its own authority.</summary>
    /// <param name="addresses">
    /// The addresses, with their scheme, which is the same for all: <c>[new ChannelAddress("http://10.0.0.1:5000") { Weight = 2 }, "http://10.0.0.2:5000"]</c>.
    /// </param>
    /// <param name="options">The options, or <see langword="null"/> for the defaults.</param>
    /// <typeparam name="TAddress">Is <see cref="ChannelAddress"/>, so that a list of texts is one of texts in every version of C#.</typeparam>
    /// <exception cref="ArgumentException">There are no addresses, one is not an http or https one, has no valid weight, they have different schemes, or an option is not valid.</exception>
    public static ChannelPool ForAddresses<TAddress>(IEnumerable<TAddress> addresses, ChannelPoolOptions? options = null)
        where TAddress : ChannelAddress
    {
        var list = ChannelEndpoint.ParseList(addresses);
        return New(new AddressChannelPolicy(list, ValidatedCopyOf(options)), new EndpointList(list, Name: null, Resolve: null));
    }

    /// <summary>
    /// Makes a pool of channels that are spread over the endpoints that a service has, as service discovery finds them and follows them. To
    /// the servers, and for TLS, the channels are to the name of the service.
    /// </summary>
    /// <param name="address">The name of the service, with the scheme that it speaks, as in <c>http://users</c>.</param>
    /// <param name="resolve">
    /// Finds the endpoints, and says when they have changed: with Microsoft.Extensions.ServiceDiscovery
    /// <c>token =&gt; resolver.GetEndpointsAsync("http://users", token)</c>, where <c>resolver</c> is its <c>ServiceEndpointResolver</c>.
    /// </param>
    /// <param name="options">The options, or <see langword="null"/> for the defaults.</param>
    /// <exception cref="ArgumentException">The address is not an http or https one, or an option is not valid.</exception>
    public static ChannelPool ForService(string address, Func<CancellationToken, ValueTask<ServiceEndpointSource>> resolve, ChannelPoolOptions? options = null) =>
        OfService(address, resolve, options, keepsAddresses: false);

    /// <summary>
    /// Makes a pool of channels that are spread over the addresses that a service has, as service discovery finds them and follows them. As with
    /// its handler for <c>HttpClient</c>, a call is to the service for call credentials and for handlers, and to the address for the server and for
    /// TLS: to that of the endpoint, with the scheme that it has, or to the host name that comes with it (<c>IHostNameFeature</c>).
    /// </summary>
    /// <param name="service">The name of the service, with the scheme of those endpoints that have none, as in <c>http://users</c>.</param>
    /// <param name="resolve">Finds the endpoints, as with <see cref="ForService"/>.</param>
    /// <param name="options">The options, or <see langword="null"/> for the defaults.</param>
    /// <exception cref="ArgumentException">The address of the service is not an http or https one, or an option is not valid.</exception>
    public static ChannelPool ForAddresses(string service, Func<CancellationToken, ValueTask<ServiceEndpointSource>> resolve, ChannelPoolOptions? options = null) =>
        OfService(service, resolve, options, keepsAddresses: true);

    private static ChannelPool OfService(
        string address, Func<CancellationToken, ValueTask<ServiceEndpointSource>> resolve, ChannelPoolOptions? options, bool keepsAddresses)
    {
        ArgumentNullException.ThrowIfNull(resolve);
        var name = AddressChannelPolicy.Checked(AddressChannelPolicy.ParseAddress(address));
        return New(new AddressChannelPolicy(name, ValidatedCopyOf(options), pins: true), new EndpointList([], name, resolve, keepsAddresses));
    }

    private static ChannelPool New(AddressChannelPolicy policy, EndpointList? endpoints) => new(policy, policy.Options, Random.Shared, endpoints);
    private static ChannelPoolOptions ValidatedCopyOf(ChannelPoolOptions? options) => (options ?? new ChannelPoolOptions()).ValidatedCopy();

    /// <summary>
    /// Takes a lease on a channel, and waits for one, blocking, as long as <see cref="AcquireAsync(CancellationToken)"/> does.
    /// Each <see cref="Get"/> needs a <see cref="Return(GrpcChannel)"/>.
    /// </summary>
    /// <returns>A channel of the pool, shared with other leases if <see cref="ChannelPoolOptions.MaxConcurrentCallsPerChannel"/> is not 1.</returns>
    /// <inheritdoc cref="AcquireAsync(CancellationToken)" path="/exception"/>
    public override GrpcChannel Get()
    {
        var acquiring = Queue.AcquireAsync(State.Options.AcquireTimeout, new LeaseRequest(LeaseKind.Got), CancellationToken.None);
        return (acquiring.IsCompleted ? acquiring.Result : acquiring.AsTask().GetAwaiter().GetResult()).Channel;
    }

    /// <summary>Gives back a channel that <see cref="Get"/> gave.</summary>
    /// <param name="obj">The channel.</param>
    /// <exception cref="ArgumentException">The channel is not one of this pool's, or is closed already.</exception>
    /// <exception cref="InvalidOperationException">The channel has been given back as often as it was taken.</exception>
    public override void Return(GrpcChannel obj)
    {
        ArgumentNullException.ThrowIfNull(obj);
        PooledChannel? channel;
        ChannelLease? lease;
        using (State.Enter())
        {
            if (!State.Channels.TryGetValue(obj, out channel))
            {
                if (State.IsDisposed)
                {
                    return; // closed with the pool
                }

                throw new ArgumentException(
                    $"The channel to {obj.Target} is not one of this pool's, or has been returned before and is closed. Return what Get gave, once.",
                    nameof(obj));
            }

            if (!channel.GotLeases.TryPop(out lease))
            {
                throw new InvalidOperationException(
                    $"Channel #{channel.Id} to {obj.Target} was returned more often than Get gave it. Each Get needs one Return; a ChannelLease is given back by its Dispose.");
            }
        }

        Picker.Return(lease, channel, LeaseOutcome.Unknown, error: null); // whoever got this one may be about to look at its channel
    }

    /// <summary>
    /// Takes a lease if that is possible without waiting: on a channel that has room, or on one that can be made at once, which with
    /// <see cref="ChannelPoolOptions.PrimeCallback"/> none can.
    /// </summary>
    /// <param name="lease">The lease; dispose it to give it back.</param>
    /// <returns>Whether there was room on a channel, or a channel could be made.</returns>
    /// <exception cref="ObjectDisposedException">The pool is disposed.</exception>
    /// <exception cref="InvalidOperationException">The policy did not make a channel, and there is none. What <see cref="ChannelPoolOptions.ConfigureChannel"/> throws is thrown as it is.</exception>
    public bool TryAcquire([NotNullWhen(true)] out ChannelLease? lease)
    {
        lease = Queue.TakeAtOnce(new LeaseRequest(LeaseKind.ByHand));
        return lease is not null;
    }

    /// <summary>
    /// Takes a lease, and waits in line for one when the pool is full: up to <see cref="ChannelPoolOptions.AcquireTimeout"/>.
    /// </summary>
    /// <param name="cancellationToken">Ends the wait.</param>
    /// <returns>The lease; dispose it to give it back.</returns>
    /// <exception cref="ChannelPoolExhaustedException">No channel became free within <see cref="ChannelPoolOptions.AcquireTimeout"/>, or <see cref="ChannelPoolOptions.MaxCallsWaiting"/> calls wait already.</exception>
    /// <exception cref="InvalidOperationException">The policy did not make a channel, and there is none. What <see cref="ChannelPoolOptions.ConfigureChannel"/> throws is thrown as it is.</exception>
    /// <exception cref="ObjectDisposedException">The pool is disposed, or was while this call waited.</exception>
    /// <exception cref="OperationCanceledException"><paramref name="cancellationToken"/> was cancelled.</exception>
    public ValueTask<ChannelLease> AcquireAsync(CancellationToken cancellationToken = default) =>
        Queue.AcquireAsync(State.Options.AcquireTimeout, new LeaseRequest(LeaseKind.ByHand), cancellationToken);

    /// <summary>
    /// Goes on with other options. Sizes, numbers of calls, times and probes hold from now on, without a call being cut: channels above a smaller
    /// <see cref="ChannelPoolOptions.MaxPoolSize"/> drain, and calls that wait keep the time that they had. A
    /// budget of retries begins anew where its numbers change. Callbacks, the name, the clock and the log stay as
    /// they are, and so does <see cref="ChannelPoolOptions.LeakDetectionThreshold"/>, which the log says. What changes is told by the log and an event of
    /// the kind <see cref="ChannelPoolEventKind.OptionsChanged"/>.
    /// </summary>
    /// <param name="options">All options, those included that do not change.</param>
    /// <exception cref="ArgumentException">An option is not valid. Nothing has changed.</exception>
    /// <exception cref="ObjectDisposedException">The pool is disposed.</exception>
    public void UpdateOptions(ChannelPoolOptions options)
    {
        ArgumentNullException.ThrowIfNull(options);
        Update(options.ValidatedCopy(), changesOfCalls: string.Empty);
    }

    internal void Update(ChannelPoolOptions? validated, string changesOfCalls)
    {
        using var section = State.Enter(PoolReason.NewOptions);
        State.ThrowIfDisposed();
        var before = State.Options;
        var after = validated is null ? before : before.With(validated);
        var changes = OptionChanges.Between(OptionValues.Of(before), OptionValues.Of(after));
        if (changes.Length > 0)
        {
            State.Change(after);
            _upkeep.Reschedule();
            if (State.Count > 0)
            {
                Growth.Grow(PoolReason.NewOptions, isCall: true);
            }
        }

        if (changes.Length + changesOfCalls.Length > 0)
        {
            State.Diary.OptionsChanged(changes.Length > 0 && changesOfCalls.Length > 0 ? $"{changes}, {changesOfCalls}" : changes + changesOfCalls);
        }

        if (validated is not null && OptionChanges.Between(OptionValues.Of(after), OptionValues.Of(validated)) is { Length: > 0 } kept)
        {
            State.After(() => State.Log.OptionsKept(kept));
        }
    }

    internal ConnectionEvents EventsOf(PooledChannel channel) => new(State, _connector, channel);

    /// <summary>Takes the numbers of this moment.</summary>
    public ChannelPoolStatistics GetStatistics() => _counts.GetStatistics();

    /// <summary>Takes a picture of each channel, draining ones included, in the order in which they were made.</summary>
    public IReadOnlyList<PooledChannelSnapshot> GetChannels() => _counts.GetChannels();

    /// <summary>
    /// Has a listener told of what the pool does from now on, beside <see cref="ChannelPoolOptions.OnEvent"/> and as it is: in order, in one queue for
    /// all listeners, so that a slow one holds up the others.
    /// </summary>
    /// <param name="listener">Who is told. What it throws is lost.</param>
    /// <returns>What ends it. An event that is being told as it is disposed may still come.</returns>
    public IDisposable Listen(Action<ChannelPoolEvent> listener)
    {
        ArgumentNullException.ThrowIfNull(listener);
        return State.Diary.Listen(listener);
    }

    /// <summary>
    /// Makes channels up to <see cref="ChannelPoolOptions.MinPoolSize"/> and connects all that there are, in parallel. Channels over a
    /// transport of the user's own are made, but cannot be connected ahead of their first call.
    /// </summary>
    /// <param name="cancellationToken">Ends the wait; what is connected stays connected.</param>
    /// <exception cref="HttpRequestException">
    /// Fewer than <see cref="ChannelPoolOptions.MinPoolSize"/> channels could connect on their first attempt, or none. What else failed is
    /// told by <see cref="ChannelPoolOptions.OnEvent"/> and the log: of several endpoints not all need be there.
    /// </exception>
    /// <exception cref="InvalidOperationException">The policy did not make a channel, and there is none. What <see cref="ChannelPoolOptions.ConfigureChannel"/> throws is thrown as it is.</exception>
    /// <exception cref="ObjectDisposedException">The pool is disposed.</exception>
    public Task ConnectAsync(CancellationToken cancellationToken = default) => new PoolWarmUp(State, _connector, Target).RunAsync(cancellationToken);

    /// <summary>
    /// Replaces all channels that there are, because a certificate has changed, or a name leads elsewhere. They go a few at a time, a tenth of them
    /// at most; each new one is made by the callbacks of the options anew and connected before the old one drains, and calls go on meanwhile.
    /// The task is over when the new ones have taken the places of all; calls on the old ones may go on for longer.
    /// </summary>
    /// <remarks>
    /// Each is tried once. One that cannot be replaced stays in use, and when all have been tried the task says why. Calls at the same time share
    /// the work, and each has the channels replaced that there are when it comes. Channels over a transport of the user's own are made anew, but
    /// connect with their first call.
    /// </remarks>
    /// <param name="cancellationToken">Ends the wait; the refresh goes on.</param>
    /// <exception cref="HttpRequestException">Some channels could not be replaced, and stay. What each failed with is inside.</exception>
    /// <exception cref="ObjectDisposedException">The pool is disposed, or was meanwhile.</exception>
    public Task RefreshAsync(CancellationToken cancellationToken = default) => _refresh.RunAsync(cancellationToken);

    /// <summary>
    /// Lets no more calls in, tells those that wait, waits up to <see cref="ChannelPoolOptions.DrainTimeout"/> for calls in flight, and
    /// closes all channels, which cancels the calls that are left.
    /// </summary>
    public async ValueTask DisposeAsync()
    {
        State.BeginDispose();
        Task draining = State.Closed.Task.WaitAsync(State.Options.DrainTimeout, State.Time);
        await draining.ConfigureAwait(ConfigureAwaitOptions.SuppressThrowing);
        Close();
    }

    /// <summary>As <see cref="DisposeAsync"/>, but without waiting: calls in flight are cancelled.</summary>
    public void Dispose()
    {
        State.BeginDispose();
        Close();
    }

    private void Close()
    {
        using (State.Enter())
        {
            State.Channels.Values.Where(static channel => channel.State == PooledChannelState.Draining).ToList().ForEach(State.Close);
        }

        _factory.DropPrepared();
    }
}

using Microsoft.Extensions.ServiceDiscovery;
using static PoolingInvoker.CallHandle;

namespace PoolingInvoker;

/// <summary>
/// A call invoker for generated clients that leases a channel of a pool for each call and gives it back when the call is over,
/// replaces channels that fail, and sends a call again on another channel where that is safe.
/// </summary>
/// <remarks>Make one for an address and keep it: it is as costly, and as safe to share, as a <c>GrpcChannel</c>.</remarks>
/// <example><code>
/// await using var invoker = PoolingCallInvoker.ForAddress("http://users:5000");
/// var client = new User.UserClient(invoker);
/// </code></example>
public sealed class PoolingCallInvoker : CallInvoker, IAsyncDisposable, IDisposable
{
    private const string OwnOptions = "Pool is set, but the pool exists already, with the options that it was made with. Set them where it is made.";

    private readonly object _updating = new();
    private volatile CallEnvironment _environment;
    private readonly KeyedCallInvoker _calls;
    private readonly bool _ownsPool;
    private PooledChannelBase? _channel;

    /// <summary>Makes an invoker over a pool that exists, and stays with who made it: disposing the invoker does not dispose it.</summary>
    /// <param name="pool">The pool.</param>
    /// <param name="options">The options, or <see langword="null"/> for the defaults.</param>
    /// <exception cref="ArgumentException">An option is not valid, or <see cref="PoolingCallInvokerOptions.Pool"/> is set: the pool has the options that it was made with.</exception>
    public PoolingCallInvoker(ChannelPool pool, PoolingCallInvokerOptions? options = null)
        : this(pool, options ?? new PoolingCallInvokerOptions(), ownsPool: false)
    {
        ChannelPoolOptions.Require(options?.HasOtherPoolThan(pool) != true, OwnOptions, nameof(options));
    }

    private PoolingCallInvoker(ChannelPool pool, PoolingCallInvokerOptions options, bool ownsPool)
    {
        ArgumentNullException.ThrowIfNull(pool);
        _environment = new CallEnvironment(pool, options);
        _calls = new KeyedCallInvoker(this, key: null);
        _ownsPool = ownsPool;
    }

    /// <summary>Gets the pool that calls lease from.</summary>
    public ChannelPool Pool => _environment.Pool;

    /// <summary>Makes an invoker over a pool of its own, which connects to one address, or to all addresses that a name has.</summary>
    /// <inheritdoc cref="ChannelPool.ForAddress(string, ChannelPoolOptions?)" path="/param|/exception"/>
    public static PoolingCallInvoker ForAddress(string address, PoolingCallInvokerOptions? options = null) =>
        ForAddress(AddressChannelPolicy.ParseAddress(address), options);

    /// <inheritdoc cref="ForAddress(string, PoolingCallInvokerOptions?)"/>
    public static PoolingCallInvoker ForAddress(Uri address, PoolingCallInvokerOptions? options = null) =>
        Over(pool => ChannelPool.ForAddress(address, pool), options);

    /// <summary>Makes an invoker over a pool of its own, whose channels are spread over several addresses.</summary>
    /// <inheritdoc cref="ChannelPool.ForAddresses(IEnumerable{string}, ChannelPoolOptions?)" path="/param|/exception"/>
    public static PoolingCallInvoker ForAddresses(IEnumerable<string> addresses, PoolingCallInvokerOptions? options = null) =>
        Over(pool => ChannelPool.ForAddresses(addresses, pool), options);

    /// <summary>Makes an invoker over a pool of its own, whose channels are spread over several addresses, each of which has its share of the calls.</summary>
    /// <inheritdoc cref="ChannelPool.ForAddresses{TAddress}(IEnumerable{TAddress}, ChannelPoolOptions?)" path="/param|/typeparam|/exception"/>
    public static PoolingCallInvoker ForAddresses<TAddress>(IEnumerable<TAddress> addresses, PoolingCallInvokerOptions? options = null)
        where TAddress : ChannelAddress =>
        Over(pool => ChannelPool.ForAddresses(addresses, pool), options);

    /// <summary>Makes an invoker over a pool of its own, whose channels are spread over the endpoints that a service has.</summary>
    /// <inheritdoc cref="ChannelPool.ForService(string, Func{CancellationToken, ValueTask{ServiceEndpointSource}}, ChannelPoolOptions?)" path="/param|/exception"/>
    public static PoolingCallInvoker ForService(string address, Func<CancellationToken, ValueTask<ServiceEndpointSource>> resolve, PoolingCallInvokerOptions? options = null) =>
        Over(pool => ChannelPool.ForService(address, resolve, pool), options);

    /// <summary>Makes an invoker over a pool of its own, whose channels are spread over the addresses that a service has, each of which keeps its own name.</summary>
    /// <inheritdoc cref="ChannelPool.ForAddresses(string, Func{CancellationToken, ValueTask{ServiceEndpointSource}}, ChannelPoolOptions?)" path="/param|/exception"/>
    public static PoolingCallInvoker ForAddresses(string service, Func<CancellationToken, ValueTask<ServiceEndpointSource>> resolve, PoolingCallInvokerOptions? options = null) =>
        Over(pool => ChannelPool.ForAddresses(service, resolve, pool), options);

    private static PoolingCallInvoker Over(Func<ChannelPoolOptions, ChannelPool> newPool, PoolingCallInvokerOptions? options)
    {
        options ??= new PoolingCallInvokerOptions();
        var pool = newPool(options.Pool);
        try
        {
            return new PoolingCallInvoker(pool, options, ownsPool: true);
        }
        catch
        {
            pool.Dispose();
            throw;
        }
    }

    /// <summary>
    /// Goes on with other options: what <see cref="ChannelPool.UpdateOptions"/> takes of <see cref="PoolingCallInvokerOptions.Pool"/>, if the pool is the
    /// invoker's own, and all that is said of calls. Those that have begun go on with what they began with. What changes is told as by the pool, in one event.
    /// </summary>
    /// <param name="options">All options, those included that do not change.</param>
    /// <exception cref="ArgumentException">An option is not valid, or <see cref="PoolingCallInvokerOptions.Pool"/> is set and the pool another's. Nothing has changed.</exception>
    /// <exception cref="ObjectDisposedException">The pool is disposed.</exception>
    public void UpdateOptions(PoolingCallInvokerOptions options)
    {
        ArgumentNullException.ThrowIfNull(options);
        ChannelPoolOptions.Require(_ownsPool || !options.HasOtherPoolThan(Pool), OwnOptions, nameof(options));
        lock (_updating)
        {
            var pool = _ownsPool ? options.Pool.ValidatedCopy() : null;
            var changed = new CallEnvironment(Pool, options);
            Pool.Update(pool, OptionChanges.Between(_environment.Values, changed.Values));
            _environment = changed;
        }
    }

    /// <inheritdoc cref="ChannelPool.ConnectAsync"/>
    public Task ConnectAsync(CancellationToken cancellationToken = default) => Pool.ConnectAsync(cancellationToken);

    /// <summary>
    /// Gets this invoker as a channel, for what wants a <see cref="ChannelBase"/>. Its <c>ShutdownAsync</c> is the
    /// <see cref="DisposeAsync"/> of the invoker.
    /// </summary>
    public ChannelBase AsChannel() => _channel ??= new PooledChannelBase(this);

    /// <summary>
    /// Makes an invoker whose calls have a key: those with the same key go to the same channel while that lives, and to the same endpoint, for
    /// servers that keep a session or a cache. <c>new User.UserClient(invoker.WithAffinity(sessionId))</c> costs next to nothing: make one
    /// where it is needed.
    /// </summary>
    /// <remarks>
    /// It is a preference: where the channel is full, much busier than the others (<see cref="ChannelPoolOptions.AffinityLoadFactor"/>), silent or
    /// being replaced the call goes to the next in an order of the key's own, and so does a retry. The order of endpoints is the same for all
    /// clients.
    /// </remarks>
    /// <param name="key">The key. With an empty one calls go anywhere, whatever <see cref="PoolingCallInvokerOptions.AffinityKey"/> says.</param>
    public CallInvoker WithAffinity(string key)
    {
        ArgumentNullException.ThrowIfNull(key);
        return new KeyedCallInvoker(this, ChannelAffinity.KeyOf(key));
    }

    /// <inheritdoc/>
    public override TResponse BlockingUnaryCall<TRequest, TResponse>(Method<TRequest, TResponse> method, string? host, CallOptions options, TRequest request) =>
        _calls.BlockingUnaryCall(method, host, options, request);

    /// <inheritdoc/>
    public override AsyncUnaryCall<TResponse> AsyncUnaryCall<TRequest, TResponse>(
        Method<TRequest, TResponse> method, string? host, CallOptions options, TRequest request) =>
        _calls.AsyncUnaryCall(method, host, options, request);

    /// <inheritdoc/>
    public override AsyncClientStreamingCall<TRequest, TResponse> AsyncClientStreamingCall<TRequest, TResponse>(
        Method<TRequest, TResponse> method, string? host, CallOptions options) =>
        _calls.AsyncClientStreamingCall(method, host, options);

    /// <inheritdoc/>
    public override AsyncServerStreamingCall<TResponse> AsyncServerStreamingCall<TRequest, TResponse>(
        Method<TRequest, TResponse> method, string? host, CallOptions options, TRequest request) =>
        _calls.AsyncServerStreamingCall(method, host, options, request);

    /// <inheritdoc/>
    public override AsyncDuplexStreamingCall<TRequest, TResponse> AsyncDuplexStreamingCall<TRequest, TResponse>(
        Method<TRequest, TResponse> method, string? host, CallOptions options) =>
        _calls.AsyncDuplexStreamingCall(method, host, options);

    /// <summary>Disposes the pool if it is the invoker's own: calls in flight may end, up to <see cref="ChannelPoolOptions.DrainTimeout"/>.</summary>
    public ValueTask DisposeAsync() => _ownsPool ? Pool.DisposeAsync() : ValueTask.CompletedTask;

    /// <summary>Disposes the pool if it is the invoker's own, without waiting: calls in flight are cancelled.</summary>
    public void Dispose()
    {
        if (_ownsPool)
        {
            Pool.Dispose();
        }
    }

    /// <summary>Begins the calls of a pooling invoker: all with one key, or each with that which the options of the invoker give it.</summary>
    private sealed class KeyedCallInvoker(PoolingCallInvoker invoker, ulong? key) : CallInvoker
    {
        public override TResponse BlockingUnaryCall<TRequest, TResponse>(Method<TRequest, TResponse> method, string? host, CallOptions options, TRequest request) =>
            NewUnaryCall(method, host, options, request).Start().GetAwaiter().GetResult();

        public override AsyncUnaryCall<TResponse> AsyncUnaryCall<TRequest, TResponse>(
            Method<TRequest, TResponse> method, string? host, CallOptions options, TRequest request)
        {
            var call = NewUnaryCall(method, host, options, request);
            return new(call.Start(), GetHeaders, GetStatus, GetTrailers, EndCall, call);
        }

        public override AsyncClientStreamingCall<TRequest, TResponse> AsyncClientStreamingCall<TRequest, TResponse>(
            Method<TRequest, TResponse> method, string? host, CallOptions options)
        {
            var stream = StartStream(MethodType.ClientStreaming, method, host, options, request: null, out var response);
            return new(stream, response, GetHeaders, GetStatus, GetTrailers, EndCall, stream);
        }

        public override AsyncServerStreamingCall<TResponse> AsyncServerStreamingCall<TRequest, TResponse>(
            Method<TRequest, TResponse> method, string? host, CallOptions options, TRequest request)
        {
            var stream = StartStream(MethodType.ServerStreaming, method, host, options, request, out _);
            return new(stream, GetHeaders, GetStatus, GetTrailers, EndCall, stream);
        }

        public override AsyncDuplexStreamingCall<TRequest, TResponse> AsyncDuplexStreamingCall<TRequest, TResponse>(
            Method<TRequest, TResponse> method, string? host, CallOptions options)
        {
            var stream = StartStream(MethodType.DuplexStreaming, method, host, options, request: null, out _);
            return new(requestStream: stream, responseStream: stream, GetHeaders, GetStatus, GetTrailers, EndCall, stream);
        }

        private UnaryCall<TRequest, TResponse> NewUnaryCall<TRequest, TResponse>(
            Method<TRequest, TResponse> method, string? host, CallOptions options, TRequest request)
            where TRequest : class
            where TResponse : class
        {
            var environment = invoker._environment;
            return new(environment, method, environment.Given(method, host, options, key ?? environment.KeyOf(method, request)), request);
        }

        private LeasedStream<TRequest, TResponse> StartStream<TRequest, TResponse>(
            MethodType kind, Method<TRequest, TResponse> method, string? host, CallOptions options, TRequest? request, out Task<TResponse> response)
            where TRequest : class
            where TResponse : class
        {
            var environment = invoker._environment;
            var given = environment.Given(method, host, options, key ?? environment.KeyOf(method, request));
            var call = new StreamingCall<TRequest, TResponse>(environment, kind, method, given, request);
            response = call.Start();
            return new(call);
        }
    }

    private sealed class PooledChannelBase(PoolingCallInvoker invoker) : ChannelBase(invoker.Pool.Target)
    {
        public override CallInvoker CreateCallInvoker() => invoker;

        protected override Task ShutdownAsyncCore() => invoker.DisposeAsync().AsTask();
    }
}

using Grpc.Core;
using Microsoft.Extensions.ServiceDiscovery;
using static PoolingInvoker.CallHandle;

namespace PoolingInvoker;

/// <summary>
/// A call invoker for generated clients that leases a channel of a pool for each call and gives it back when the call is over,
/// replaces channels that fail, and sends a call again on another channel where that is safe.
/// </summary>
/// <remarks>
/// Make one for an address and keep it: it is as costly, and as safe to share, as a <c>GrpcChannel</c>.
/// </remarks>
/// <example><code>
/// await using var invoker = PoolingCallInvoker.ForAddress("http://users:5000");
/// var client = new User.UserClient(invoker);
/// </code></example>
public sealed class PoolingCallInvoker : CallInvoker, IAsyncDisposable, IDisposable
{
    private readonly CallEnvironment _environment;
    private readonly bool _ownsPool;
    private PooledChannelBase? _channel;

    /// <summary>Makes an invoker over a pool that exists, and stays with who made it: disposing the invoker does not dispose it.</summary>
    /// <param name="pool">The pool.</param>
    /// <param name="options">The options, or <see langword="null"/> for the defaults. <see cref="PoolingCallInvokerOptions.Pool"/> is not used.</param>
    /// <exception cref="ArgumentException">An option is not valid.</exception>
    public PoolingCallInvoker(ChannelPool pool, PoolingCallInvokerOptions? options = null)
        : this(pool, options ?? new PoolingCallInvokerOptions(), ownsPool: false)
    {
    }

    private PoolingCallInvoker(ChannelPool pool, PoolingCallInvokerOptions options, bool ownsPool)
    {
        ArgumentNullException.ThrowIfNull(pool);
        _environment = new CallEnvironment(pool, options);
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

    /// <summary>Makes an invoker over a pool of its own, whose channels are spread over the endpoints that a service has.</summary>
    /// <inheritdoc cref="ChannelPool.ForService(string, Func{CancellationToken, ValueTask{ServiceEndpointSource}}, ChannelPoolOptions?)" path="/param|/exception"/>
    public static PoolingCallInvoker ForService(string address, Func<CancellationToken, ValueTask<ServiceEndpointSource>> resolve, PoolingCallInvokerOptions? options = null) =>
        Over(pool => ChannelPool.ForService(address, resolve, pool), options);

    private static PoolingCallInvoker Over(Func<ChannelPoolOptions, ChannelPool> newPool, PoolingCallInvokerOptions? options)
    {
        options ??= new PoolingCallInvokerOptions();
        var pool = newPool(options.Pool ?? throw new ArgumentException("Pool is null. Leave it as it is for the defaults.", nameof(options)));
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

    /// <inheritdoc cref="ChannelPool.ConnectAsync"/>
    public Task ConnectAsync(CancellationToken cancellationToken = default) => Pool.ConnectAsync(cancellationToken);

    /// <summary>
    /// Gets this invoker as a channel, for what wants a <see cref="ChannelBase"/>. Its <c>ShutdownAsync</c> is the
    /// <see cref="DisposeAsync"/> of the invoker.
    /// </summary>
    public ChannelBase AsChannel() => _channel ??= new PooledChannelBase(this);

    /// <inheritdoc/>
    public override TResponse BlockingUnaryCall<TRequest, TResponse>(Method<TRequest, TResponse> method, string? host, CallOptions options, TRequest request) =>
        new UnaryCall<TRequest, TResponse>(_environment, method, GivenOptions.Of(host, options), request).Start().GetAwaiter().GetResult();

    /// <inheritdoc/>
    public override AsyncUnaryCall<TResponse> AsyncUnaryCall<TRequest, TResponse>(
        Method<TRequest, TResponse> method, string? host, CallOptions options, TRequest request)
    {
        var call = new UnaryCall<TRequest, TResponse>(_environment, method, GivenOptions.Of(host, options), request);
        return new(call.Start(), GetHeaders, GetStatus, GetTrailers, EndCall, call);
    }

    /// <inheritdoc/>
    public override AsyncClientStreamingCall<TRequest, TResponse> AsyncClientStreamingCall<TRequest, TResponse>(
        Method<TRequest, TResponse> method, string? host, CallOptions options)
    {
        var call = new StreamingCall<TRequest, TResponse>(_environment, MethodType.ClientStreaming, method, GivenOptions.Of(host, options), request: null);
        var response = call.Start();
        var handle = new CallHandle(call);
        return new(new LeasedStreamWriter<TRequest, TResponse>(call, handle), response, GetHeaders, GetStatus, GetTrailers, EndCall, handle);
    }

    /// <inheritdoc/>
    public override AsyncServerStreamingCall<TResponse> AsyncServerStreamingCall<TRequest, TResponse>(
        Method<TRequest, TResponse> method, string? host, CallOptions options, TRequest request)
    {
        var call = new StreamingCall<TRequest, TResponse>(_environment, MethodType.ServerStreaming, method, GivenOptions.Of(host, options), request);
        _ = call.Start();
        var handle = new CallHandle(call);
        return new(new LeasedStreamReader<TRequest, TResponse>(call, handle), GetHeaders, GetStatus, GetTrailers, EndCall, handle);
    }

    /// <inheritdoc/>
    public override AsyncDuplexStreamingCall<TRequest, TResponse> AsyncDuplexStreamingCall<TRequest, TResponse>(
        Method<TRequest, TResponse> method, string? host, CallOptions options)
    {
        var call = new StreamingCall<TRequest, TResponse>(_environment, MethodType.DuplexStreaming, method, GivenOptions.Of(host, options), request: null);
        _ = call.Start();
        var handle = new CallHandle(call);
        var (requests, responses) = (new LeasedStreamWriter<TRequest, TResponse>(call, handle), new LeasedStreamReader<TRequest, TResponse>(call, handle));
        return new(requests, responses, GetHeaders, GetStatus, GetTrailers, EndCall, handle);
    }

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

    private sealed class PooledChannelBase(PoolingCallInvoker invoker) : ChannelBase(invoker.Pool.Target)
    {
        public override CallInvoker CreateCallInvoker() => invoker;

        protected override Task ShutdownAsyncCore() => invoker.DisposeAsync().AsTask();
    }
}

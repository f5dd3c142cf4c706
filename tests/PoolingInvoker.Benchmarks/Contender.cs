using Grpc.Core;
using Grpc.Net.Client;
using Microsoft.Extensions.ObjectPool;
using PoolingInvoker.Protos;

namespace PoolingInvoker.Benchmarks;

/// <summary>A way to make calls, of which a scenario makes clients.</summary>
/// <param name="Name">What the tables call it.</param>
/// <param name="Connect">Makes a client to an address.</param>
internal sealed record Contender(string Name, Func<Uri, Client> Connect)
{
    public static readonly Contender DefaultChannel = new("default channel", static address => Client.Of(GrpcChannel.ForAddress(address)));

    public static readonly Contender OneConnection = new("one connection", static address => Client.Of(GrpcChannel.ForAddress(address, new GrpcChannelOptions
    {
        HttpHandler = new SocketsHttpHandler { EnableMultipleHttp2Connections = false },
        DisposeHttpClient = true,
    })));

    public static readonly Contender InTurn = new("8 channels in turn", static address => new Client(new ChannelArray(address, 8)));

    public static readonly Contender GetAndPut = new("channels by Get and Put", static address => new Client(new GetPutInvoker(address)));

    public static readonly Contender Pool = new("pool", static address => new Client(PoolingCallInvoker.ForAddress(address)));

    public static readonly Contender PackedPool = new("pool, packed", static address => new Client(PoolingCallInvoker.ForAddress(
        address, new PoolingCallInvokerOptions { Pool = { TargetConcurrentCallsPerChannel = null } })));

    public static Contender Named(string name) => new[] { DefaultChannel, OneConnection, InTurn, GetAndPut, Pool, PackedPool }.Single(contender => contender.Name == name);

    public override string ToString() => Name;
}

/// <summary>A generated client, and what is disposed with it.</summary>
internal sealed class Client(CallInvoker invoker, IDisposable? owner = null) : IAsyncDisposable
{
    public CallInvoker Invoker => invoker;

    public User.UserClient User { get; } = new(invoker);

    public static Client Of(GrpcChannel channel) => new(channel.CreateCallInvoker(), channel);

    public ValueTask DisposeAsync()
    {
        if (invoker is IAsyncDisposable pool)
        {
            return pool.DisposeAsync();
        }

        (owner ?? invoker as IDisposable)?.Dispose();
        return ValueTask.CompletedTask;
    }
}

/// <summary>A channel for each call: taken from a pool of objects when it starts, and put back when it is over.</summary>
internal sealed class GetPutInvoker(Uri address) : CallInvoker, IDisposable
{
    private readonly ObjectPool<GrpcChannel> _channels = new DefaultObjectPoolProvider { MaximumRetained = 100 }.Create(new Policy(address));

    public void Dispose() => (_channels as IDisposable)?.Dispose();

    public override AsyncUnaryCall<TResponse> AsyncUnaryCall<TRequest, TResponse>(Method<TRequest, TResponse> method, string? host, CallOptions options, TRequest request)
    {
        var channel = _channels.Get();
        var call = channel.CreateCallInvoker().AsyncUnaryCall(method, host, options, request);
        return new AsyncUnaryCall<TResponse>(ReceiveAsync(call, channel), call.ResponseHeadersAsync, call.GetStatus, call.GetTrailers, call.Dispose);
    }

    public override TResponse BlockingUnaryCall<TRequest, TResponse>(Method<TRequest, TResponse> method, string? host, CallOptions options, TRequest request) =>
        throw new NotSupportedException();

    public override AsyncServerStreamingCall<TResponse> AsyncServerStreamingCall<TRequest, TResponse>(Method<TRequest, TResponse> method, string? host, CallOptions options, TRequest request) =>
        throw new NotSupportedException();

    public override AsyncClientStreamingCall<TRequest, TResponse> AsyncClientStreamingCall<TRequest, TResponse>(Method<TRequest, TResponse> method, string? host, CallOptions options) =>
        throw new NotSupportedException();

    public override AsyncDuplexStreamingCall<TRequest, TResponse> AsyncDuplexStreamingCall<TRequest, TResponse>(Method<TRequest, TResponse> method, string? host, CallOptions options) =>
        throw new NotSupportedException();

    private async Task<TResponse> ReceiveAsync<TResponse>(AsyncUnaryCall<TResponse> call, GrpcChannel channel)
    {
        try
        {
            return await call.ResponseAsync.ConfigureAwait(false);
        }
        finally
        {
            _channels.Return(channel);
        }
    }

    private sealed class Policy(Uri address) : IPooledObjectPolicy<GrpcChannel>
    {
        public GrpcChannel Create() => GrpcChannel.ForAddress(address);

        public bool Return(GrpcChannel obj) => true;
    }
}

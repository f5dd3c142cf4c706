using Grpc.Core;
using Grpc.Net.Client;
using PoolingInvoker.Protos;

namespace PoolingInvoker.FunctionalTests;

/// <summary>A client over a pool, or over a bare channel in the same situation.</summary>
internal sealed class TestClient : IAsyncDisposable
{
    private readonly IDisposable _owner;

    private TestClient(CallInvoker invoker, IDisposable owner)
    {
        Invoker = invoker;
        _owner = owner;
        User = new User.UserClient(invoker);
    }

    public CallInvoker Invoker { get; }

    public User.UserClient User { get; }

    public PoolingCallInvoker? Pooled => Invoker as PoolingCallInvoker;

    public long ChannelsReplaced => Pooled?.Pool.GetStatistics().ChannelsReplaced ?? 0;

    public long Retries => Pooled?.Pool.GetStatistics().Retries ?? 0;

    /// <param name="overPool">Over a pool, or over a bare channel.</param>
    /// <param name="address">Whom to call.</param>
    /// <param name="handler">Changes the handler of each channel.</param>
    /// <param name="channel">Changes the options of each channel.</param>
    /// <param name="pool">Changes the options of the pool.</param>
    public static TestClient Create(
        bool overPool,
        Uri address,
        Action<SocketsHttpHandler>? handler = null,
        Action<GrpcChannelOptions>? channel = null,
        Action<PoolingCallInvokerOptions>? pool = null)
    {
        if (overPool)
        {
            var options = new PoolingCallInvokerOptions
            {
                Pool = { ConfigureHandler = handler, ConfigureChannel = channel, DrainTimeout = TimeSpan.Zero },
                Retry = { Delay = TimeSpan.FromMilliseconds(1), UseJitter = false },
            };
            pool?.Invoke(options);
            var invoker = PoolingCallInvoker.ForAddress(address, options);
            return new TestClient(invoker, invoker);
        }

        var sockets = new SocketsHttpHandler { EnableMultipleHttp2Connections = true };
        handler?.Invoke(sockets);
        var bareOptions = new GrpcChannelOptions { HttpHandler = sockets, DisposeHttpClient = true };
        channel?.Invoke(bareOptions);
        var bare = GrpcChannel.ForAddress(address, bareOptions);
        return new TestClient(bare.CreateCallInvoker(), bare);
    }

    public async ValueTask DisposeAsync()
    {
        if (_owner is IAsyncDisposable pool)
        {
            await pool.DisposeAsync();
        }

        _owner.Dispose();
    }
}

using System.Collections.Concurrent;
using Grpc.Net.Client;
using Microsoft.Extensions.ObjectPool;

namespace PoolingInvoker.Interleavings;

/// <summary>Makes channels that are never asked for anything, remembers them, and does what the checker says.</summary>
internal sealed class ProbePolicy : IPooledObjectPolicy<GrpcChannel>, IEndpointPolicy
{
    private readonly ConcurrentQueue<GrpcChannel> _made = new();
    private readonly ConcurrentDictionary<GrpcChannel, Transport> _transports = new();

    public Action OnCreate { get; set; } = static () => { };

    public Action<GrpcChannel> OnMade { get; set; } = static _ => { };

    public Action OnDispose { get; set; } = static () => { };

    public Func<GrpcChannel, bool> OnReturn { get; set; } = static _ => true;

    public IEnumerable<GrpcChannel> Made => _made;

    /// <summary>Whether the channel is disposed, to the end.</summary>
    public bool IsDisposed(GrpcChannel channel) => _transports[channel].IsDisposed;

    public GrpcChannel Create()
    {
        OnCreate();
        var transport = new Transport(this);
        var channel = GrpcChannel.ForAddress("http://probe", new GrpcChannelOptions { HttpHandler = transport, DisposeHttpClient = true });
        _transports[channel] = transport;
        _made.Enqueue(channel);
        OnMade(channel);
        return channel;
    }

    public GrpcChannel Create(ChannelEndpoint endpoint) => Create();

    public bool Return(GrpcChannel obj) => OnReturn(obj);

    private sealed class Transport(ProbePolicy policy) : HttpMessageHandler
    {
        public bool IsDisposed { get; private set; }

        protected override Task<HttpResponseMessage> SendAsync(HttpRequestMessage request, CancellationToken cancellationToken) =>
            throw new InvalidOperationException("No call was expected.");

        protected override void Dispose(bool disposing)
        {
            if (disposing && !IsDisposed)
            {
                policy.OnDispose();
                IsDisposed = true;
            }

            base.Dispose(disposing);
        }
    }
}

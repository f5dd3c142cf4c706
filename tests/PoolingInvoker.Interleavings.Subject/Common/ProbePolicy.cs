using System.Collections.Concurrent;
using Grpc.Net.Client;

namespace PoolingInvoker.Interleavings;

/// <summary>Makes channels that are never asked for anything, remembers them, and does what the checker says.</summary>
internal sealed class ProbePolicy : IChannelFactory
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

    /// <summary>Gets or sets what makes the connections of a channel; null if those of the checker have none.</summary>
    public Func<ChannelTransport>? OnConnect { get; set; }

    public string Target => nameof(ProbePolicy);

    public (GrpcChannel Channel, ChannelTransport? Transport) Create(ChannelEndpoint? endpoint)
    {
        OnCreate();
        var transport = new Transport(this);
        var channel = GrpcChannel.ForAddress("http://probe", new GrpcChannelOptions { HttpHandler = transport, DisposeHttpClient = true });
        _transports[channel] = transport;
        _made.Enqueue(channel);
        OnMade(channel);
        return (channel, OnConnect?.Invoke());
    }

    public Exception Explain(Exception error) => new InvalidOperationException("The channel could not be made.", error);

    public bool IsGood(GrpcChannel channel) => OnReturn(channel);

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

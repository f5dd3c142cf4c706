using System.Collections.Concurrent;
using Grpc.Net.Client;
using Microsoft.Extensions.ObjectPool;

namespace PoolingInvoker.Tests;

/// <summary>Makes channels over a handler that is never asked for anything, and does what the test says.</summary>
internal sealed class StubPolicy : IPooledObjectPolicy<GrpcChannel>
{
    private readonly ConcurrentQueue<GrpcChannel> _created = new();

    public Func<GrpcChannel?> OnCreate { get; set; } = NewChannel;

    public Func<GrpcChannel, bool> OnReturn { get; set; } = static _ => true;

    public IReadOnlyList<GrpcChannel> Created => [.. _created];

    public static GrpcChannel NewChannel() => NewChannel(new UnusedHandler());

    public static GrpcChannel NewChannel(HttpMessageHandler handler) =>
        GrpcChannel.ForAddress("http://stub", new GrpcChannelOptions { HttpHandler = handler, DisposeHttpClient = true });

    /// <summary>Whether the channel has been disposed.</summary>
    public static bool IsDisposed(GrpcChannel channel)
    {
        try
        {
            channel.CreateCallInvoker();
            return false;
        }
        catch (ObjectDisposedException)
        {
            return true;
        }
    }

    public GrpcChannel Create()
    {
        var channel = OnCreate();
        if (channel is not null)
        {
            _created.Enqueue(channel);
        }

        return channel!;
    }

    public bool Return(GrpcChannel obj) => OnReturn(obj);

    private sealed class UnusedHandler : HttpMessageHandler
    {
        protected override Task<HttpResponseMessage> SendAsync(HttpRequestMessage request, CancellationToken cancellationToken) =>
            throw new InvalidOperationException("No call was expected.");
    }
}

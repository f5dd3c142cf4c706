using System.Collections.Concurrent;
using System.Net;
using System.Net.Sockets;

namespace PoolingInvoker.Demo.Servers;

/// <summary>
/// A load balancer as they stand before many servers: it spreads connections, in turn, and knows nothing of the calls on them.
/// A backend that does not take a connection is passed over.
/// </summary>
public sealed class L4Balancer : IAsyncDisposable
{
    private readonly TcpListener _listener = new(IPAddress.Loopback, 0);
    private readonly DnsEndPoint[] _backends;
    private readonly ConcurrentDictionary<Socket, byte> _sockets = new();
    private readonly Task _accepting;
    private int _next;
    private int _connections;
    private int _peakConnections;

    public L4Balancer(params IEnumerable<Uri> backends)
    {
        _backends = [.. backends.Select(static backend => new DnsEndPoint(backend.IdnHost, backend.Port))];
        _listener.Start(512);
        Address = new Uri($"http://127.0.0.1:{((IPEndPoint)_listener.LocalEndpoint).Port}");
        _accepting = AcceptAsync();
    }

    public Uri Address { get; }

    /// <summary>The connections that are open through the balancer.</summary>
    public int Connections => Volatile.Read(ref _connections);

    public int PeakConnections => Volatile.Read(ref _peakConnections);

    public async ValueTask DisposeAsync()
    {
        _listener.Dispose();
        await _accepting;
        foreach (var socket in _sockets.Keys)
        {
            socket.Dispose();
        }
    }

    private async Task AcceptAsync()
    {
        try
        {
            while (true)
            {
                _ = ServeAsync(await _listener.AcceptSocketAsync());
            }
        }
        catch (Exception exception) when (exception is SocketException or InvalidOperationException)
        {
            // The balancer has been stopped.
        }
    }

    private async Task ServeAsync(Socket client)
    {
        using (client)
        {
            client.NoDelay = true;
            using var backend = await ConnectAsync();
            if (backend is null)
            {
                client.LingerState = new LingerOption(enable: true, seconds: 0); // a reset, as from a balancer without a backend
                return;
            }

            InterlockedMax(ref _peakConnections, Interlocked.Increment(ref _connections));
            _sockets.TryAdd(client, 0);
            _sockets.TryAdd(backend, 0);
            await using (var clientStream = new NetworkStream(client))
            await using (var backendStream = new NetworkStream(backend))
            {
                var up = clientStream.CopyToAsync(backendStream);
                var down = backendStream.CopyToAsync(clientStream);
                await Task.WhenAny(up, down);

                // One side has gone: so does the other.
                client.Dispose();
                backend.Dispose();
                Interlocked.Decrement(ref _connections);
                await Task.WhenAll(up, down).ConfigureAwait(ConfigureAwaitOptions.SuppressThrowing);
            }

            _sockets.TryRemove(client, out _);
            _sockets.TryRemove(backend, out _);
        }
    }

    private async Task<Socket?> ConnectAsync()
    {
        for (var tried = 0; tried < _backends.Length; tried++)
        {
            var backend = new Socket(SocketType.Stream, ProtocolType.Tcp) { NoDelay = true };
            try
            {
                await backend.ConnectAsync(_backends[(uint)Interlocked.Increment(ref _next) % _backends.Length]);
                return backend;
            }
            catch (SocketException)
            {
                backend.Dispose();
            }
        }

        return null;
    }

    private static void InterlockedMax(ref int location, int value)
    {
        var seen = Volatile.Read(ref location);
        while (seen < value)
        {
            seen = Interlocked.CompareExchange(ref location, value, seen) is var actual && actual == seen ? value : actual;
        }
    }
}

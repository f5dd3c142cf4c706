using System.Collections.Concurrent;
using System.Net;
using System.Net.Sockets;

namespace PoolingInvoker.Demo.Servers;

/// <summary>
/// A load balancer as they stand before many servers: it spreads connections, in turn, and knows nothing of the calls on them.
/// A backend that does not take a connection is passed over. The way to each can be blocked: connections stand, and nothing comes through them, as
/// with a server that hangs or a network that drops all packets.
/// </summary>
public sealed class L4Balancer : IAsyncDisposable
{
    private readonly TcpListener _listener = new(IPAddress.Loopback, 0);
    private volatile Backend[] _backends;
    private readonly ConcurrentDictionary<Socket, byte> _sockets = new();
    private readonly Task _accepting;
    private int _next;
    private int _connections;
    private int _peakConnections;

    public L4Balancer(params IEnumerable<Uri> backends)
    {
        _backends = [.. backends.Select(static backend => new Backend(backend))];
        _listener.Start(512);
        Address = new Uri($"http://127.0.0.1:{((IPEndPoint)_listener.LocalEndpoint).Port}");
        _accepting = AcceptAsync();
    }

    public Uri Address { get; }

    /// <summary>The connections that are open through the balancer.</summary>
    public int Connections => Volatile.Read(ref _connections);

    public int PeakConnections => Volatile.Read(ref _peakConnections);

    /// <summary>Spreads connections over one more.</summary>
    public void Add(Uri backend) => _backends = [.. _backends, new Backend(backend)];

    /// <summary>Lets nothing through to a backend, and nothing from it.</summary>
    public void Block(Uri backend) => Find(backend).Block();

    /// <summary>Lets through what has waited, and all that follows.</summary>
    public void Unblock(Uri backend) => Find(backend).Unblock();

    public bool IsBlocked(Uri backend) => Find(backend).IsBlocked;

    public async ValueTask DisposeAsync()
    {
        Array.ForEach(_backends, static backend => backend.Unblock());
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
            var (to, backend) = await ConnectAsync();
            using var socket = backend;
            if (to is null || backend is null)
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
                var up = to.PassAsync(clientStream, backendStream);
                var down = to.PassAsync(backendStream, clientStream);
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

    private async Task<(Backend? To, Socket? Socket)> ConnectAsync()
    {
        var backends = _backends;
        for (var tried = 0; tried < backends.Length; tried++)
        {
            var backend = new Socket(SocketType.Stream, ProtocolType.Tcp) { NoDelay = true };
            try
            {
                var to = backends[(uint)Interlocked.Increment(ref _next) % backends.Length];
                await backend.ConnectAsync(to.EndPoint);
                return (to, backend);
            }
            catch (SocketException)
            {
                backend.Dispose();
            }
        }

        return (null, null);
    }

    private Backend Find(Uri address) => Array.Find(_backends, backend => backend.Address == address)
        ?? throw new ArgumentException($"There is no backend {address}.", nameof(address));

    private static void InterlockedMax(ref int location, int value)
    {
        var seen = Volatile.Read(ref location);
        while (seen < value)
        {
            seen = Interlocked.CompareExchange(ref location, value, seen) is var actual && actual == seen ? value : actual;
        }
    }

    private sealed class Backend(Uri address)
    {
        private volatile TaskCompletionSource? _blocked;

        public Uri Address => address;

        public DnsEndPoint EndPoint { get; } = new(address.IdnHost, address.Port);

        public bool IsBlocked => _blocked is not null;

        public void Block() => Interlocked.CompareExchange(ref _blocked, new TaskCompletionSource(TaskCreationOptions.RunContinuationsAsynchronously), null);

        public void Unblock() => Interlocked.Exchange(ref _blocked, null)?.SetResult();

        public async Task PassAsync(NetworkStream from, NetworkStream to)
        {
            var buffer = new byte[64 * 1024];
            while (await from.ReadAsync(buffer) is var read and > 0)
            {
                while (_blocked is { } blocked)
                {
                    await blocked.Task;
                }

                await to.WriteAsync(buffer.AsMemory(0, read));
            }
        }
    }
}

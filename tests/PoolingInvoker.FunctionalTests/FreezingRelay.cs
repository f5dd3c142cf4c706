using System.Collections.Concurrent;
using System.Net;
using System.Net.Sockets;

namespace PoolingInvoker.FunctionalTests;

/// <summary>
/// Passes connections on to a server until it is frozen: then they stay open, and nothing goes through them any more, as when packets are
/// dropped or the other side hangs.
/// </summary>
internal sealed class FreezingRelay : IAsyncDisposable
{
    private readonly TcpListener _listener = new(IPAddress.Loopback, 0);
    private readonly DnsEndPoint _server;
    private readonly ConcurrentQueue<Link> _links = new();
    private readonly List<Socket> _crowd = [];
    private readonly CancellationTokenSource _stop = new();
    private readonly Task _accepting;
    private volatile bool _accepts = true;

    /// <param name="server">Where connections are passed on to.</param>
    /// <param name="backlog">How many the system takes in advance: few, so that they are soon taken up, or as many as come at a time.</param>
    public FreezingRelay(Uri server, int backlog = 1)
    {
        _server = new DnsEndPoint(server.IdnHost, server.Port);
        _listener.Start(backlog);
        Address = new Uri($"http://127.0.0.1:{((IPEndPoint)_listener.LocalEndpoint).Port}");
        _accepting = AcceptAsync();
    }

    public Uri Address { get; }

    public int Connections => _links.Count;

    /// <summary>Gets or sets whether connections that come from now on are frozen from their beginning.</summary>
    public bool FreezesNew { get; set; }

    /// <summary>Takes no more connections, so that who connects waits: what the system takes in advance is taken up.</summary>
    public async Task StopAcceptingAsync()
    {
        _accepts = false;
        while (true)
        {
            var socket = new Socket(SocketType.Stream, ProtocolType.Tcp);
            _crowd.Add(socket);
            using var patience = new CancellationTokenSource(TimeSpan.FromMilliseconds(300));
            try
            {
                await socket.ConnectAsync(_listener.LocalEndpoint, patience.Token);
            }
            catch (OperationCanceledException)
            {
                return;
            }
        }
    }

    /// <summary>Freezes the connections that there are, or the first so many of them.</summary>
    public void Freeze(int count = int.MaxValue)
    {
        foreach (var link in _links.Take(count))
        {
            link.IsFrozen = true;
        }
    }

    /// <summary>Closes the first connection, as a server does, and waits until the other side has closed it, too.</summary>
    public Task CloseAsync() => _links.First().CloseAsync();

    public async ValueTask DisposeAsync()
    {
        await _stop.CancelAsync();
        _listener.Dispose();
        await _accepting;
        _stop.Dispose();
        _crowd.ForEach(static socket => socket.Dispose());
        foreach (var link in _links)
        {
            link.Dispose();
        }
    }

    private async Task AcceptAsync()
    {
        try
        {
            while (true)
            {
                var client = await _listener.AcceptSocketAsync();
                while (!_accepts)
                {
                    await Task.Delay(10, _stop.Token);
                }

                var link = new Link(client) { IsFrozen = FreezesNew };
                _links.Enqueue(link);
                _ = link.RunAsync(_server);
            }
        }
        catch (Exception exception) when (exception is SocketException or InvalidOperationException or OperationCanceledException)
        {
            // The relay has been stopped.
        }
    }

    private sealed class Link(Socket client) : IDisposable
    {
        private readonly Socket _server = new(SocketType.Stream, ProtocolType.Tcp) { NoDelay = true };
        private readonly TaskCompletionSource _ended = new(TaskCreationOptions.RunContinuationsAsynchronously);

        public volatile bool IsFrozen;

        public async Task RunAsync(DnsEndPoint server)
        {
            client.NoDelay = true;
            try
            {
                await _server.ConnectAsync(server);
                await Task.WhenAny(CopyAsync(client, _server), CopyAsync(_server, client));
            }
            catch (SocketException)
            {
                // One side has gone: so does the other.
            }

            Dispose();
            _ended.SetResult();
        }

        public Task CloseAsync()
        {
            client.Shutdown(SocketShutdown.Send);
            return _ended.Task;
        }

        public void Dispose()
        {
            client.Dispose();
            _server.Dispose();
        }

        private async Task CopyAsync(Socket from, Socket to)
        {
            var buffer = new byte[64 * 1024];
            try
            {
                while (await from.ReceiveAsync(buffer) is var read && read > 0)
                {
                    if (!IsFrozen)
                    {
                        await to.SendAsync(buffer.AsMemory(0, read));
                    }
                }
            }
            catch (Exception exception) when (exception is SocketException or ObjectDisposedException)
            {
                // As above.
            }
        }
    }
}

using System.Net;
using System.Net.Sockets;

namespace PoolingInvoker.FaultTests;

/// <summary>A port that refuses connections, until it is opened and leads to a server.</summary>
internal sealed class ClosedPort : IAsyncDisposable
{
    private readonly Socket _listener = new(AddressFamily.InterNetwork, SocketType.Stream, ProtocolType.Tcp);
    private readonly CancellationTokenSource _stop = new();
    private Task _accepting = Task.CompletedTask;
    private int _open;

    public ClosedPort()
    {
        // Bound, so that nobody else gets it, and not listening, so that it is closed.
        _listener.Bind(new IPEndPoint(IPAddress.Loopback, 0));
        Address = new Uri($"http://127.0.0.1:{((IPEndPoint)_listener.LocalEndPoint!).Port}");
    }

    public Uri Address { get; }

    public void Open(Uri server)
    {
        if (Interlocked.Exchange(ref _open, 1) == 0)
        {
            _listener.Listen();
            _accepting = AcceptAsync(server);
        }
    }

    public async ValueTask DisposeAsync()
    {
        await _stop.CancelAsync();
        _listener.Dispose();
        await _accepting.ConfigureAwait(ConfigureAwaitOptions.SuppressThrowing);
        _stop.Dispose();
    }

    private async Task AcceptAsync(Uri server)
    {
        var serving = new List<Task>();
        try
        {
            while (true)
            {
                serving.Add(ServeAsync(await _listener.AcceptAsync(_stop.Token), server));
            }
        }
        finally
        {
            await Task.WhenAll(serving).ConfigureAwait(ConfigureAwaitOptions.SuppressThrowing);
        }
    }

    private async Task ServeAsync(Socket client, Uri server)
    {
        using var backend = new TcpClient();
        await backend.ConnectAsync(server.Host, server.Port, _stop.Token);
        await using var there = backend.GetStream();
        await using var here = new NetworkStream(client, ownsSocket: true);
        await Task.WhenAny(here.CopyToAsync(there, _stop.Token), there.CopyToAsync(here, _stop.Token));
    }
}

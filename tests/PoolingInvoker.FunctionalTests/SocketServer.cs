using System.Collections.Concurrent;
using System.Net;
using System.Net.Security;
using System.Net.Sockets;
using System.Security.Authentication;
using System.Security.Cryptography.X509Certificates;
using PoolingInvoker.Testing;

namespace PoolingInvoker.FunctionalTests;

/// <summary>What takes connections, and does with each what the test says: a balancer with nobody behind it, a server of another protocol.</summary>
internal sealed class SocketServer : IAsyncDisposable
{
    private readonly TcpListener _listener = new(IPAddress.Loopback, 0);
    private readonly ConcurrentQueue<Socket> _sockets = new();
    private readonly ConcurrentDictionary<string, bool> _seen = new();
    private readonly Func<Socket, Task> _serve;
    private readonly Task _accepting;
    private int _accepted;
    private int _own;

    /// <param name="serve">What is done with a connection.</param>
    public SocketServer(Func<Socket, Task> serve)
    {
        _serve = serve;
        _listener.Start(backlog: 512);
        EndPoint = (IPEndPoint)_listener.LocalEndpoint;
        _accepting = AcceptAsync();
    }

    public IPEndPoint EndPoint { get; }

    public Uri Address => new($"http://{EndPoint}");

    /// <summary>How many connections there have been.</summary>
    public int Accepted => Volatile.Read(ref _accepted);

    public static SocketServer ThatCloses() => new(static socket =>
    {
        socket.Dispose();
        return Task.CompletedTask;
    });

    public static SocketServer ThatResets() => new(static socket =>
    {
        socket.LingerState = new LingerOption(enable: true, seconds: 0);
        socket.Dispose();
        return Task.CompletedTask;
    });

    public static SocketServer ThatSaysNothing() => new(static _ => Task.CompletedTask);

    /// <summary>Says SETTINGS, reads the preface of the client, and closes the connection.</summary>
    public static SocketServer ThatClosesAfterSettings() => new(static async socket =>
    {
        await socket.SendAsync((byte[])[0, 0, 0, 4, 0, 0, 0, 0, 0]);
        await socket.ReceiveAsync(new byte[1_024]);
        socket.Shutdown(SocketShutdown.Send);
        socket.Dispose();
    });

    /// <summary>Takes nothing but HTTP/2 without TLS: what begins otherwise is told so, and closed.</summary>
    public static SocketServer WithoutTls() => ThatAnswers([0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);

    /// <summary>Knows HTTP/1.1 alone.</summary>
    public static SocketServer WithoutHttp2() => ThatAnswers("HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"u8.ToArray());

    /// <summary>Speaks TLS, but knows no ALPN.</summary>
    public static SocketServer WithoutAlpn(X509Certificate2 certificate) => new(async socket =>
    {
        await using var tls = new SslStream(new NetworkStream(socket));
        await tls.AuthenticateAsServerAsync(certificate);
        await tls.CopyToAsync(Stream.Null);
    });

    // Answers whatever it reads first, and closes the connection when the client does.
    private static SocketServer ThatAnswers(byte[] answer) => new(async socket =>
    {
        await socket.ReceiveAsync(new byte[1_024]);
        await socket.SendAsync(answer);
        socket.Shutdown(SocketShutdown.Send);
        while (await socket.ReceiveAsync(new byte[1_024]) > 0)
        {
        }
    });

    /// <summary>Waits until the connections that clients have made so far are all counted.</summary>
    public async Task<int> CountAsync()
    {
        // The listener takes connections in their order: when this one has come, all have.
        using var last = new Socket(AddressFamily.InterNetwork, SocketType.Stream, ProtocolType.Tcp);
        last.Bind(new IPEndPoint(IPAddress.Loopback, 0));
        var ours = $"{last.LocalEndPoint}";
        try
        {
            await last.ConnectAsync(EndPoint);
        }
        catch (SocketException)
        {
            // It has been taken, and reset.
        }

        await Waiting.Until(() => _seen.ContainsKey(ours));
        return Accepted - Interlocked.Increment(ref _own);
    }

    public async ValueTask DisposeAsync()
    {
        _listener.Dispose();
        await _accepting;
        foreach (var socket in _sockets)
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
                var socket = await _listener.AcceptSocketAsync();
                _sockets.Enqueue(socket);
                Interlocked.Increment(ref _accepted);
                Note(socket);
                _ = ServeAsync(socket);
            }
        }
        catch (Exception exception) when (exception is SocketException or InvalidOperationException)
        {
            // The server has been stopped.
        }
    }

    private void Note(Socket socket)
    {
        try
        {
            _seen[$"{socket.RemoteEndPoint}"] = true;
        }
        catch (SocketException)
        {
            // The client has gone already, and is counted.
        }
    }

    private async Task ServeAsync(Socket socket)
    {
        try
        {
            await Task.Yield();
            await _serve(socket);
        }
        catch (Exception exception) when (exception is IOException or SocketException or ObjectDisposedException or AuthenticationException)
        {
            // The client has gone, or does not like what it sees.
        }
    }
}

using System.Collections.Concurrent;
using System.Net;
using System.Net.Sockets;
using System.Text;

namespace PoolingInvoker.FunctionalTests;

/// <summary>An HTTP proxy that passes connections on (CONNECT; RFC 9110, section 9.3.6), and writes down what it is asked.</summary>
internal sealed class ConnectProxy : IAsyncDisposable
{
    private readonly ConcurrentQueue<string> _requests = new();
    private readonly ConcurrentBag<Socket> _sockets = [];
    private readonly SocketServer _server;

    public ConnectProxy() => _server = new SocketServer(ServeAsync);

    public Uri Address => _server.Address;

    /// <summary>Each request: its method and target, and the status of the answer.</summary>
    public IReadOnlyList<string> Requests => [.. _requests];

    /// <summary>The name and the password that it wants, as in <c>name:password</c>; null if it wants none.</summary>
    public string? Credentials { get; init; }

    /// <summary>The status of all answers; null to connect.</summary>
    public int? Refusal { get; init; }

    /// <summary>Where it connects to for a name that does not exist; null if it does.</summary>
    public IPEndPoint? Target { get; init; }

    public async ValueTask DisposeAsync()
    {
        await _server.DisposeAsync();
        foreach (var socket in _sockets)
        {
            socket.Dispose();
        }
    }

    private async Task ServeAsync(Socket socket)
    {
        await using var client = new NetworkStream(socket, ownsSocket: true);
        while (await ReadHeadAsync(client) is [var request, .. var fields])
        {
            var (method, target) = request.Split(' ') is [var first, var second, ..] ? (first, second) : (request, "");
            var status = Refusal ?? (!IsAuthorized(fields) ? 407 : method == "CONNECT" ? 200 : 501);
            _requests.Enqueue($"{method} {target} {status}");
            if (status == 200)
            {
                await PassOnAsync(client, target);
                return;
            }

            var challenge = status == 407 ? "Proxy-Authenticate: Basic realm=\"test\"\r\n" : "";
            await client.WriteAsync(Encoding.ASCII.GetBytes($"HTTP/1.1 {status} No\r\n{challenge}Content-Length: 0\r\n\r\n"));
        }
    }

    private bool IsAuthorized(string[] fields) =>
        Credentials is null || fields.Contains($"Proxy-Authorization: Basic {Convert.ToBase64String(Encoding.ASCII.GetBytes(Credentials))}");

    private async Task PassOnAsync(NetworkStream client, string target)
    {
        var colon = target.LastIndexOf(':');
        var socket = new Socket(SocketType.Stream, ProtocolType.Tcp) { NoDelay = true };
        _sockets.Add(socket);
        await socket.ConnectAsync(Target ?? (EndPoint)new DnsEndPoint(target[..colon].Trim('[', ']'), int.Parse(target[(colon + 1)..])));
        await using var server = new NetworkStream(socket, ownsSocket: true);
        await client.WriteAsync("HTTP/1.1 200 Connection established\r\n\r\n"u8.ToArray());
        await Task.WhenAny(client.CopyToAsync(server), server.CopyToAsync(client));
    }

    // Byte by byte: what follows belongs to the server.
    private static async Task<string[]> ReadHeadAsync(NetworkStream client)
    {
        var head = new StringBuilder();
        var next = new byte[1];
        while (!head.ToString().EndsWith("\r\n\r\n", StringComparison.Ordinal))
        {
            if (await client.ReadAsync(next) == 0)
            {
                return [];
            }

            head.Append((char)next[0]);
        }

        return head.ToString().Split("\r\n", StringSplitOptions.RemoveEmptyEntries);
    }
}

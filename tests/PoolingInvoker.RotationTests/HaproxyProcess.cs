using System.Net.Sockets;
using PoolingInvoker.FunctionalTests;
using PoolingInvoker.Testing;

namespace PoolingInvoker.RotationTests;

/// <summary>An HAProxy that spreads connections over servers, in turn, and knows nothing of the calls on them.</summary>
internal sealed class HaproxyProcess : ProxyProcess
{
    private int _servers;

    private HaproxyProcess(int port)
        : base("haproxy", port)
    {
    }

    private string AdminSocket => Path.Combine(Folder.FullName, "admin");

    /// <param name="servers">The servers that it begins with.</param>
    /// <param name="spare">How many can be added later.</param>
    public static Task<HaproxyProcess> StartAsync(IReadOnlyCollection<Uri> servers, int spare = 0) =>
        StartAsync(static port => new HaproxyProcess(port), haproxy => haproxy.TryStartAsync(servers, spare));

    /// <summary>Puts one more server in the row, in a place that was kept for it.</summary>
    public void Add(Uri server)
    {
        var name = $"users/s{++_servers}";
        Assert.Contains($"port changed from '1' to '{server.Port}'", Ask($"set server {name} addr {server.Host} port {server.Port}"), StringComparison.Ordinal);
        Assert.Equal("", Ask($"set server {name} state ready").Trim());
    }

    private async Task<bool> TryStartAsync(IReadOnlyCollection<Uri> servers, int spare)
    {
        _servers = servers.Count;
        var lines = servers.Select(static (server, index) => $"server s{index + 1} {server.Authority}")
            .Concat(Enumerable.Range(_servers + 1, spare).Select(static number => $"server s{number} 127.0.0.1:1 disabled"));
        var configuration = Path.Combine(Folder.FullName, "haproxy.cfg");

        // Without noreuseport it would share a port that another HAProxy has, instead of saying that it is taken.
        await File.WriteAllTextAsync(configuration, $"""
            global
              stats socket {AdminSocket} level admin
              noreuseport
              maxconn 2000
            defaults
              mode tcp
              timeout connect 5s
              timeout client 1h
              timeout server 1h
            frontend calls
              bind {Address.Authority}
              default_backend users
            backend users
              balance roundrobin
              {string.Join("\n  ", lines)}

            """);
        var reading = Start("haproxy", ["-db", "-f", configuration]);
        await Waiting.Until(() => reading.IsCompleted || Answers());
        return !reading.IsCompleted;
    }

    private bool Answers()
    {
        try
        {
            return Ask("show info").Contains("Uptime_sec", StringComparison.Ordinal);
        }
        catch (Exception exception) when (exception is SocketException or IOException)
        {
            return false;
        }
    }

    // One command a connection, which it closes behind its answer.
    private string Ask(string command)
    {
        using var socket = new Socket(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified);
        socket.Connect(new UnixDomainSocketEndPoint(AdminSocket));
        using var stream = new NetworkStream(socket) { ReadTimeout = (int)Waiting.Long.TotalMilliseconds };
        stream.Write(System.Text.Encoding.ASCII.GetBytes($"{command}\n"));
        using var reader = new StreamReader(stream);
        return reader.ReadToEnd();
    }
}

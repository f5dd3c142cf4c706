using System.Collections.Concurrent;
using System.ComponentModel;
using System.Diagnostics;
using System.Net;
using System.Net.Sockets;
using PoolingInvoker.Testing;

namespace PoolingInvoker.RotationTests;

/// <summary>
/// An HAProxy that spreads connections over servers, in turn, and knows nothing of the calls on them: one process with a free port and a
/// folder of its own, both gone when it is disposed.
/// </summary>
internal sealed class HaproxyProcess : IAsyncDisposable
{
    private readonly ConcurrentQueue<string> _log = new();
    private readonly DirectoryInfo _folder = Directory.CreateTempSubdirectory("haproxy-");
    private int _servers;
    private Process? _process;

    private HaproxyProcess(int port) => Address = new Uri($"http://127.0.0.1:{port}");

    public Uri Address { get; }

    private string AdminSocket => Path.Combine(_folder.FullName, "admin");

    /// <param name="servers">The servers that it begins with.</param>
    /// <param name="spare">How many can be added later.</param>
    public static async Task<HaproxyProcess> StartAsync(IReadOnlyCollection<Uri> servers, int spare = 0)
    {
        // It takes no port 0. The port that was free a moment ago may be another's by now.
        for (var attempt = 1; ; attempt++)
        {
            var haproxy = new HaproxyProcess(FreePort());
            try
            {
                if (await haproxy.TryStartAsync(servers, spare))
                {
                    return haproxy;
                }

                if (attempt == 5 || !haproxy._log.Any(static line => line.Contains("Address already in use", StringComparison.Ordinal)))
                {
                    throw new InvalidOperationException($"HAProxy does not start:\n{string.Join('\n', haproxy._log.TakeLast(20))}");
                }

                await haproxy.DisposeAsync();
            }
            catch
            {
                await haproxy.DisposeAsync();
                throw;
            }
        }
    }

    /// <summary>Puts one more server in the row, in a place that was kept for it.</summary>
    public void Add(Uri server)
    {
        var name = $"users/s{++_servers}";
        Assert.Contains($"port changed from '1' to '{server.Port}'", Ask($"set server {name} addr {server.Host} port {server.Port}"));
        Assert.Equal("", Ask($"set server {name} state ready").Trim());
    }

    public async ValueTask DisposeAsync()
    {
        if (_process is { } process)
        {
            _process = null;
            process.Kill();
            await process.WaitForExitAsync().Soon();
            process.Dispose();
        }

        if (_folder.Exists)
        {
            _folder.Delete(recursive: true);
            _folder.Refresh();
        }
    }

    private async Task<bool> TryStartAsync(IReadOnlyCollection<Uri> servers, int spare)
    {
        _servers = servers.Count;
        var lines = servers.Select(static (server, index) => $"server s{index + 1} {server.Authority}")
            .Concat(Enumerable.Range(_servers + 1, spare).Select(static number => $"server s{number} 127.0.0.1:1 disabled"));
        var configuration = Path.Combine(_folder.FullName, "haproxy.cfg");

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
        try
        {
            _process = Process.Start(new ProcessStartInfo("haproxy", ["-db", "-f", configuration]) { RedirectStandardError = true })!;
        }
        catch (Win32Exception exception)
        {
            throw new InvalidOperationException("There is no haproxy on the PATH. The package haproxy has it, which ./test.sh installs on Debian.", exception);
        }

        var reading = ReadLogAsync(_process.StandardError);
        await Waiting.Until(() => _process.HasExited || Answers());
        if (!_process.HasExited)
        {
            return true;
        }

        await reading.Soon();
        return false;
    }

    private async Task ReadLogAsync(StreamReader error)
    {
        while (await error.ReadLineAsync() is { } line)
        {
            _log.Enqueue(line);
        }
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

    private static int FreePort()
    {
        using var socket = new Socket(SocketType.Stream, ProtocolType.Tcp);
        socket.Bind(new IPEndPoint(IPAddress.Loopback, 0));
        return ((IPEndPoint)socket.LocalEndPoint!).Port;
    }
}

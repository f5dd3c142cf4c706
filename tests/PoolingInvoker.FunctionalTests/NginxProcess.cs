using System.Collections.Concurrent;
using System.ComponentModel;
using System.Diagnostics;
using System.Net;
using System.Net.Sockets;
using PoolingInvoker.Testing;

namespace PoolingInvoker.FunctionalTests;

/// <summary>An nginx before a gRPC server: one process with a free port and a folder of its own, both gone when it is disposed.</summary>
public sealed class NginxProcess : IAsyncDisposable
{
    private readonly ConcurrentQueue<string> _log = new();
    private readonly TaskCompletionSource<bool> _listens = new(TaskCreationOptions.RunContinuationsAsynchronously);
    private readonly DirectoryInfo _folder = Directory.CreateTempSubdirectory("nginx-");
    private Process? _process;

    private NginxProcess(int port) => Address = new Uri($"http://127.0.0.1:{port}");

    public Uri Address { get; }

    /// <param name="backend">The server that calls are passed to.</param>
    /// <param name="directives">Directives for the side of the clients, as in <c>keepalive_requests 20;</c>.</param>
    public static async Task<NginxProcess> StartAsync(Uri backend, string directives)
    {
        // It takes no port 0. The port that was free a moment ago may be another's by now.
        for (var attempt = 1; ; attempt++)
        {
            var nginx = new NginxProcess(FreePort());
            try
            {
                if (await nginx.TryStartAsync(backend, directives))
                {
                    return nginx;
                }

                if (attempt == 5 || !nginx._log.Any(static line => line.Contains("Address already in use", StringComparison.Ordinal)))
                {
                    throw new InvalidOperationException($"nginx does not start:\n{string.Join('\n', nginx._log.TakeLast(20))}");
                }

                await nginx.DisposeAsync();
            }
            catch
            {
                await nginx.DisposeAsync();
                throw;
            }
        }
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

    private async Task<bool> TryStartAsync(Uri backend, string directives)
    {
        var configuration = Path.Combine(_folder.FullName, "nginx.conf");
        await File.WriteAllTextAsync(configuration, $$"""
            daemon off;
            master_process off;
            pid nginx.pid;
            error_log stderr notice;
            events { worker_connections 4096; }
            http {
              access_log off;
              client_body_temp_path body;
              proxy_temp_path proxy;
              fastcgi_temp_path fastcgi;
              uwsgi_temp_path uwsgi;
              scgi_temp_path scgi;
              upstream users { server {{backend.Authority}}; keepalive 64; }
              server {
                listen {{Address.Authority}} http2;
                {{directives}}
                location / { grpc_pass grpc://users; }
              }
            }
            """);
        var start = new ProcessStartInfo("nginx")
        {
            ArgumentList = { "-p", _folder.FullName, "-c", configuration, "-e", "stderr" },
            RedirectStandardError = true,
        };
        try
        {
            _process = Process.Start(start)!;
        }
        catch (Win32Exception exception)
        {
            throw new InvalidOperationException("There is no nginx on the PATH. The package nginx-light has it, which ./test.sh installs on Debian.", exception);
        }

        _process.EnableRaisingEvents = true;
        _process.Exited += (_, _) => _listens.TrySetResult(false);
        _process.ErrorDataReceived += (_, line) => Read(line.Data);
        _process.BeginErrorReadLine();
        return await _listens.Task.Soon();
    }

    private void Read(string? line)
    {
        if (line is null)
        {
            return;
        }

        _log.Enqueue(line);
        if (line.Contains("event method", StringComparison.Ordinal))
        {
            _listens.TrySetResult(true); // it chooses that when its sockets are open
        }
    }

    private static int FreePort()
    {
        using var socket = new Socket(SocketType.Stream, ProtocolType.Tcp);
        socket.Bind(new IPEndPoint(IPAddress.Loopback, 0));
        return ((IPEndPoint)socket.LocalEndPoint!).Port;
    }
}

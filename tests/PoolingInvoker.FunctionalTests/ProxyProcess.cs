using System.Collections.Concurrent;
using System.ComponentModel;
using System.Diagnostics;
using System.Net;
using System.Net.Sockets;
using PoolingInvoker.Testing;

namespace PoolingInvoker.FunctionalTests;

/// <summary>A proxy before the servers: one process with a free port and a folder of its own, both gone when it is disposed.</summary>
public abstract class ProxyProcess : IAsyncDisposable
{
    private readonly ConcurrentQueue<string> _log = new();
    private readonly string _program;
    private Process? _process;

    protected ProxyProcess(string program, int port)
    {
        _program = program;
        Folder = Directory.CreateTempSubdirectory($"{program}-");
        Address = new Uri($"http://127.0.0.1:{port}");
    }

    public Uri Address { get; }

    protected DirectoryInfo Folder { get; }

    public async ValueTask DisposeAsync()
    {
        GC.SuppressFinalize(this);
        if (_process is { } process)
        {
            _process = null;
            process.Kill();
            await process.WaitForExitAsync().Soon();
            process.Dispose();
        }

        if (Folder.Exists)
        {
            Folder.Delete(recursive: true);
            Folder.Refresh();
        }
    }

    /// <param name="newProxy">Makes one for a port.</param>
    /// <param name="tryStart">Starts it, and says whether it listens; if not it has ended.</param>
    protected static async Task<T> StartAsync<T>(Func<int, T> newProxy, Func<T, Task<bool>> tryStart)
        where T : ProxyProcess
    {
        // It takes no port 0. The port that was free a moment ago may be another's by now.
        for (var attempt = 1; ; attempt++)
        {
            var proxy = newProxy(FreePort());
            try
            {
                if (await tryStart(proxy))
                {
                    return proxy;
                }

                if (attempt == 5 || !proxy._log.Any(static line => line.Contains("Address already in use", StringComparison.Ordinal)))
                {
                    throw new InvalidOperationException($"{proxy._program} does not start:\n{string.Join('\n', proxy._log.TakeLast(20))}");
                }

                await proxy.DisposeAsync();
            }
            catch
            {
                await proxy.DisposeAsync();
                throw;
            }
        }
    }

    /// <summary>Starts the process. The task ends when its log does, that is with it.</summary>
    /// <param name="package">The package of Debian that has the program.</param>
    /// <param name="arguments">Its arguments.</param>
    /// <param name="onLine">Is told each line of the log.</param>
    protected Task Start(string package, IEnumerable<string> arguments, Action<string>? onLine = null)
    {
        try
        {
            _process = Process.Start(new ProcessStartInfo(_program, arguments) { RedirectStandardError = true, RedirectStandardOutput = true })!;
        }
        catch (Win32Exception exception)
        {
            throw new InvalidOperationException($"There is no {_program} on the PATH. The package {package} has it, which ./test.sh installs on Debian.", exception);
        }

        return Task.WhenAll(ReadAsync(_process.StandardError), ReadAsync(_process.StandardOutput));

        async Task ReadAsync(StreamReader lines)
        {
            while (await lines.ReadLineAsync() is { } line)
            {
                _log.Enqueue(line);
                onLine?.Invoke(line);
            }
        }
    }

    private static int FreePort()
    {
        using var socket = new Socket(SocketType.Stream, ProtocolType.Tcp);
        socket.Bind(new IPEndPoint(IPAddress.Loopback, 0));
        return ((IPEndPoint)socket.LocalEndPoint!).Port;
    }
}

using System.Collections.Concurrent;
using System.ComponentModel;
using System.Diagnostics;
using System.Text.RegularExpressions;
using PoolingInvoker.Testing;

namespace PoolingInvoker.DropInTests.Etcd;

/// <summary>An etcd of its own: a process with free ports and an empty data folder, both gone when it is disposed.</summary>
public sealed partial class EtcdServer : IAsyncLifetime
{
    private const string AnyPort = "http://127.0.0.1:0";

    private readonly ConcurrentQueue<string> _log = new();
    private readonly TaskCompletionSource<Uri> _ready = new(TaskCreationOptions.RunContinuationsAsynchronously);
    private DirectoryInfo? _data;
    private Process? _process;

    public Uri Address { get; private set; } = null!;

    public async ValueTask InitializeAsync()
    {
        try
        {
            _data = Directory.CreateTempSubdirectory("etcd-");
            _process = Start(_data.FullName);
            _process.EnableRaisingEvents = true;
            _process.Exited += (_, _) => _ready.TrySetException(new InvalidOperationException("etcd has ended."));
            _process.ErrorDataReceived += (_, line) => Read(line.Data);
            _process.BeginErrorReadLine();
            Address = await _ready.Task.Soon();
        }
        catch (Exception exception)
        {
            await DisposeAsync();
            throw new InvalidOperationException($"etcd does not start: {exception.Message}\n{string.Join('\n', _log.TakeLast(20))}", exception);
        }
    }

    /// <summary>Ends the process as a crash does (SIGKILL), and waits until it is gone.</summary>
    public async Task KillAsync()
    {
        if (_process is null)
        {
            return;
        }

        _process.Kill();
        await _process.WaitForExitAsync().Soon();
    }

    public async ValueTask DisposeAsync()
    {
        await KillAsync();
        _process?.Dispose();
        _process = null;
        _data?.Delete(recursive: true);
        _data = null;
    }

    private static Process Start(string data)
    {
        var start = new ProcessStartInfo("etcd")
        {
            ArgumentList =
            {
                "--name", "one",
                "--data-dir", data,
                "--listen-client-urls", AnyPort,
                "--advertise-client-urls", AnyPort,
                "--listen-peer-urls", AnyPort,
                "--initial-advertise-peer-urls", AnyPort,
                "--initial-cluster", $"one={AnyPort}",
                "--enable-grpc-gateway=false",
                "--logger", "zap",
                "--log-outputs", "stderr",
            },
            RedirectStandardError = true,
        };

        // The environment sets options too.
        foreach (var name in start.Environment.Keys.Where(static name => name.StartsWith("ETCD_", StringComparison.Ordinal)).ToList())
        {
            start.Environment.Remove(name);
        }

        try
        {
            return Process.Start(start)!;
        }
        catch (Win32Exception exception)
        {
            throw new InvalidOperationException("there is no etcd on the PATH. The package etcd-server has it, which ./test.sh installs on Debian.", exception);
        }
    }

    private void Read(string? line)
    {
        if (line is null)
        {
            return;
        }

        _log.Enqueue(line);
        if (Serving().Match(line) is { Success: true } match)
        {
            _ready.TrySetResult(new Uri($"http://{match.Groups[1].Value}"));
        }
    }

    // It takes a free port, and says which one when it serves.
    [GeneratedRegex("""serving client traffic.*"(127\.0\.0\.1:[0-9]+)".*""")]
    private static partial Regex Serving();
}

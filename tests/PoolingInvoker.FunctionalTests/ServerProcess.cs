using System.Diagnostics;
using PoolingInvoker.Demo.Servers;
using PoolingInvoker.Testing;

namespace PoolingInvoker.FunctionalTests;

/// <summary>A gRPC server in a process of its own, which can be killed and started again on its port.</summary>
public sealed class ServerProcess : IAsyncDisposable
{
    private readonly string _name;
    private readonly string _journal;
    private Process _process;

    private ServerProcess(string name, string journal, Process process, Uri address)
    {
        _name = name;
        _journal = journal;
        _process = process;
        Address = address;
    }

    public Uri Address { get; }

    public static async Task<ServerProcess> StartAsync(string name)
    {
        var journal = Path.GetTempFileName();
        var (process, address) = await StartAsync(name, port: 0, journal);
        return new ServerProcess(name, journal, process, address);
    }

    /// <summary>Ends the process as a crash does (SIGKILL), and waits until it is gone.</summary>
    public async Task KillAsync()
    {
        _process.Kill();
        await _process.WaitForExitAsync().Soon();
        _process.Dispose();
    }

    public async Task RestartAsync() => (_process, _) = await StartAsync(_name, Address.Port, _journal);

    /// <summary>Has the process stand still (SIGSTOP): its sockets stay open, and nothing answers.</summary>
    public Task StopAsync() => SignalAsync("STOP");

    public Task ContinueAsync() => SignalAsync("CONT");

    /// <summary>The ids of the requests with side effects that the server has run, over all its lives.</summary>
    public IReadOnlyList<string> ReadJournal()
    {
        using var reader = new StreamReader(new FileStream(_journal, FileMode.Open, FileAccess.Read, FileShare.ReadWrite));
        return reader.ReadToEnd().Split('\n', StringSplitOptions.RemoveEmptyEntries);
    }

    public async ValueTask DisposeAsync()
    {
        await KillAsync();
        File.Delete(_journal);
    }

    private async Task SignalAsync(string signal)
    {
        using var kill = Process.Start("/bin/sh", ["-c", $"kill -{signal} {_process.Id}"]);
        await kill.WaitForExitAsync().Soon();
        Assert.Equal(0, kill.ExitCode);
    }

    private static async Task<(Process Process, Uri Address)> StartAsync(string name, int port, string journal)
    {
        var start = new ProcessStartInfo(Environment.ProcessPath is { } path && Path.GetFileNameWithoutExtension(path) == "dotnet" ? path : "dotnet")
        {
            ArgumentList = { typeof(UserServer).Assembly.Location, "serve", name, $"{port}", journal },
            RedirectStandardOutput = true,
        };
        var process = Process.Start(start)!;
        try
        {
            var line = await process.StandardOutput.ReadLineAsync().Soon();
            return (process, new Uri(line!));
        }
        catch
        {
            process.Kill();
            throw;
        }
    }
}

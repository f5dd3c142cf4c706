using System.Diagnostics;
using System.Net;
using PoolingInvoker.Demo.Servers;
using PoolingInvoker.Testing;

namespace PoolingInvoker.FunctionalTests;

/// <summary>A gRPC server in a process of its own, which can be killed and started again on its port.</summary>
public sealed class ServerProcess : IAsyncDisposable
{
    private readonly string _name;
    private readonly string _journal;
    private readonly IReadOnlyList<string> _within;
    private Process _process;
    private bool _isKilled;

    private ServerProcess(string name, string journal, IReadOnlyList<string> within, Process process, Uri address)
    {
        _name = name;
        _journal = journal;
        _within = within;
        _process = process;
        Address = address;
    }

    public Uri Address { get; }

    public static Task<ServerProcess> StartAsync(string name) => StartAsync(name, IPAddress.Loopback, []);

    /// <param name="name">What the server calls itself in its replies.</param>
    /// <param name="address">Where it listens.</param>
    /// <param name="within">A command that becomes the program that follows it, in surroundings of another kind.</param>
    public static async Task<ServerProcess> StartAsync(string name, IPAddress address, IReadOnlyList<string> within)
    {
        var journal = Path.GetTempFileName();
        try
        {
            var (process, listening) = await StartAsync(name, new IPEndPoint(address, 0), journal, within);
            return new ServerProcess(name, journal, within, process, listening);
        }
        catch
        {
            File.Delete(journal);
            throw;
        }
    }

    /// <summary>Ends the process as a crash does (SIGKILL), and waits until it is gone.</summary>
    public async Task KillAsync()
    {
        _process.Kill();
        await _process.WaitForExitAsync().Soon();
        _process.Dispose();
        _isKilled = true;
    }

    public async Task RestartAsync()
    {
        (_process, _) = await StartAsync(_name, new IPEndPoint(IPAddress.Parse(Address.Host), Address.Port), _journal, _within);
        _isKilled = false;
    }

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
        await (_isKilled ? Task.CompletedTask : KillAsync());
        File.Delete(_journal);
    }

    private async Task SignalAsync(string signal)
    {
        using var kill = Process.Start("/bin/sh", ["-c", $"kill -{signal} {_process.Id}"]);
        await kill.WaitForExitAsync().Soon();
        Assert.Equal(0, kill.ExitCode);
    }

    private static async Task<(Process Process, Uri Address)> StartAsync(string name, IPEndPoint endPoint, string journal, IReadOnlyList<string> within)
    {
        var dotnet = Environment.ProcessPath is { } path && Path.GetFileNameWithoutExtension(path) == "dotnet" ? path : "dotnet";
        string[] command = [.. within, dotnet, typeof(UserServer).Assembly.Location, "serve", name, $"{endPoint}", journal];
        var process = Process.Start(new ProcessStartInfo(command[0], command[1..]) { RedirectStandardOutput = true })!;
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

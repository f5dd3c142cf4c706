using System.ComponentModel;
using System.Diagnostics;
using PoolingInvoker.Testing;

namespace PoolingInvoker.FaultTests;

/// <summary>faults.mjs in a process of its own.</summary>
internal sealed class FaultServer : IAsyncDisposable
{
    private readonly Journal _journal;
    private readonly Process _process;
    private readonly Lock _input = new();
    private Task _reading = Task.CompletedTask;
    private bool _isGone;

    private FaultServer(string name, Journal journal, Process process)
    {
        Name = name;
        _journal = journal;
        _process = process;
    }

    public string Name { get; }

    public Uri Address { get; private set; } = null!;

    /// <param name="name">What it calls itself in its replies, and what calls call it that mean a server.</param>
    /// <param name="journal">Where it is written down what it does.</param>
    /// <param name="options">More options of the script.</param>
    public static async Task<FaultServer> StartAsync(string name, Journal journal, params IEnumerable<string> options)
    {
        var start = new ProcessStartInfo("node", [Path.Combine(AppContext.BaseDirectory, "faults.mjs"), "--name", name, .. options])
        {
            RedirectStandardInput = true,
            RedirectStandardOutput = true,
        };
        Process process;
        try
        {
            process = Process.Start(start)!;
        }
        catch (Win32Exception exception)
        {
            throw new InvalidOperationException("There is no node on the PATH. The package nodejs has it, which ./test.sh installs on Debian.", exception);
        }

        var server = new FaultServer(name, journal, process);
        try
        {
            var line = await process.StandardOutput.ReadLineAsync().Soon()
                ?? throw new InvalidOperationException($"node has ended: {process.StartInfo.ArgumentList[0]}");
            server.Address = new Uri($"http://127.0.0.1:{line.Split(' ')[1]}");
            server._reading = server.ReadAsync();
            return server;
        }
        catch
        {
            await server.DisposeAsync();
            throw;
        }
    }

    /// <summary>Lets a fault strike that waits for it.</summary>
    public void Strike(string callId) => Send($"strike {callId}");

    /// <summary>When this is over, the journal has all that the server has done until now.</summary>
    public async Task SyncAsync()
    {
        if (_isGone)
        {
            return;
        }

        var token = Guid.NewGuid().ToString("N");
        Send($"sync {token}");
        await Task.WhenAny(_journal.Reaches("sync", token, 1), _reading).Soon();
        if (_journal.Count("sync", token) == 0)
        {
            throw Ended(null);
        }
    }

    /// <summary>Stops the process, as if it had hung (SIGSTOP). Its connections stay.</summary>
    public async Task StopAsync()
    {
        _isGone = true;
        using var kill = Process.Start("sh", ["-c", $"kill -STOP {_process.Id}"]); // a shell always has it
        await kill.WaitForExitAsync().Soon();
        Assert.Equal(0, kill.ExitCode);
        while (!await IsStoppedAsync())
        {
            await Task.Delay(1);
        }
    }

    /// <summary>Ends the process as a crash does (SIGKILL), and waits until it is gone.</summary>
    public async Task KillAsync()
    {
        _isGone = true;
        _process.Kill();
        await _process.WaitForExitAsync().Soon();
        await _reading.Soon();
    }

    public async ValueTask DisposeAsync()
    {
        await KillAsync();
        _process.Dispose();
    }

    private void Send(string command)
    {
        lock (_input)
        {
            try
            {
                _process.StandardInput.WriteLine(command);
                _process.StandardInput.Flush();
            }
            catch (IOException exception)
            {
                throw Ended(exception);
            }
        }
    }

    private InvalidOperationException Ended(Exception? exception) => new($"The fault server '{Name}' has ended by itself. Its standard error says why.", exception);

    private async Task ReadAsync()
    {
        while (await _process.StandardOutput.ReadLineAsync() is { } line)
        {
            var space = line.IndexOf(' ', StringComparison.Ordinal);
            _journal.Add(line[..space], line[(space + 1)..]);
        }
    }

    // The state comes behind the name of the program, which is in brackets.
    private async Task<bool> IsStoppedAsync()
    {
        var stat = await File.ReadAllTextAsync($"/proc/{_process.Id}/stat");
        return stat[(stat.LastIndexOf(')') + 2)..].StartsWith('T');
    }
}

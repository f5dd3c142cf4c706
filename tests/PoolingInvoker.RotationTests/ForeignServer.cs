using System.ComponentModel;
using System.Diagnostics;
using System.Globalization;
using PoolingInvoker.Testing;

namespace PoolingInvoker.RotationTests;

/// <summary>One of the servers in Servers/, which are written in other languages, in a process of its own.</summary>
internal sealed class ForeignServer : IAsyncDisposable
{
    private readonly Process _process;
    private readonly string _journal;

    private ForeignServer(Process process, string journal)
    {
        _process = process;
        _journal = journal;
    }

    public Uri Address { get; private set; } = null!;

    public static Task<ForeignServer> StartGrpcJsAsync() =>
        StartAsync("node", journal => [Source("grpc-js/server.js"), "grpc-js", journal, Path.Combine(Root(), "protos", "user.proto")]);

    // Not the first python3 on the PATH: the package of Debian is Debian's Python's.
    public static Task<ForeignServer> StartPythonAsync() =>
        StartAsync("/usr/bin/python3", journal => [Source("python/server.py"), "python", journal, Built("")]);

    public static Task<ForeignServer> StartCppAsync() => StartAsync(Built("user-server"), static journal => ["c++", journal]);

    /// <summary>The ids of the renames that it has run.</summary>
    public IReadOnlyList<string> ReadJournal() => File.ReadAllLines(_journal);

    public async ValueTask DisposeAsync()
    {
        _process.Kill();
        await _process.WaitForExitAsync().Soon();
        _process.Dispose();
        File.Delete(_journal);
    }

    private static async Task<ForeignServer> StartAsync(string program, Func<string, string[]> arguments)
    {
        var journal = Path.GetTempFileName();
        var start = new ProcessStartInfo(program, arguments(journal))
        {
            RedirectStandardInput = true, // it ends with that, should nobody be left to kill it
            RedirectStandardOutput = true,
        };
        Process process;
        try
        {
            process = Process.Start(start)!;
        }
        catch (Win32Exception exception)
        {
            File.Delete(journal);
            throw new InvalidOperationException($"There is no {program}. ./test.sh installs what it needs on Debian, and builds it.", exception);
        }

        var server = new ForeignServer(process, journal);
        try
        {
            var port = await process.StandardOutput.ReadLineAsync().Soon()
                ?? throw new InvalidOperationException($"{program} has ended. Its standard error says why; what it needs is installed and built by ./test.sh.");
            server.Address = new Uri($"http://127.0.0.1:{int.Parse(port, CultureInfo.InvariantCulture)}");
            return server;
        }
        catch
        {
            await server.DisposeAsync();
            throw;
        }
    }

    private static string Source(string file) => Path.Combine(Root(), "tests", "PoolingInvoker.RotationTests", "Servers", file);

    private static string Built(string file) => Path.Combine(Root(), "artifacts", "rotation-servers", file);

    private static string Root()
    {
        var folder = new DirectoryInfo(AppContext.BaseDirectory);
        while (!File.Exists(Path.Combine(folder.FullName, "PoolingInvoker.sln")))
        {
            folder = folder.Parent ?? throw new InvalidOperationException($"There is no PoolingInvoker.sln above {AppContext.BaseDirectory}.");
        }

        return folder.FullName;
    }
}

using PoolingInvoker.Demo.Servers;
using PoolingInvoker.FunctionalTests;

namespace PoolingInvoker.RotationTests;

/// <summary>A server, or one behind a proxy, that closes its connections in good order while they are in use.</summary>
internal sealed class RotatingServer : IAsyncDisposable
{
    public const string NginxRequests = "nginx, 20 requests a connection";
    public const string NginxAge = "nginx, connections of 1 s";
    public const string Kestrel = "Kestrel, connections of 0.3 s";
    public const string GrpcJs = "grpc-js, connections of 0.3 s";
    public const string Python = "Python, connections of 0.3 s";
    public const string Cpp = "C++, connections of 0.3 s";

    private readonly Func<IEnumerable<string>> _readJournal;
    private readonly IAsyncDisposable[] _parts;

    private RotatingServer(Uri address, Func<IEnumerable<string>> readJournal, params IAsyncDisposable[] parts)
    {
        Address = address;
        _readJournal = readJournal;
        _parts = parts;
    }

    public Uri Address { get; }

    public static Task<RotatingServer> StartAsync(string kind) => kind switch
    {
        NginxRequests => StartNginxAsync("keepalive_requests 20;"),
        NginxAge => StartNginxAsync("keepalive_time 1s; keepalive_requests 1000000;"), // 1,000 by default
        Kestrel => StartKestrelAsync(),
        GrpcJs => StartForeignAsync(ForeignServer.StartGrpcJsAsync),
        Python => StartForeignAsync(ForeignServer.StartPythonAsync),
        Cpp => StartForeignAsync(ForeignServer.StartCppAsync),
        _ => throw new ArgumentOutOfRangeException(nameof(kind), kind, message: null),
    };

    /// <summary>How often each rename was run, by its request id.</summary>
    public IReadOnlyDictionary<string, int> CountRenames() => _readJournal().CountBy(static id => id).ToDictionary();

    public async ValueTask DisposeAsync()
    {
        foreach (var part in _parts)
        {
            await part.DisposeAsync();
        }
    }

    private static async Task<RotatingServer> StartNginxAsync(string directives)
    {
        var server = await UserServer.StartAsync("kestrel");
        try
        {
            var nginx = await NginxProcess.StartAsync(server.Address, directives);
            return new RotatingServer(nginx.Address, () => server.Journal.Executed, nginx, server);
        }
        catch
        {
            await server.DisposeAsync();
            throw;
        }
    }

    private static async Task<RotatingServer> StartKestrelAsync()
    {
        var server = await KestrelAge.StartServerAsync();
        return new RotatingServer(server.Address, () => server.Journal.Executed, server);
    }

    private static async Task<RotatingServer> StartForeignAsync(Func<Task<ForeignServer>> start)
    {
        var server = await start();
        return new RotatingServer(server.Address, server.ReadJournal, server);
    }
}

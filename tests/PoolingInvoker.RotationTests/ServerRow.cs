using PoolingInvoker.FunctionalTests;

namespace PoolingInvoker.RotationTests;

/// <summary>Servers in processes of their own behind an HAProxy, to which more can be added.</summary>
internal sealed class ServerRow : IAsyncDisposable
{
    private readonly List<(string Name, ServerProcess Server)> _servers = [];
    private HaproxyProcess? _haproxy;

    public Uri Address => _haproxy!.Address;

    /// <summary>What the servers call themselves in their replies.</summary>
    public IReadOnlyList<string> Names => [.. _servers.Select(static server => server.Name)];

    public static async Task<ServerRow> StartAsync(int count, int spare = 0)
    {
        var row = new ServerRow();
        try
        {
            while (row._servers.Count < count)
            {
                await row.StartServerAsync();
            }

            row._haproxy = await HaproxyProcess.StartAsync([.. row._servers.Select(static server => server.Server.Address)], spare);
            return row;
        }
        catch
        {
            await row.DisposeAsync();
            throw;
        }
    }

    /// <summary>Starts one more server, which gets no connections yet.</summary>
    public async Task<Uri> StartServerAsync()
    {
        var name = $"server-{_servers.Count + 1}";
        var server = await ServerProcess.StartAsync(name);
        _servers.Add((name, server));
        return server.Address;
    }

    /// <summary>From now on this server gets its share of new connections.</summary>
    public void Add(Uri server) => _haproxy!.Add(server);

    /// <summary>How often each rename was run on any of the servers, by its request id.</summary>
    public IReadOnlyDictionary<string, int> CountRenames() =>
        _servers.SelectMany(static server => server.Server.ReadJournal()).CountBy(static id => id).ToDictionary();

    public async ValueTask DisposeAsync()
    {
        if (_haproxy is not null)
        {
            await _haproxy.DisposeAsync();
        }

        foreach (var (_, server) in _servers)
        {
            await server.DisposeAsync();
        }
    }
}

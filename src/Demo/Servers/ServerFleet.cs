namespace PoolingInvoker.Demo.Servers;

/// <summary>The servers behind one balancer: three embedded ones, or those that run already.</summary>
public sealed class ServerFleet : IAsyncDisposable
{
    private const int Embedded = 3;

    private readonly Dictionary<string, UserServer> _embedded;
    private readonly L4Balancer _balancer;

    private ServerFleet(IEnumerable<UserServer> embedded, IReadOnlyList<Uri> running)
    {
        _embedded = embedded.ToDictionary(static server => server.Journal.ServerName);
        _balancer = new L4Balancer(running.Count > 0 ? running : _embedded.Values.Select(static server => server.Address));
        Names = running.Count > 0 ? [.. running.Select(static server => server.Authority)] : [.. _embedded.Keys];
    }

    /// <summary>The address of the balancer.</summary>
    public Uri Address => _balancer.Address;

    /// <summary>What the embedded servers call themselves, or where the others are.</summary>
    public IReadOnlyList<string> Names { get; }

    /// <summary>Whether the servers are embedded ones. What runs elsewhere is not ours to kill.</summary>
    public bool CanKill => _embedded.Count > 0;

    /// <param name="running">The servers that run already; none for embedded ones.</param>
    public static async Task<ServerFleet> StartAsync(IReadOnlyList<Uri> running)
    {
        var embedded = new List<UserServer>();
        try
        {
            while (running.Count == 0 && embedded.Count < Embedded)
            {
                embedded.Add(await UserServer.StartAsync($"server-{embedded.Count + 1}"));
            }

            return new ServerFleet(embedded, running);
        }
        catch
        {
            foreach (var server in embedded)
            {
                await server.DisposeAsync();
            }

            throw;
        }
    }

    /// <summary>Kills an embedded server, and returns how many connections it had.</summary>
    public async Task<int> KillAsync(string name)
    {
        var connections = _embedded[name].Journal.Connections;
        await _embedded[name].DisposeAsync();
        return connections;
    }

    /// <summary>Starts a server that was killed, on its old port.</summary>
    public async Task RestartAsync(string name) =>
        _embedded[name] = await UserServer.StartAsync(name, _embedded[name].Address.Port);

    public async ValueTask DisposeAsync()
    {
        await _balancer.DisposeAsync();
        foreach (var server in _embedded.Values)
        {
            await server.DisposeAsync(); // which does no harm to one that was killed
        }
    }
}

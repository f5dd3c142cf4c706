namespace PoolingInvoker.Demo.Servers;

/// <summary>What a server of a <see cref="ServerFleet"/> does.</summary>
public enum FleetServerState
{
    Up,
    Killed,
    Hung,
}

/// <summary>The servers behind one balancer: three embedded ones, or those that run already.</summary>
public sealed class ServerFleet : IAsyncDisposable
{
    private const int Embedded = 3;

    private readonly object _lock = new();
    private readonly SemaphoreSlim _oneAtATime = new(1);
    private readonly Dictionary<string, UserServer> _embedded;
    private readonly Dictionary<string, Uri> _addresses;
    private readonly HashSet<string> _killed = [];
    private readonly List<string> _names;
    private readonly L4Balancer _balancer;

    private ServerFleet(IEnumerable<UserServer> embedded, IReadOnlyList<Uri> running)
    {
        _embedded = embedded.ToDictionary(static server => server.Journal.ServerName);
        CanKill = _embedded.Count > 0;
        _names = CanKill ? [.. _embedded.Keys] : [.. running.Select(static server => server.Authority)];
        _addresses = CanKill
            ? _embedded.ToDictionary(static server => server.Key, static server => server.Value.Address)
            : running.DistinctBy(static server => server.Authority).ToDictionary(static server => server.Authority);
        _balancer = new L4Balancer(_names.Select(name => _addresses[name]));
    }

    /// <summary>The address of the balancer.</summary>
    public Uri Address => _balancer.Address;

    /// <summary>What the embedded servers call themselves, or where the others are.</summary>
    public IReadOnlyList<string> Names
    {
        get
        {
            lock (_lock)
            {
                return [.. _names];
            }
        }
    }

    /// <summary>Whether the servers are embedded ones. What runs elsewhere is not ours to kill.</summary>
    public bool CanKill { get; }

    /// <summary>Whether nothing comes through to any server.</summary>
    public bool IsCut => Names.All(name => _balancer.IsBlocked(AddressOf(name)));

    /// <param name="running">The servers that run already; none for embedded ones.</param>
    public static async Task<ServerFleet> StartAsync(IReadOnlyList<Uri> running)
    {
        var embedded = new List<UserServer>();
        try
        {
            while (running.Count == 0 && embedded.Count < Embedded)
            {
                embedded.Add(await UserServer.StartAsync(NameOf(embedded.Count + 1)));
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

    public FleetServerState StateOf(string name)
    {
        lock (_lock)
        {
            return _killed.Contains(name) ? FleetServerState.Killed : _balancer.IsBlocked(_addresses[name]) ? FleetServerState.Hung : FleetServerState.Up;
        }
    }

    /// <summary>Kills an embedded server, and returns how many connections it had.</summary>
    public Task<int> KillAsync(string name) => OneAtATimeAsync(async () =>
    {
        var connections = _embedded[name].Journal.Connections;
        await _embedded[name].DisposeAsync();
        Change(() => _killed.Add(name));
        return connections;
    });

    /// <summary>Starts a server that was killed, on its old port.</summary>
    public Task RestartAsync(string name) => OneAtATimeAsync(async () =>
    {
        if (StateOf(name) == FleetServerState.Killed)
        {
            _embedded[name] = await UserServer.StartAsync(name, _addresses[name].Port);
            Change(() => _killed.Remove(name));
        }

        return 0;
    });

    /// <summary>Starts one more embedded server.</summary>
    public Task<string> AddAsync() => OneAtATimeAsync(async () =>
    {
        var server = await UserServer.StartAsync(NameOf(_embedded.Count + 1));
        var name = server.Journal.ServerName;
        _embedded.Add(name, server);
        Change(() =>
        {
            _addresses.Add(name, server.Address);
            _names.Add(name);
        });
        _balancer.Add(server.Address);
        return name;
    });

    /// <summary>Has a server hang: its connections stand, and nothing comes from them.</summary>
    public void Hang(string name) => _balancer.Block(AddressOf(name));

    public void GoOn(string name) => _balancer.Unblock(AddressOf(name));

    /// <summary>Lets nothing through to any server.</summary>
    public void Cut() => Names.ToList().ForEach(Hang);

    public void Mend() => Names.ToList().ForEach(GoOn);

    public async ValueTask DisposeAsync()
    {
        await _balancer.DisposeAsync();
        foreach (var server in _embedded.Values)
        {
            await server.DisposeAsync(); // which does no harm to one that was killed
        }

        _oneAtATime.Dispose();
    }

    private static string NameOf(int number) => $"server-{number}";

    private Uri AddressOf(string name)
    {
        lock (_lock)
        {
            return _addresses[name];
        }
    }

    private void Change(Action change)
    {
        lock (_lock)
        {
            change();
        }
    }

    private async Task<T> OneAtATimeAsync<T>(Func<Task<T>> act)
    {
        await _oneAtATime.WaitAsync();
        try
        {
            return await act();
        }
        finally
        {
            _oneAtATime.Release();
        }
    }
}

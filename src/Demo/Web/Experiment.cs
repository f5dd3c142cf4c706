using Grpc.Net.Client;
using PoolingInvoker.Demo.Servers;
using PoolingInvoker.Protos;

namespace PoolingInvoker.Demo.Web;

/// <summary>The same load through a bare channel and through the pool, and what can be done to the servers meanwhile.</summary>
internal sealed class Experiment(ServerFleet servers, User.UserClient pooled, IConfiguration configuration) : BackgroundService
{
    public const int MostCallers = 2_000;
    public const string Section = "Users";

    private static readonly TimeSpan Interval = TimeSpan.FromSeconds(0.5);
    private static readonly string[] Options = ["Pool:MinPoolSize", "Pool:MaxPoolSize", "Pool:TargetConcurrentCallsPerChannel", "Retry:MaxRetryAttempts"];

    private readonly object _lock = new();
    private (int Callers, int StreamPercent) _load;
    private (LoadFigures Bare, LoadFigures Pool) _figures = (Nothing, Nothing);
    private LiveLoad? _bare;
    private LiveLoad? _pool;

    public ExperimentState State
    {
        get
        {
            lock (_lock)
            {
                return new ExperimentState(
                    [.. servers.Names.Select(name => new ServerFigures(name, servers.StateOf(name), _figures.Bare.Answers.GetValueOrDefault(name), _figures.Pool.Answers.GetValueOrDefault(name)))],
                    servers.CanKill,
                    servers.IsCut,
                    _load.Callers,
                    _load.StreamPercent,
                    _figures.Bare,
                    _figures.Pool,
                    Options.ToDictionary(static name => name, name => configuration[$"{Section}:{name}"]));
            }
        }
    }

    private static LoadFigures Nothing => new(0, 0, null, null, new Dictionary<string, int>(), null);

    public void Load(int callers, int streamPercent)
    {
        lock (_lock)
        {
            _load = (Math.Clamp(callers, 0, MostCallers), Math.Clamp(streamPercent, 0, 100));
            _bare?.Set(_load.Callers, _load.StreamPercent);
            _pool?.Set(_load.Callers, _load.StreamPercent);
        }
    }

    /// <summary>Changes an option as its file does, and with the last word.</summary>
    public bool Set(string option, int value)
    {
        if (!Options.Contains(option))
        {
            return false;
        }

        configuration[$"{Section}:{option}"] = value.ToString(System.Globalization.CultureInfo.InvariantCulture);
        ((IConfigurationRoot)configuration).Reload();
        return true;
    }

    protected override async Task ExecuteAsync(CancellationToken stoppingToken)
    {
        using var channel = GrpcChannel.ForAddress(servers.Address);
        await using var bare = new LiveLoad(new User.UserClient(channel));
        await using var pool = new LiveLoad(pooled);
        lock (_lock)
        {
            (_bare, _pool) = (bare, pool);
        }

        using var timer = new PeriodicTimer(Interval);
        while (await timer.WaitForNextTickAsync(stoppingToken))
        {
            lock (_lock)
            {
                _figures = (bare.Take(), pool.Take());
            }
        }
    }
}

internal sealed record ServerFigures(string Name, FleetServerState State, int Bare, int Pool);

internal sealed record ExperimentState(
    IReadOnlyList<ServerFigures> Servers,
    bool CanKill,
    bool IsCut,
    int Callers,
    int StreamPercent,
    LoadFigures Bare,
    LoadFigures Pool,
    IReadOnlyDictionary<string, string?> Options);

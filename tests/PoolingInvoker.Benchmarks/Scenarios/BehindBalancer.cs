using System.Collections.Concurrent;
using PoolingInvoker.FunctionalTests;
using PoolingInvoker.Protos;
using PoolingInvoker.RotationTests;

namespace PoolingInvoker.Benchmarks.Scenarios;

/// <summary>Three servers in processes of their own, and an HAProxy that spreads connections over them.</summary>
internal abstract class BehindBalancer : Scenario
{
    private readonly List<ServerProcess> _servers = [];
    private HaproxyProcess? _haproxy;

    public override IReadOnlyList<Contender> Contenders { get; } = [Contender.DefaultChannel, Contender.OneConnection, Contender.InTurn, Contender.Pool];

    protected IReadOnlyList<ServerProcess> Servers => _servers;

    protected Uri Address => _haproxy!.Address;

    public override async Task StartAsync()
    {
        while (_servers.Count < 3)
        {
            _servers.Add(await ServerProcess.StartAsync($"server-{_servers.Count + 1}"));
        }

        _haproxy = await HaproxyProcess.StartAsync([.. _servers.Select(static server => server.Address)]);
    }

    public override async ValueTask DisposeAsync()
    {
        await base.DisposeAsync();
        await (_haproxy?.DisposeAsync() ?? ValueTask.CompletedTask);
        foreach (var server in _servers)
        {
            await server.DisposeAsync();
        }
    }
}

/// <summary>How evenly the servers are called.</summary>
internal sealed class Balanced : BehindBalancer
{
    public override string Key => "balanced";

    public override string Name => "3 servers behind HAProxy, 64 callers of 5 ms";

    public override IReadOnlyList<Figure> Figures { get; } =
    [
        new Figure("servers called, of 3", MoreIsBetter: true, "3", static (pool, _) => pool >= 3),
        new Figure("most called server, by the mean", MoreIsBetter: false),
        new Figure("calls/s", MoreIsBetter: true),
    ];

    public override int Rounds(bool quick) => quick ? 1 : 3;

    public override async Task<double[]> MeasureAsync(Contender contender, bool quick)
    {
        await using var client = contender.Connect(Address);
        var answers = new ConcurrentDictionary<string, int>();
        var load = await Load.RunAsync(64, TimeSpan.FromSeconds(quick ? 2 : 4), async token =>
        {
            var reply = await client.User.GetNameAsync(new GetNameRequest { DelayMs = 5 }, cancellationToken: token);
            answers.AddOrUpdate(reply.Origin.Server, 1, static (_, count) => count + 1);
        });
        return [answers.Count, answers.Values.Max() * 3.0 / answers.Values.Sum(), load.PerSecond];
    }
}

/// <summary>One of the servers is killed and started again each second.</summary>
internal sealed class OneKilled : BehindBalancer
{
    public override string Key => "killed";

    public override string Name => "3 servers behind HAProxy, one killed each second, 64 callers of 5 ms";

    public override IReadOnlyList<Figure> Figures { get; } =
        [new Figure("idempotent calls lost", MoreIsBetter: false, "0", static (pool, _) => pool == 0), new Figure("calls/s", MoreIsBetter: true)];

    public override int Rounds(bool quick) => quick ? 1 : 3;

    public override async Task<double[]> MeasureAsync(Contender contender, bool quick)
    {
        await using var client = contender.Connect(Address);
        await client.User.GetNameAsync(new GetNameRequest());
        var loading = Load.OfNamesAsync(client, callers: 64, TimeSpan.FromSeconds(quick ? 3 : 6), delayMs: 5);
        for (var kills = 0; !loading.IsCompleted; kills++)
        {
            var server = Servers[kills % Servers.Count];
            await Task.Delay(500);
            await server.KillAsync();
            await Task.Delay(300);
            await server.RestartAsync();
        }

        var load = await loading;
        return [load.Failed, load.PerSecond];
    }
}

/// <summary>Two of the servers stand still (SIGSTOP) from some moment on.</summary>
internal sealed class TwoHung : BehindBalancer
{
    public override string Key => "hung";

    public override string Name => "3 servers behind HAProxy, two hang for 6 s, 64 callers of 5 ms";

    public override IReadOnlyList<Figure> Figures { get; } =
    [
        new Figure("callers stuck", MoreIsBetter: false, "0", static (pool, _) => pool == 0),
        new Figure("idempotent calls lost", MoreIsBetter: false, "0", static (pool, _) => pool == 0),
        new Figure("calls/s meanwhile", MoreIsBetter: true),
    ];

    public override int Rounds(bool quick) => quick ? 1 : 3;

    public override async Task<double[]> MeasureAsync(Contender contender, bool quick)
    {
        await using var client = contender.Connect(Address);
        await Load.OfNamesAsync(client, callers: 64, TimeSpan.FromSeconds(2), delayMs: 5);
        await Task.WhenAll(Servers[0].StopAsync(), Servers[1].StopAsync());
        try
        {
            var load = await Load.OfNamesAsync(client, callers: 64, TimeSpan.FromSeconds(6), delayMs: 5);
            return [load.Stuck, load.Failed, load.PerSecond];
        }
        finally
        {
            await Task.WhenAll(Servers[0].ContinueAsync(), Servers[1].ContinueAsync());
        }
    }
}

/// <summary>A proxy that takes four streams on a connection.</summary>
internal sealed class FourStreams : OneServerScenario
{
    private NginxProcess? _nginx;

    public override string Key => "four-streams";

    public override string Name => "nginx that takes 4 streams a connection, 32 callers of 20 ms";

    public override IReadOnlyList<Contender> Contenders { get; } = [Contender.DefaultChannel, Contender.OneConnection, Contender.InTurn, Contender.Pool];

    public override IReadOnlyList<Figure> Figures { get; } =
        [Figure.AtLeast("calls/s", 0.95), new Figure("calls lost", MoreIsBetter: false, "0", static (pool, _) => pool == 0)];

    public override int Rounds(bool quick) => quick ? 1 : 3;

    public override async Task StartAsync()
    {
        await base.StartAsync();
        _nginx = await NginxProcess.StartAsync(Address, "http2_max_concurrent_streams 4;");
    }

    public override async Task<double[]> MeasureAsync(Contender contender, bool quick)
    {
        await using var client = contender.Connect(_nginx!.Address);
        var load = await Load.OfNamesAsync(client, callers: 32, TimeSpan.FromSeconds(quick ? 2 : 4), delayMs: 20);
        return [load.PerSecond, load.Failed];
    }

    public override async ValueTask DisposeAsync()
    {
        await (_nginx?.DisposeAsync() ?? ValueTask.CompletedTask);
        await base.DisposeAsync();
    }
}

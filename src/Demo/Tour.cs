using Grpc.Net.Client;
using PoolingInvoker.Demo.Servers;
using PoolingInvoker.Protos;
using Spectre.Console;

namespace PoolingInvoker.Demo;

/// <summary>The same load through a bare channel and through the pool, side by side, while a server is killed and comes back.</summary>
internal static class Tour
{
    private static readonly TimeSpan BeforeTheKill = TimeSpan.FromSeconds(5);
    private static readonly TimeSpan Down = TimeSpan.FromSeconds(3);
    private static readonly TimeSpan Back = TimeSpan.FromSeconds(4);
    private static readonly TimeSpan Redraw = TimeSpan.FromSeconds(0.1);

    /// <returns>The exit code: 0 if the pool lost no call.</returns>
    public static async Task<int> RunAsync(ServerFleet servers, CancellationToken stop)
    {
        using var channel = GrpcChannel.ForAddress(servers.Address);
        var size = 2 * servers.Names.Count; // a balancer that takes turns then reaches all of them, twice
        var options = new PoolingCallInvokerOptions { Pool = { MinPoolSize = size, MaxPoolSize = 2 * size, DrainTimeout = TimeSpan.FromSeconds(5) } };
        await using var invoker = PoolingCallInvoker.ForAddress(servers.Address, options);
        await using var keyedInvoker = PoolingCallInvoker.ForAddress(servers.Address, options);

        var bare = new CallLoad(new User.UserClient(channel));
        var pooled = new CallLoad(new User.UserClient(invoker));
        var keyed = new CallLoad(caller => new User.UserClient(keyedInvoker.WithAffinity($"caller-{caller}")));
        await keyedInvoker.ConnectAsync(stop);
        Console.WriteLine(
            $"{CallLoad.Callers} callers call through a bare channel, {CallLoad.Callers} through the pool, and {CallLoad.Callers} through a pool with a key each, "
            + $"the same {servers.Names.Count} servers.");
        if (!servers.CanKill)
        {
            Console.WriteLine("The servers were given with --servers and are not ours to kill: the run goes without that.");
        }

        using var over = CancellationTokenSource.CreateLinkedTokenSource(stop);
        var calling = Task.WhenAll(bare.RunAsync(over.Token), pooled.RunAsync(over.Token), keyed.RunAsync(over.Token));
        string story;
        try
        {
            story = await AnsiConsole.Progress().StartAsync(progress => ConductAsync(progress, servers, bare, pooled, stop));
        }
        finally
        {
            await over.CancelAsync();
            await calling;
        }

        return TourReport.Write(servers, bare, (pooled, invoker.Pool.GetStatistics()), (keyed, keyedInvoker.Pool.GetStatistics()), story);
    }

    // Returns what has happened, to be told under the table.
    private static async Task<string> ConductAsync(ProgressContext progress, ServerFleet servers, CallLoad bare, CallLoad pooled, CancellationToken stop)
    {
        await PassAsync(progress, servers.CanKill ? "All servers are up" : "The load runs", BeforeTheKill, stop);
        if (!servers.CanKill)
        {
            return "No server was killed.";
        }

        if (bare.LastServer is not { } victim)
        {
            return $"No server was killed, as the bare channel got no answer. The first error: {bare.FirstError?.Message}";
        }

        var (bareAnswers, pooledAnswers) = (bare.AnswersOf(victim), pooled.AnswersOf(victim));
        var connections = await servers.KillAsync(victim);
        await PassAsync(progress, $"{victim} is down", Down, stop);
        await servers.RestartAsync(victim);
        await PassAsync(progress, $"{victim} is back", Back, stop);
        return $"{victim} was killed with {connections} connections on it, when it had answered {bareAnswers:N0} calls of the bare channel "
            + $"and {pooledAnswers:N0} of the pool, and came back {Down.TotalSeconds:0} s later.";
    }

    private static async Task PassAsync(ProgressContext progress, string what, TimeSpan time, CancellationToken stop)
    {
        var task = progress.AddTask(what, maxValue: time / Redraw);
        using var timer = new PeriodicTimer(Redraw);
        while (!task.IsFinished)
        {
            await timer.WaitForNextTickAsync(stop);
            task.Increment(1);
        }
    }
}

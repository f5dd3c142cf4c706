using System.Globalization;
using PoolingInvoker.Testing;

namespace PoolingInvoker.RotationTests;

/// <summary>
/// Three servers behind an HAProxy that gives each connection to the next one: all are called. ROTATION_SECONDS=30 measures how evenly.
/// </summary>
[Collection(nameof(LoadTests))]
[Trait("Tier", "all")]
public sealed class SpreadTests(ITestOutputHelper output)
{
    private static readonly TimeSpan Lasts =
        TimeSpan.FromSeconds(double.Parse(Environment.GetEnvironmentVariable("ROTATION_SECONDS") ?? "0", CultureInfo.InvariantCulture));

    [Fact]
    public Task DefaultOptions_ReachAllServers() => SpreadAsync(new PoolingCallInvokerOptions());

    [Fact]
    public Task SixChannels_ReachAllServers() => SpreadAsync(new PoolingCallInvokerOptions { Pool = { MinPoolSize = 6 } });

    private async Task SpreadAsync(PoolingCallInvokerOptions options)
    {
        await using var servers = await ServerRow.StartAsync(3);
        await using var invoker = PoolingCallInvoker.ForAddress(servers.Address, options);
        var load = new UserLoad(invoker);
        var since = TimeProvider.System.GetTimestamp();
        using var stop = new CancellationTokenSource();
        var calling = load.RunAsync(_ => !stop.IsCancellationRequested || TimeProvider.System.GetElapsedTime(since) < Lasts);
        try
        {
            await load.AnsweredByAsync(servers.Names, calls: 500);
        }
        finally
        {
            await stop.CancelAsync();
            await calling;
        }

        var share = new Share(servers.Names, before: new Dictionary<string, int>(), load.Answers);
        output.WriteLine(string.Create(CultureInfo.InvariantCulture, $"{load.Calls / TimeProvider.System.GetElapsedTime(since).TotalSeconds:0} calls/s; {share}"));
        output.WriteLine($"{invoker.Pool.GetStatistics()}");
        Assert.Multiple(
            () => Assert.Empty(load.Lost),
            () => Assert.Empty(load.RenamesFailed),
            () => Assert.DoesNotContain(servers.CountRenames(), static rename => rename.Value > 1));
        await Waiting.Until(() => invoker.Pool.GetStatistics().CallsInFlight == 0);
    }
}

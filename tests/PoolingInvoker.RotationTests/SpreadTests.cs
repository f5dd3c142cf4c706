using System.Globalization;
using PoolingInvoker.Testing;

namespace PoolingInvoker.RotationTests;

/// <summary>
/// Three servers behind an HAProxy that gives each connection to the next one. ROTATION_SECONDS=30 makes the runs longer.
/// </summary>
[Collection(nameof(LoadTests))]
public sealed class SpreadTests(ITestOutputHelper output)
{
    private static readonly TimeSpan Lasts =
        TimeSpan.FromSeconds(double.Parse(Environment.GetEnvironmentVariable("ROTATION_SECONDS") ?? "6", CultureInfo.InvariantCulture));

    [Fact]
    public Task DefaultOptions_ReachAllServersEvenly() => SpreadAsync(new PoolingCallInvokerOptions(), atMost: 1.25);

    [Fact]
    public Task SixChannels_ReachAllServersEvenly() => SpreadAsync(new PoolingCallInvokerOptions { Pool = { MinPoolSize = 6 } }, atMost: 1.05);

    private async Task SpreadAsync(PoolingCallInvokerOptions options, double atMost)
    {
        await using var servers = await ServerRow.StartAsync(3);
        await using var invoker = PoolingCallInvoker.ForAddress(servers.Address, options);
        var load = new UserLoad(invoker);
        var since = TimeProvider.System.GetTimestamp();
        await load.RunAsync(_ => TimeProvider.System.GetElapsedTime(since) < Lasts);

        var share = new Share(servers.Names, before: new Dictionary<string, int>(), load.Answers);
        output.WriteLine(string.Create(CultureInfo.InvariantCulture, $"{load.Calls / Lasts.TotalSeconds:0} calls/s; {share}"));
        output.WriteLine($"{invoker.Pool.GetStatistics()}");
        Assert.Multiple(
            () => Assert.Empty(load.Lost),
            () => Assert.Empty(load.RenamesFailed),
            () => Assert.True(share.ReachesAll, $"Not every server was reached: {share}"),
            () => Assert.True(share.MaxByMean <= atMost, $"The servers are not loaded evenly: {share}"),
            () => Assert.DoesNotContain(servers.CountRenames(), static rename => rename.Value > 1));
        await Waiting.Until(() => invoker.Pool.GetStatistics().CallsInFlight == 0);
    }
}

using System.Globalization;
using PoolingInvoker.Testing;

namespace PoolingInvoker.RotationTests;

/// <summary>
/// A fourth server is added behind the balancer while there is load. Connections are replaced when they are old, and find it.
/// ROTATION_SECONDS=8 measures its share for so long.
/// </summary>
[Collection(nameof(LoadTests))]
[Trait("Tier", "all")]
public sealed class AddedServerTests(ITestOutputHelper output)
{
    private static readonly TimeSpan Lifetime = TimeSpan.FromSeconds(2);
    private static readonly string? Measured = Environment.GetEnvironmentVariable("ROTATION_SECONDS");

    [Theory]
    [InlineData(1)] // the default
    [InlineData(8)]
    public async Task ServerIsAdded_IsFound_AndNoCallFails(int minPoolSize)
    {
        await using var servers = await ServerRow.StartAsync(3, spare: 1);
        await using var invoker = PoolingCallInvoker.ForAddress(servers.Address, new PoolingCallInvokerOptions
        {
            Pool = { MinPoolSize = minPoolSize, PooledChannelLifetime = Lifetime },
        });
        var load = new UserLoad(invoker);
        using var stop = new CancellationTokenSource();
        var calling = load.RunAsync(_ => !stop.IsCancellationRequested);
        IReadOnlyDictionary<string, int> added, levelled, end;
        try
        {
            await Waiting.Until(() => load.Calls > 1_000);
            var fourth = await servers.StartServerAsync();
            added = load.Answers;
            servers.Add(fourth);

            // All servers are called from now on, the fourth too, while connections go on being replaced.
            await load.AnsweredByAsync(servers.Names, calls: 500);
            levelled = load.Answers;
            await load.AnsweredByAsync(servers.Names, calls: 500);
            if (Measured is not null)
            {
                await Task.Delay(TimeSpan.FromSeconds(double.Parse(Measured, CultureInfo.InvariantCulture)));
            }

            end = load.Answers;
        }
        finally
        {
            await stop.CancelAsync();
            await calling.Soon();
        }

        var share = new Share(servers.Names, levelled, end);
        output.WriteLine($"from when it was added: {new Share(servers.Names, added, levelled)}");
        output.WriteLine($"from then: {share}");
        output.WriteLine($"{load.Calls} calls; {invoker.Pool.GetStatistics()}");
        Assert.Multiple(
            () => Assert.Empty(load.Lost),
            () => Assert.Empty(load.RenamesFailed),
            () => Assert.Equal(0, added.GetValueOrDefault(servers.Names[^1])),
            () => Assert.DoesNotContain(servers.CountRenames(), static rename => rename.Value > 1));
        await Waiting.Until(() => invoker.Pool.GetStatistics().CallsInFlight == 0);
    }
}

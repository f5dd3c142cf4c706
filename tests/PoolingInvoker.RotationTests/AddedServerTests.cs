using PoolingInvoker.Testing;

namespace PoolingInvoker.RotationTests;

/// <summary>A fourth server is added behind the balancer while there is load. Connections are replaced when they are old, and find it.</summary>
[Collection(nameof(LoadTests))]
public sealed class AddedServerTests(ITestOutputHelper output)
{
    private static readonly TimeSpan Lifetime = TimeSpan.FromSeconds(2);

    [Theory]
    [InlineData(1)] // the default
    [InlineData(8)]
    public async Task ServerIsAdded_ItsShareLevelsOutInALifetime_AndNoCallFails(int minPoolSize)
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

            // What is to be shown is how long it takes: these are no waits for a state. Six connections, which the default options come to, are
            // two, two, one and one to four servers, and change places with each lifetime: even they are over several.
            await Task.Delay(1.5 * Lifetime);
            levelled = load.Answers;
            await Task.Delay(4 * Lifetime);
            end = load.Answers;
        }
        finally
        {
            await stop.CancelAsync();
            await calling.Soon();
        }

        var share = new Share(servers.Names, levelled, end);
        output.WriteLine($"in a lifetime and a half from when it was added: {new Share(servers.Names, added, levelled)}");
        output.WriteLine($"in four lifetimes from then: {share}");
        output.WriteLine($"{load.Calls} calls; {invoker.Pool.GetStatistics()}");
        Assert.Multiple(
            () => Assert.Empty(load.Lost),
            () => Assert.Empty(load.RenamesFailed),
            () => Assert.Equal(0, added.GetValueOrDefault(servers.Names[^1])),
            () => Assert.True(share.ReachesAll, $"Not every server was reached: {share}"),
            () => Assert.True(share.MaxByMean <= 1.25, $"The servers are not loaded evenly: {share}"),
            () => Assert.DoesNotContain(servers.CountRenames(), static rename => rename.Value > 1));
        await Waiting.Until(() => invoker.Pool.GetStatistics().CallsInFlight == 0);
    }
}

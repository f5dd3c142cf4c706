using PoolingInvoker.FunctionalTests;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.RotationTests;

/// <summary>
/// Two zones of two servers each, on hosts of their own, and a pool that prefers the first zone. That zone is lost: its cables are pulled, and nobody
/// is told, or its servers are killed, and their hosts refuse connections. Then it is back.
/// </summary>
[Collection(nameof(LoadTests))]
[Trait("Tier", "all")]
public sealed class ZoneTests(ITestOutputHelper output)
{
    private static readonly string[] Near = ["near-1", "near-2"];
    private static readonly string[] Far = ["far-1", "far-2"];
    private static readonly TimeSpan RecoveryDelay = TimeSpan.FromSeconds(2);

    [Theory]
    [InlineData("cut off", 0)]
    [InlineData("cut off", 1)]
    [InlineData("killed", 0)]
    [InlineData("killed", 1)]
    public async Task AZoneIsLost_AndComesBack(string how, int standby)
    {
        if (NetworkNamespaces.WhyNot() is { } reason)
        {
            Assert.Skip(reason);
        }

        string[] names = [.. Near, .. Far];
        await using var hosts = await NetworkNamespaces.StartAsync(names.Length);
        await using var servers = new Servers();
        for (var i = 0; i < names.Length; i++)
        {
            servers.Add(await ServerProcess.StartAsync(names[i], hosts.Addresses[i], hosts.On(i)));
        }

        await using var invoker = PoolingCallInvoker.ForAddresses(
            servers.Select((server, number) => new ChannelAddress(server.Address.OriginalString) { Priority = number < Near.Length ? 0 : 1 }),
            new PoolingCallInvokerOptions { Pool = { RecoveryDelay = RecoveryDelay, StandbyPoolSize = standby } });
        await invoker.ConnectAsync().Soon();
        await Waiting.Until(() => ChannelsTo(1) == standby);

        using var stop = new CancellationTokenSource();
        var load = new UserLoad(invoker, hasStreams: false);
        var calling = load.RunAsync(_ => !stop.IsCancellationRequested);
        TimeSpan toFar, loadToFar, toNear, allNear;
        try
        {
            await load.AnsweredByAsync(Near, calls: 500);
            Assert.DoesNotContain(load.Answers.Keys, Far.Contains);

            var lost = TimeProvider.System.GetTimestamp();
            await Task.WhenAll(Enumerable.Range(0, Near.Length).Select(host => how == "killed" ? servers[host].KillAsync() : hosts.CutAsync(host)));
            toFar = await ComeUntilFarAsync(new User.UserClient(invoker));
            await load.AnsweredByAsync(Far, calls: 1);
            loadToFar = TimeProvider.System.GetElapsedTime(lost);
            await load.AnsweredByAsync(Far, calls: 1_000);

            var healed = TimeProvider.System.GetTimestamp();
            await Task.WhenAll(Enumerable.Range(0, Near.Length).Select(host => how == "killed" ? servers[host].RestartAsync() : hosts.HealAsync(host)));
            await load.AnsweredByAsync(Near, calls: 1);
            toNear = TimeProvider.System.GetElapsedTime(healed);
            await Waiting.Until(Waiting.Long, () => ChannelsTo(1) == standby && ChannelsTo(0) >= Near.Length);
            await load.AnsweredOnlyByAsync(Near, calls: 500);
            allNear = TimeProvider.System.GetElapsedTime(healed);
        }
        finally
        {
            await stop.CancelAsync();
            await calling.Soon();
        }

        output.WriteLine(FormattableString.Invariant(
            $"{how}, {standby} on standby: a call that comes meanwhile goes to the far zone after {toFar.TotalSeconds:0.00} s, those that were under way after {loadToFar.TotalSeconds:0.00} s; healed: the first to the near zone after {toNear.TotalSeconds:0.0} s, all after {allNear.TotalSeconds:0.0} s"));
        output.WriteLine($"{load.Calls} calls, {load.Lost.Count} lost, {load.RenamesFailed.Count} of {load.Renamed.Count() + load.RenamesFailed.Count} renames failed; {invoker.Pool.GetStatistics()}");
        Assert.True(load.Lost.Count == 0, $"{load.Lost.Count} calls were lost:\n{string.Join('\n', load.Lost.Take(3))}");
        Assert.DoesNotContain(servers.SelectMany(static server => server.ReadJournal()).CountBy(static id => id), static rename => rename.Value > 1);
        Assert.True(toNear >= RecoveryDelay);
        await Waiting.Until(() => invoker.Pool.GetStatistics().CallsInFlight == 0);

        int ChannelsTo(int priority) => invoker.Pool.GetChannels().Count(channel => channel.Priority == priority && channel.State == PooledChannelState.Active);
    }

    // One call after the other comes, whatever becomes of those before it, until one is answered there.
    private static async Task<TimeSpan> ComeUntilFarAsync(User.UserClient client)
    {
        var since = TimeProvider.System.GetTimestamp();
        List<Task<string>> calls = [];
        while (!calls.Exists(static call => call.IsCompletedSuccessfully && Far.Contains(call.Result)))
        {
            calls.Add(CallAsync());
            await Task.Delay(20);
        }

        var took = TimeProvider.System.GetElapsedTime(since);
        await Task.WhenAll(calls).Soon();
        return took;

        async Task<string> CallAsync() => (await client.GetNameAsync(new GetNameRequest(), deadline: DateTime.UtcNow + Waiting.Long)).Origin.Server;
    }

    private sealed class Servers : List<ServerProcess>, IAsyncDisposable
    {
        public async ValueTask DisposeAsync()
        {
            foreach (var server in this)
            {
                await server.DisposeAsync();
            }
        }
    }
}

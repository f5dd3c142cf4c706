using System.Diagnostics;
using System.Globalization;
using System.Text.Json;
using PoolingInvoker.Demo.Servers;
using PoolingInvoker.Testing;

namespace PoolingInvoker.FunctionalTests;

/// <summary>
/// Blocking calls need no thread of the thread pool that a bare channel would not need, also when they are tried again. Callers that block
/// the threads of the pool wait until it has grown by as many, bare channel or not, and it grows slowly: they are few here, and as many
/// as BLOCKING_WORK_ITEMS says.
/// </summary>
[Collection(nameof(LoadTests))]
[Trait("Tier", "all")]
public sealed class BlockingCallTests(ITestOutputHelper output)
{
    private static readonly TimeSpan Longest = TimeSpan.FromMinutes(3);
    private static readonly int FewThreads = 2 * Environment.ProcessorCount;
    private static readonly string WorkItems = Environment.GetEnvironmentVariable("BLOCKING_WORK_ITEMS") ?? "16";

    [Fact]
    public Task ThreadsOfTheirOwn_BesideAThreadPoolThatDoesNotGrow() => Run(BlockingLoad.Threads, "200", "DOTNET_ThreadPool_ForceMaxWorkerThreads");

    [Fact]
    public Task WorkItemsOfTheThreadPool_WhichHasToGrow() => Run(BlockingLoad.WorkItems, WorkItems, "DOTNET_ThreadPool_ForceMinWorkerThreads");

    private async Task Run(string kind, string callers, string setting)
    {
        ServerProcess[] servers = [await ServerProcess.StartAsync("one"), await ServerProcess.StartAsync("two"), await ServerProcess.StartAsync("three")];
        await using var first = servers[0];
        await using var second = servers[1];
        await using var third = servers[2];
        await using var balancer = new L4Balancer(servers.Select(static server => server.Address));

        await LoadAsync("bare channel", BlockingLoad.Bare, static _ => Task.CompletedTask);
        await LoadAsync("pool", BlockingLoad.Pool, static _ => Task.CompletedTask);
        var disturbed = await LoadAsync("pool, and servers killed", BlockingLoad.Pool, async load =>
        {
            await Waiting.Until(() => balancer.Connections >= servers.Length || load.HasExited);
            foreach (var server in servers)
            {
                await server.KillAsync();
                await server.RestartAsync();
            }
        });
        Assert.True(disturbed.Retries > 0, "Nothing was ever tried again: the test does not test.");

        async Task<BlockingLoad.Result> LoadAsync(string what, string client, Func<Process, Task> disturb)
        {
            await Waiting.Until(() => balancer.Connections == 0);
            var start = new ProcessStartInfo("dotnet")
            {
                ArgumentList = { typeof(BlockingLoad).Assembly.Location, BlockingLoad.Command, kind, callers, client, $"{balancer.Address}" },
                Environment = { [setting] = FewThreads.ToString("x", CultureInfo.InvariantCulture) },
                RedirectStandardInput = true,
                RedirectStandardOutput = true,
            };
            using var load = Process.Start(start)!;
            try
            {
                var said = load.StandardOutput.ReadToEndAsync();
                await disturb(load).WaitAsync(Longest);
                load.StandardInput.Close();
                await load.WaitForExitAsync().WaitAsync(Longest);
                Assert.Equal(0, load.ExitCode);
                var result = JsonSerializer.Deserialize<BlockingLoad.Result>(await said)!;
                output.WriteLine($"{callers} {kind}, {what}: {result.Seconds:0.00} s, {result.ThreadCount} threads in the end, {result.Retries} retries, {result.Failed} calls failed");
                Assert.True(result.Failed == 0, result.FirstFailure);
                Assert.Equal(FewThreads, kind == BlockingLoad.Threads ? result.MaxThreads : result.MinThreads);
                return result;
            }
            finally
            {
                load.Kill();
                await load.WaitForExitAsync().Soon();
            }
        }
    }
}

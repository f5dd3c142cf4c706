using System.Collections.Concurrent;
using PoolingInvoker.Demo.Servers;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.FunctionalTests;

/// <summary>Servers that have different shares of the calls, over real sockets.</summary>
public sealed class WeightTests(ITestOutputHelper output)
{
    private const int Callers = 20;
    private const int CallsOfEach = 100;

    [Fact]
    public async Task EachServer_HasItsShare_UnderManyCallers()
    {
        await using var large = await UserServer.StartAsync("large");
        await using var medium = await UserServer.StartAsync("medium");
        await using var small = await UserServer.StartAsync("small");
        await using var invoker = PoolingCallInvoker.ForAddresses(
        [
            new ChannelAddress($"{large.Address}") { Weight = 6 },
            new ChannelAddress($"{medium.Address}") { Weight = 3 },
            $"{small.Address}",
        ]);
        await invoker.ConnectAsync().Soon();
        var client = new User.UserClient(invoker);
        var had = new ConcurrentDictionary<string, int>();
        await Task.WhenAll(Enumerable.Range(0, Callers).Select(async _ =>
        {
            for (var i = 0; i < CallsOfEach; i++)
            {
                had.AddOrUpdate((await client.GetNameAsync(new GetNameRequest())).Origin.Server, 1, static (_, count) => count + 1);
            }
        })).Soon();
        output.WriteLine($"{string.Join(", ", had)}; {invoker.Pool.GetStatistics()}");
        foreach (var (server, weight) in ((string, int)[])[("large", 6), ("medium", 3), ("small", 1)])
        {
            Assert.InRange(had[server], 0.95 * Callers * CallsOfEach * weight / 10, 1.05 * Callers * CallsOfEach * weight / 10);
        }
    }
}

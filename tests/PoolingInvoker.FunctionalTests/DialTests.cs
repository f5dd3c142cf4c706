using Grpc.Core;
using PoolingInvoker.Protos;

namespace PoolingInvoker.FunctionalTests;

/// <summary>Servers that take connections and are none, over a pool and over a bare channel: each socket is a dial, and is counted.</summary>
[Collection(nameof(LoadTests))]
public sealed class DialTests(ITestOutputHelper output)
{
    private const int CallsOfACaller = 10;

    [Theory]
    [InlineData("closes", 1)]
    [InlineData("closes", 20)]
    [InlineData("resets", 1)]
    [InlineData("resets", 20)]
    [InlineData("says nothing", 1)]
    [InlineData("says nothing", 20)]
    [InlineData("closes after SETTINGS", 1)]
    [InlineData("closes after SETTINGS", 20)]
    public async Task NobodyBehindTheBalancer_IsDialledNoMoreThanByABareChannel(string what, int callers)
    {
        // A bare channel leaves 1 s between attempts that a socket error ended, and none between others. The pool leaves 0.1 s, 0.16 s, 0.26 s
        // … between all of them: where the calls of a bare channel are over before its second attempt, the pool may have made three.
        var bare = await RunAsync(overPool: false, what, callers);
        var pool = await RunAsync(overPool: true, what, callers);
        output.WriteLine($"bare: {bare}\npool: {pool}");
        Assert.InRange(pool.Sockets, 1, Math.Max(bare.Sockets, 3));
    }

    [Theory]
    [InlineData(1)]
    [InlineData(20)]
    public async Task AServerThatTakesNoStreams_GetsOneConnection(int calls)
    {
        await using var server = new RawServer(maxStreams: 0);
        await using var client = TestClient.Create(overPool: true, server.Address);
        var deadline = DateTime.UtcNow.AddSeconds(1);
        var ends = await Task.WhenAll(Enumerable.Range(0, calls).Select(_ => Outcome.OfAsync(() => client.User.GetNameAsync(new GetNameRequest(), deadline: deadline).ResponseAsync)));
        output.WriteLine($"{server.Accepted} connections; {client.Pooled!.Pool.GetStatistics()}");
        Assert.All(ends, static end => Assert.Equal(StatusCode.DeadlineExceeded, end.Status));
        Assert.Equal(1, server.Accepted);
    }

    private static async Task<(int Sockets, string Ends)> RunAsync(bool overPool, string what, int callers)
    {
        await using var server = what switch
        {
            "closes" => SocketServer.ThatCloses(),
            "resets" => SocketServer.ThatResets(),
            "says nothing" => SocketServer.ThatSaysNothing(),
            _ => SocketServer.ThatClosesAfterSettings(),
        };
        List<Outcome> ends;
        await using (var client = TestClient.Create(overPool, server.Address))
        {
            ends = [.. (await Task.WhenAll(Enumerable.Range(0, callers).Select(_ => Task.Run(() => CallAsync(client))))).SelectMany(static ends => ends)];
        }

        Assert.All(ends, static end => Assert.NotEqual(StatusCode.OK, end.Status));
        return (await server.CountAsync(), string.Join(", ", ends.GroupBy(static end => end.Status).Select(static kind => $"{kind.Count()} {kind.Key}")));
    }

    private static async Task<List<Outcome>> CallAsync(TestClient client)
    {
        var ends = new List<Outcome>();
        for (var i = 0; i < CallsOfACaller; i++)
        {
            ends.Add(await Outcome.OfAsync(() => client.User.GetNameAsync(new GetNameRequest(), deadline: DateTime.UtcNow.AddMilliseconds(300)).ResponseAsync));
        }

        return ends;
    }
}

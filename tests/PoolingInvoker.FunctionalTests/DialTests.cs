using Grpc.Core;
using Microsoft.Extensions.Time.Testing;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.FunctionalTests;

/// <summary>Servers that take connections and are none, over a pool and over a bare channel: each socket is a dial, and is counted.</summary>
[Collection(nameof(LoadTests))]
public sealed class DialTests(ITestOutputHelper output)
{
    [Theory]
    [InlineData("closes", 1, 1)]
    [InlineData("closes", 1, 10)]
    [InlineData("closes", 20, 10)]
    [InlineData("resets", 1, 1)]
    [InlineData("resets", 1, 10)]
    [InlineData("resets", 20, 10)]
    [InlineData("closes after SETTINGS", 1, 1)]
    [InlineData("closes after SETTINGS", 1, 10)]
    [InlineData("closes after SETTINGS", 20, 10)]
    public async Task NobodyBehindTheBalancer_IsDialledNoMoreThanByABareChannel_UntilAPauseIsOver(string what, int callers, int callsOfEach)
    {
        // The time of the pool does not pass: what it dials again after a pause, it does not dial.
        var bare = await RunAsync(time: null);
        var pool = await RunAsync(new FakeTimeProvider(TimeProvider.System.GetUtcNow()));
        output.WriteLine($"bare: {bare}\npool: {pool}");
        Assert.InRange(pool.Sockets, 1, bare.Sockets);

        async Task<(int Sockets, string Ends)> RunAsync(FakeTimeProvider? time)
        {
            await using var server = what switch
            {
                "closes" => SocketServer.ThatCloses(),
                "resets" => SocketServer.ThatResets(),
                _ => SocketServer.ThatClosesAfterSettings(),
            };
            await using var client = TestClient.Create(
                overPool: time is not null,
                server.Address,
                pool: options => (options.Pool.TimeProvider, options.Retry.Delay) = (time!, TimeSpan.Zero));
            var calling = Enumerable.Range(0, callers).Select(_ => Task.Run(() => CallAsync(client, callsOfEach)));
            var ends = (await Task.WhenAll(calling)).SelectMany(static ends => ends).ToList();
            Assert.All(ends, static end => Assert.NotEqual(StatusCode.OK, end.Status));
            var kinds = ends.GroupBy(static end => end.Status).Select(static kind => $"{kind.Count()} {kind.Key}");
            return (await server.CountAsync(), $"{string.Join(", ", kinds)}; {client.Pooled?.Pool.GetStatistics()}");
        }
    }

    [Fact]
    public async Task ABalancerThatSaysNothing_IsDialledOnce_ByAllCallsThatWait()
    {
        const int Calls = 20;
        await using var server = SocketServer.ThatSaysNothing();
        await using var client = TestClient.Create(
            overPool: true,
            server.Address,
            pool: static options => options.Pool.TimeProvider = new FakeTimeProvider(TimeProvider.System.GetUtcNow()));
        using var patience = new CancellationTokenSource();
        var calls = Enumerable.Range(0, Calls)
            .Select(_ => Outcome.OfAsync(() => client.User.GetNameAsync(new GetNameRequest(), cancellationToken: patience.Token).ResponseAsync))
            .ToList();
        await Waiting.Until(() => server.Accepted > 0 && client.Pooled!.Pool.GetStatistics().CallsWaiting == Calls);
        await patience.CancelAsync();
        Assert.All(await Task.WhenAll(calls), static end => Assert.Equal(StatusCode.Cancelled, end.Status));
        Assert.Equal(1, await server.CountAsync());
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
        await Waiting.Until(() => server.Accepted > 0); // calls may be over before it is reached
        Assert.Equal(1, server.Accepted);
    }

    [Theory]
    [InlineData(false, 1)]
    [InlineData(false, 10)]
    [InlineData(true, 1)]
    [InlineData(true, 10)]
    public async Task AServerThatTakesNoMoreStreamsOnAConnection_IsCalledOnAnother(bool overPool, int calls)
    {
        // Behind a balancer another connection may lead to another server. This one takes streams on all but its first.
        await using var server = new RawServer(maxStreams: 100);
        await using var client = TestClient.Create(overPool, server.Address);
        await client.User.RenameAsync(new RenameRequest()).ResponseAsync.Soon();
        await server.Connections.Single().AnnounceAsync(0);
        await Waiting.Until(() => server.Connections[0].Acknowledged == 2);
        var deadline = DateTime.UtcNow + Waiting.Long;
        var ends = await Task.WhenAll(Enumerable.Range(0, calls).Select(_ => Outcome.OfAsync(() => client.User.RenameAsync(new RenameRequest(), deadline: deadline).ResponseAsync)));
        output.WriteLine($"{server.Accepted} connections; {client.Pooled?.Pool.GetStatistics()}");
        Assert.All(ends, static end => Assert.Equal(StatusCode.OK, end.Status));
        Assert.Equal(2, server.Accepted);
    }

    private static async Task<List<Outcome>> CallAsync(TestClient client, int calls)
    {
        var ends = new List<Outcome>();
        for (var i = 0; i < calls; i++)
        {
            // On a busy machine some calls of a bare channel wait for ever there.
            var deadline = client.Pooled is null ? DateTime.UtcNow.AddMilliseconds(300) : (DateTime?)null;
            ends.Add(await Outcome.OfAsync(() => client.User.GetNameAsync(new GetNameRequest(), deadline: deadline).ResponseAsync));
        }

        return ends;
    }
}

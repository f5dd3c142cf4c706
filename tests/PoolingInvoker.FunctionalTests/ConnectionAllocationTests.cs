using Grpc.Core;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.FunctionalTests;

/// <summary>
/// What a call takes in this process over a real connection, beside a default channel. Nothing else runs meanwhile. How often a read
/// or a write of the socket completes at once differs from call to call, so that the least of some rounds counts.
/// </summary>
[Collection(nameof(ConnectionAllocationTests))]
public sealed class ConnectionAllocationTests(ITestOutputHelper output)
{
    private const int Rounds = 8;
    private const int Few = 2; // of the rounds, in which something was collected meanwhile
    private const int Calls = 1_000;
    private const int Streams = 90; // fewer than a connection takes

    [Fact]
    public async Task AUnaryCall_TakesAtMost180BytesOnTop()
    {
        await using var server = await ServerProcess.StartAsync("one");
        await using var bare = TestClient.Create(overPool: false, server.Address);
        await using var pooled = TestClient.Create(overPool: true, server.Address);
        var (onBare, onPool) = (long.MaxValue, long.MaxValue);
        for (var round = 0; round < Rounds; round++)
        {
            onBare = Math.Min(onBare, await MeasureAsync(bare.User));
            onPool = Math.Min(onPool, await MeasureAsync(pooled.User));
        }

        output.WriteLine($"{onBare} bytes a call on a default channel, {onPool} through the pool");
        Assert.InRange(onPool - onBare, 0, 180);
    }

    [Fact]
    public async Task AnIdleStream_HoldsAtMost800BytesOnTop()
    {
        await using var server = await ServerProcess.StartAsync("one");
        var (onBare, onPool) = (new List<long>(), new List<long>());
        for (var round = 0; round < Rounds; round++)
        {
            onBare.Add(await HeldAsync(overPool: false, server.Address));
            onPool.Add(await HeldAsync(overPool: true, server.Address));
        }

        output.WriteLine($"bytes a stream on a default channel: {string.Join(", ", onBare.Order())}; through the pool: {string.Join(", ", onPool.Order())}");
        Assert.InRange(onPool.Order().ElementAt(Few) - onBare.Order().ElementAt(Few), 0, 800);
    }

    // The connection is there before. What else is collected meanwhile, or made, differs from round to round.
    private static async Task<long> HeldAsync(bool overPool, Uri address)
    {
        await using var client = TestClient.Create(overPool, address, pool: static options => options.Pool.MaxPoolSize = 1);
        var streams = new List<AsyncDuplexStreamingCall<ChatMessage, ChatMessage>>(1 + Streams);
        await OpenAsync();
        var before = GC.GetTotalMemory(forceFullCollection: true);
        while (streams.Count <= Streams)
        {
            await OpenAsync();
        }

        var held = GC.GetTotalMemory(forceFullCollection: true) - before;
        streams.ForEach(static stream => stream.Dispose());
        return held / Streams;

        async Task OpenAsync()
        {
            var stream = client.User.Chat();
            streams.Add(stream);
            await stream.RequestStream.WriteAsync(new ChatMessage { Text = "hello" });
            Assert.True(await stream.ResponseStream.MoveNext(CancellationToken.None));
        }
    }

    private static async Task<long> MeasureAsync(User.UserClient client)
    {
        var request = new GetNameRequest { Id = 7 };
        await client.GetNameAsync(request);
        return (long)await AllocatedBytes.OfEachAsync(Calls, () => client.GetNameAsync(request).ResponseAsync);
    }
}

[CollectionDefinition(nameof(ConnectionAllocationTests), DisableParallelization = true)]
public sealed class ConnectionAllocationTestsRunAlone;

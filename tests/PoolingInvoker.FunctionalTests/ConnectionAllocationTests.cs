using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.FunctionalTests;

/// <summary>
/// What a unary call allocates in this process over a real connection, beside a default channel. Nothing else runs meanwhile. How often a read
/// or a write of the socket completes at once differs from call to call, so that the least of some rounds counts.
/// </summary>
[Collection(nameof(ConnectionAllocationTests))]
public sealed class ConnectionAllocationTests(ITestOutputHelper output)
{
    private const int Rounds = 8;
    private const int Calls = 1_000;

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

    private static async Task<long> MeasureAsync(User.UserClient client)
    {
        var request = new GetNameRequest { Id = 7 };
        await client.GetNameAsync(request);
        return (long)await AllocatedBytes.OfEachAsync(Calls, () => client.GetNameAsync(request).ResponseAsync);
    }
}

[CollectionDefinition(nameof(ConnectionAllocationTests), DisableParallelization = true)]
public sealed class ConnectionAllocationTestsRunAlone;

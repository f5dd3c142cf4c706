using Grpc.Core;
using Grpc.Net.Client;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.FunctionalTests;

/// <summary>The only server stands still (SIGSTOP), as long as it takes until fresh channels are asked, and goes on.</summary>
[Collection(nameof(LoadTests))]
public sealed class StandstillTests
{
    private const int Calls = 40;

    [Theory]
    [InlineData(1)]
    [InlineData(4)]
    [InlineData(8)]
    public async Task CallsInFlight_EndWell_AsOnABareChannel(int channels)
    {
        await using var server = await ServerProcess.StartAsync("one");
        var handlers = 0;
        await using var invoker = PoolingCallInvoker.ForAddress(server.Address, new PoolingCallInvokerOptions
        {
            Pool =
            {
                MinPoolSize = channels,
                TargetConcurrentCallsPerChannel = Calls / channels,
                ConfigureHandler = _ => Interlocked.Increment(ref handlers),
            },
        });
        await invoker.ConnectAsync().Soon();
        using var bare = GrpcChannel.ForAddress(server.Address);

        var overThePool = Enumerable.Range(0, Calls).Select(id => RenameAsync(new User.UserClient(invoker), $"pool {id}")).ToList();
        var overTheBareOne = Enumerable.Range(0, Calls).Select(id => RenameAsync(new User.UserClient(bare), $"bare {id}")).ToList();
        await Waiting.Until(() => server.ReadJournal().Count == 2 * Calls);
        Assert.Equal((channels, Calls), (invoker.Pool.GetStatistics().Channels, invoker.Pool.GetStatistics().CallsInFlight));
        var before = Volatile.Read(ref handlers);
        await server.StopAsync();
        await Waiting.Until(() => Volatile.Read(ref handlers) > before);
        await server.ContinueAsync();

        Assert.All(await Task.WhenAll(overTheBareOne).Soon(), static status => Assert.Equal(StatusCode.OK, status));
        Assert.All(await Task.WhenAll(overThePool).Soon(), static status => Assert.Equal(StatusCode.OK, status));
        Assert.Equal(0, invoker.Pool.GetStatistics().ChannelsGivenUp);
    }

    // Not idempotent, and long enough for the pool to lose patience with a server that stands still.
    private static async Task<StatusCode> RenameAsync(User.UserClient client, string requestId)
    {
        try
        {
            await client.RenameAsync(new RenameRequest { RequestId = requestId, DelayMs = 4_000 });
            return StatusCode.OK;
        }
        catch (RpcException exception)
        {
            return exception.StatusCode;
        }
    }
}

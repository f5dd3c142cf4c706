using System.Collections.Concurrent;
using System.Globalization;
using Grpc.Core;
using Grpc.Net.Client;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.FunctionalTests;

/// <summary>
/// The only server stands still (SIGSTOP), as long as it takes until fresh channels are asked, and goes on. STANDSTILL_RUNS=200 makes so many
/// pauses with each number of channels, four at a time.
/// </summary>
[Collection(nameof(LoadTests))]
public sealed class StandstillTests(ITestOutputHelper output)
{
    private const int Calls = 40;
    private static readonly int Runs = int.Parse(Environment.GetEnvironmentVariable("STANDSTILL_RUNS") ?? "1", CultureInfo.InvariantCulture);

    private readonly ConcurrentQueue<StatusCode> _bare = new();
    private readonly ConcurrentQueue<StatusCode> _pooled = new();
    private long _givenUp;

    [Theory]
    [InlineData(1)]
    [InlineData(4)]
    [InlineData(8)]
    public async Task CallsInFlight_EndWell_AsOnABareChannel(int channels)
    {
        await Parallel.ForAsync(0, Runs, new ParallelOptions { MaxDegreeOfParallelism = 4 }, async (_, _) => await StandStillAsync(channels));
        output.WriteLine($"{Runs} pauses with {channels} channels: of {_pooled.Count} calls {_pooled.Count(static status => status != StatusCode.OK)} lost, {_givenUp} channels given up");
        Assert.All(_bare, static status => Assert.Equal(StatusCode.OK, status));
        Assert.All(_pooled, static status => Assert.Equal(StatusCode.OK, status));
        Assert.Equal((Runs * Calls, 0), (_pooled.Count, _givenUp));
    }

    private async Task StandStillAsync(int channels)
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

        Array.ForEach(await Task.WhenAll(overTheBareOne).Soon(), _bare.Enqueue);
        Array.ForEach(await Task.WhenAll(overThePool).Soon(), _pooled.Enqueue);
        Interlocked.Add(ref _givenUp, invoker.Pool.GetStatistics().ChannelsGivenUp);
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

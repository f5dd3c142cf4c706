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

    private readonly ConcurrentQueue<(int Channels, StatusCode Status)> _pooled = new();
    private readonly ConcurrentQueue<StatusCode> _bare = new();
    private long _givenUp;

    [Fact]
    public async Task CallsInFlight_EndWell_AsOnABareChannel()
    {
        var pauses = Enumerable.Range(0, Runs).SelectMany(static _ => (int[])[1, 4, 8]);
        await Parallel.ForEachAsync(pauses, new ParallelOptions { MaxDegreeOfParallelism = 4 }, async (channels, _) => await StandStillAsync(channels));
        foreach (var pool in _pooled.GroupBy(static call => call.Channels))
        {
            output.WriteLine($"{Runs} pauses with {pool.Key} channels: {pool.Count(static call => call.Status != StatusCode.OK)} of {pool.Count()} calls lost");
        }

        Assert.All(_bare, static status => Assert.Equal(StatusCode.OK, status));
        Assert.All(_pooled, static call => Assert.Equal(StatusCode.OK, call.Status));
        Assert.Equal((3 * Runs * Calls, 0), (_pooled.Count, _givenUp));
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
        await Waiting.Until(() => server.ReadJournal().Count >= 2 * Calls || overThePool.Concat(overTheBareOne).Any(HasFailed));
        Assert.Equal(2 * Calls, server.ReadJournal().Count);
        Assert.Equal((channels, Calls), (invoker.Pool.GetStatistics().Channels, invoker.Pool.GetStatistics().CallsInFlight));
        var before = Volatile.Read(ref handlers);
        await server.StopAsync();
        await Waiting.Until(() => Volatile.Read(ref handlers) > before);
        await server.ContinueAsync();

        Array.ForEach(await Task.WhenAll(overTheBareOne).Soon(), _bare.Enqueue);
        Array.ForEach(await Task.WhenAll(overThePool).Soon(), status => _pooled.Enqueue((channels, status)));
        Interlocked.Add(ref _givenUp, invoker.Pool.GetStatistics().ChannelsGivenUp);
    }

    private static bool HasFailed(Task<StatusCode> call) => call is { IsCompleted: true, Result: not StatusCode.OK };

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

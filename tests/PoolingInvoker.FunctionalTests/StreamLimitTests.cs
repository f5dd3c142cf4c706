using System.Collections.Concurrent;
using System.Globalization;
using Grpc.Core;
using Grpc.Net.Client;
using PoolingInvoker.Demo.Servers;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.FunctionalTests;

/// <summary>
/// Behind an nginx that takes few streams on a connection, or few requests. It refuses streams that come before the client knows of the
/// limit, and says GOAWAY when the requests are used up. STREAM_LIMIT_CALLS=1600 makes the runs longer.
/// </summary>
[Collection(nameof(LoadTests))]
[Trait("Tier", "all")]
public sealed class StreamLimitTests(ITestOutputHelper output)
{
    private const int Callers = 32;
    private const string FourStreams = "http2_max_concurrent_streams 4;";

    private static readonly int CallsInARun = int.Parse(Environment.GetEnvironmentVariable("STREAM_LIMIT_CALLS") ?? "320", CultureInfo.InvariantCulture);

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public async Task NoCallFails_WhereAConnectionTakesFourStreams(bool told)
    {
        await using var server = await UserServer.StartAsync("one");
        await using var nginx = await NginxProcess.StartAsync(server.Address, FourStreams);
        using (var bare = GrpcChannel.ForAddress(nginx.Address))
        {
            var lost = await CallAsync(bare.CreateCallInvoker(), CallsInARun, delayMs: 5);
            output.WriteLine($"A bare channel loses {lost.Count} of {CallsInARun} calls: {Count(lost)}");
        }

        var retries = 0L;
        var channels = 0L;
        var since = TimeProvider.System.GetTimestamp();
        for (var run = 0; run < 10; run++)
        {
            // Anew each time: what is refused is refused at the start of a connection.
            await using var invoker = PoolingCallInvoker.ForAddress(nginx.Address, told
                ? new PoolingCallInvokerOptions { Pool = { MinPoolSize = 4, MaxConcurrentCallsPerChannel = 4 } }
                : new PoolingCallInvokerOptions());
            var failed = await CallAsync(invoker, CallsInARun, delayMs: 5);
            var statistics = invoker.Pool.GetStatistics();
            retries += statistics.Retries;
            channels += statistics.ChannelsCreated;
            Assert.True(failed.IsEmpty, $"{failed.Count} of {CallsInARun} calls failed in run {run + 1}, as in: {failed.FirstOrDefault()}");
        }

        output.WriteLine($"{(told ? "4 calls on a channel" : "default options")}: 10 runs of {CallsInARun} calls in {TimeProvider.System.GetElapsedTime(since).TotalSeconds:0.0} s, {retries} retries, {channels} channels");
    }

    [Fact]
    public async Task NoIdempotentCallFails_WhereAConnectionEndsAfterTwentyRequests()
    {
        const int Calls = 5_000;
        await using var server = await UserServer.StartAsync("one");
        await using var nginx = await NginxProcess.StartAsync(server.Address, "keepalive_requests 20;");
        await using var invoker = PoolingCallInvoker.ForAddress(nginx.Address);
        var since = TimeProvider.System.GetTimestamp();
        var failed = await CallAsync(invoker, Calls, delayMs: 5);
        output.WriteLine($"{Calls} calls in {TimeProvider.System.GetElapsedTime(since).TotalSeconds:0.0} s; {invoker.Pool.GetStatistics()}");
        Assert.True(failed.IsEmpty, $"{failed.Count} of {Calls} calls failed ({Count(failed)}), as in: {failed.FirstOrDefault()}");
    }

    private static string Count(IEnumerable<RpcException> failed) =>
        string.Join(", ", failed.GroupBy(static exception => $"{exception.StatusCode} ({exception.Status.DebugException?.GetType().Name})").Select(static kind => $"{kind.Count()} {kind.Key}"));

    private static async Task<ConcurrentQueue<RpcException>> CallAsync(CallInvoker invoker, int calls, int delayMs)
    {
        var client = new User.UserClient(invoker);
        var failed = new ConcurrentQueue<RpcException>();
        var begun = 0;
        await Task.WhenAll(Enumerable.Range(0, Callers).Select(_ => Task.Run(async () =>
        {
            while (Interlocked.Increment(ref begun) is var id && id <= calls)
            {
                try
                {
                    Assert.Equal(id, (await client.GetNameAsync(new GetNameRequest { Id = id, DelayMs = delayMs })).Id);
                }
                catch (RpcException exception)
                {
                    failed.Enqueue(exception);
                }
            }
        }))).Soon();
        return failed;
    }
}

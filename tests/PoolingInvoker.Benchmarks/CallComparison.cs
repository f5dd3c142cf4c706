using System.Diagnostics;
using System.Globalization;
using Grpc.Core;
using Grpc.Net.Client;
using PoolingInvoker.Protos;

namespace PoolingInvoker.Benchmarks;

/// <summary>
/// Small calls through the pool and on bare channels, one after the other, round by round, so that what the machine does beside meets all
/// alike. What it prints are medians, as ratios to a default channel: calls, and what the client's processor spends on one.
/// </summary>
internal static class CallComparison
{
    private static readonly TimeSpan Round = TimeSpan.FromSeconds(1.5);

    public static async Task RunAsync(Uri server, int rounds)
    {
        using var bare = GrpcChannel.ForAddress(server);
        using var followed = WithFramesFollowed(server);
        await using var pool = PoolingCallInvoker.ForAddress(server);
        await using var packed = PoolingCallInvoker.ForAddress(server, new PoolingCallInvokerOptions { Pool = { TargetConcurrentCallsPerChannel = null } });
        using var array = new ChannelArray(server, 8);
        (string Name, CallInvoker Invoker)[] contenders =
        [
            ("default channel", bare.CreateCallInvoker()),
            ("frames followed", followed.CreateCallInvoker()),
            ("pool, default options", pool),
            ("pool, packed", packed),
            ("8 channels in turn", array),
        ];

        foreach (var callers in (int[])[1, 8, 64, 256, 1024])
        {
            var figures = contenders.Select(static _ => new List<(double Rate, double Cpu)>()).ToArray();
            for (var round = -1; round < rounds; round++)
            {
                for (var i = 0; i < contenders.Length; i++)
                {
                    var figure = await MeasureAsync(new User.UserClient(contenders[i].Invoker), callers);
                    if (round >= 0)
                    {
                        figures[i].Add(figure);
                    }
                }
            }

            var (rate, cpu) = Median(figures[0]);
            for (var i = 0; i < contenders.Length; i++)
            {
                var median = Median(figures[i]);
                Console.WriteLine(string.Create(CultureInfo.InvariantCulture,
                    $"{callers,4} callers, {contenders[i].Name,-22} {median.Rate,8:0} calls/s ({median.Rate / rate:0.00}), {median.Cpu,6:0.0} us of CPU a call ({median.Cpu / cpu:0.00})"));
            }
        }

        Console.WriteLine($"default options: {pool.Pool.GetStatistics().Channels} channels; packed: {packed.Pool.GetStatistics().Channels}");
    }

    // A default channel, but for what the pool has on its connections and below its channels.
    private static GrpcChannel WithFramesFollowed(Uri server)
    {
        var handler = new SocketsHttpHandler { EnableMultipleHttp2Connections = true };
        var transport = new ChannelTransport(TimeProvider.System);
        transport.Supply(handler, server, server);
        var outermost = new SendOnceHandler(handler, handler, transport.Refusals);
        return GrpcChannel.ForAddress(server, new GrpcChannelOptions { HttpHandler = outermost, DisposeHttpClient = true });
    }

    private static (double Rate, double Cpu) Median(List<(double Rate, double Cpu)> figures) =>
        (figures.Select(static figure => figure.Rate).Order().ElementAt(figures.Count / 2), figures.Select(static figure => figure.Cpu).Order().ElementAt(figures.Count / 2));

    private static async Task<(double Rate, double Cpu)> MeasureAsync(User.UserClient client, int callers)
    {
        using var process = Process.GetCurrentProcess();
        var calls = 0;
        var cpu = process.TotalProcessorTime;
        var watch = Stopwatch.StartNew();
        await Task.WhenAll(Enumerable.Range(0, callers).Select(_ => Task.Run(async () =>
        {
            while (watch.Elapsed < Round)
            {
                await client.GetNameAsync(new GetNameRequest { Id = 7 });
                Interlocked.Increment(ref calls);
            }
        })));
        var elapsed = watch.Elapsed;
        process.Refresh();
        return (calls / elapsed.TotalSeconds, (process.TotalProcessorTime - cpu).TotalMicroseconds / calls);
    }
}

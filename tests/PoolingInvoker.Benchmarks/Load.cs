using System.Diagnostics;
using Grpc.Core;
using PoolingInvoker.Protos;

namespace PoolingInvoker.Benchmarks;

/// <summary>What callers saw who made one call after the other.</summary>
/// <param name="PerSecond">Calls that succeeded, a second.</param>
/// <param name="Failed">Calls that did not.</param>
/// <param name="P99">Milliseconds that 99 of 100 calls took at most.</param>
/// <param name="MicrosecondsOfCpu">Of this process, a call.</param>
/// <param name="Stuck">Callers whose last call was under way when the time was over, and not over a second later.</param>
internal sealed record Load(double PerSecond, int Failed, double P99, double MicrosecondsOfCpu, int Stuck)
{
    private static readonly TimeSpan Grace = TimeSpan.FromSeconds(1);

    public static Task<Load> OfNamesAsync(Client client, int callers, TimeSpan lasts, int delayMs = 0) =>
        RunAsync(callers, lasts, async token => await client.User.GetNameAsync(new GetNameRequest { Id = 7, DelayMs = delayMs }, cancellationToken: token));

    public static async Task<Load> RunAsync(int callers, TimeSpan lasts, Func<CancellationToken, Task> call)
    {
        using var process = Process.GetCurrentProcess();
        using var end = new CancellationTokenSource();
        var (failed, stuck) = (0, 0);
        var times = new List<double>[callers];
        var cpu = process.TotalProcessorTime;
        var since = Stopwatch.GetTimestamp();
        var running = Enumerable.Range(0, callers).Select(caller => Task.Run(async () =>
        {
            var own = times[caller] = [];
            while (Stopwatch.GetElapsedTime(since) < lasts)
            {
                var began = Stopwatch.GetTimestamp();
                try
                {
                    await call(end.Token);
                    own.Add(Stopwatch.GetElapsedTime(began).TotalMilliseconds);
                }
                catch (RpcException) when (end.IsCancellationRequested)
                {
                    Interlocked.Increment(ref stuck);
                }
                catch (RpcException)
                {
                    Interlocked.Increment(ref failed);
                }
            }
        })).ToArray();
        end.CancelAfter(lasts + Grace);
        await Task.WhenAll(running);
        var elapsed = Stopwatch.GetElapsedTime(since);
        process.Refresh();
        var all = times.SelectMany(static own => own).Order().ToArray();
        return new Load(
            all.Length / elapsed.TotalSeconds,
            failed,
            all.Length == 0 ? double.NaN : all[(int)((all.Length - 1) * 0.99)],
            (process.TotalProcessorTime - cpu).TotalMicroseconds / Math.Max(all.Length, 1),
            stuck);
    }
}

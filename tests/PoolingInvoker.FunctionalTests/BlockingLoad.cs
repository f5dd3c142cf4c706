using System.Diagnostics;
using System.Text.Json;
using Grpc.Core;
using Grpc.Net.Client;
using PoolingInvoker.Demo.Servers;
using PoolingInvoker.Protos;

namespace PoolingInvoker.FunctionalTests;

/// <summary>
/// Callers that block on their calls, in a process that does nothing else: what the threads of its pool do is the doing of the
/// calls. <see cref="BlockingCallTests"/> starts it.
/// </summary>
internal static class BlockingLoad
{
    public const string Command = "blocking-load";
    public const string Threads = "threads";
    public const string WorkItems = "work-items";
    public const string Pool = "pool";
    public const string Bare = "bare";
    public const int CallsEachAtLeast = 20;

    /// <summary>Runs the load, until its standard input ends, and prints how it went as a line of JSON.</summary>
    public static int Run(string kind, int callers, string clientKind, Uri address)
    {
        // Short of threads a call lasts so long that several servers are killed under it, and takes more attempts than the default.
        using var pooled = clientKind == Pool
            ? PoolingCallInvoker.ForAddress(address, new PoolingCallInvokerOptions { Pool = { MinPoolSize = 6 }, Retry = { MaxRetryAttempts = 8 } })
            : null;
        using var channel = pooled is null ? GrpcChannel.ForAddress(address) : null;
        var client = new User.UserClient(pooled ?? channel!.CreateCallInvoker());
        var failed = 0;
        string? firstFailure = null;
        var isStopped = false;
        new Thread(WaitForStop) { IsBackground = true }.Start();
        using var running = new CountdownEvent(callers);
        var time = Stopwatch.StartNew();
        for (var caller = 0; caller < callers; caller++)
        {
            if (kind == Threads)
            {
                new Thread(Call, maxStackSize: 256 * 1024).Start();
            }
            else
            {
                ThreadPool.UnsafeQueueUserWorkItem(static call => call(), (Action)Call, preferLocal: false);
            }
        }

        running.Wait();
        var threads = ThreadPool.ThreadCount;
        ThreadPool.GetMinThreads(out var minThreads, out _);
        ThreadPool.GetMaxThreads(out var maxThreads, out _);
        Console.WriteLine(JsonSerializer.Serialize(new Result(
            time.Elapsed.TotalSeconds, minThreads, maxThreads, threads, pooled?.Pool.GetStatistics().Retries ?? 0, failed, firstFailure)));
        return 0;

        void WaitForStop()
        {
            Console.In.ReadToEnd();
            Volatile.Write(ref isStopped, true);
        }

        void Call()
        {
            for (var id = 0; id < CallsEachAtLeast || !Volatile.Read(ref isStopped); id++)
            {
                try
                {
                    if (client.GetName(new GetNameRequest { Id = id, DelayMs = 5 }).Name != UserService.NameOf(id))
                    {
                        throw new InvalidOperationException("The reply is another's.");
                    }
                }
                catch (Exception exception) when (exception is RpcException or InvalidOperationException)
                {
                    Interlocked.Increment(ref failed);
                    Interlocked.CompareExchange(ref firstFailure, exception.ToString(), null);
                }
            }

            running.Signal();
        }
    }

    /// <param name="Seconds">How long it took.</param>
    /// <param name="MinThreads">What the thread pool was told.</param>
    /// <param name="MaxThreads">What the thread pool was told.</param>
    /// <param name="ThreadCount">The threads of the thread pool in the end.</param>
    /// <param name="Retries">The attempts that were not the first of their call.</param>
    /// <param name="Failed">The calls that failed.</param>
    /// <param name="FirstFailure">One of their exceptions.</param>
    public sealed record Result(double Seconds, int MinThreads, int MaxThreads, int ThreadCount, long Retries, int Failed, string? FirstFailure);
}

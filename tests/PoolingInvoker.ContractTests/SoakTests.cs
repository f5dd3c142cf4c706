using System.Collections.Concurrent;
using System.Globalization;
using System.Text;
using Grpc.Core;
using PoolingInvoker.Testing;

namespace PoolingInvoker.ContractTests;

/// <summary>
/// Many calls of all kinds, each with an ending drawn at random. In the end no lease is out, nothing has piled up, and no exception was
/// left unseen. <c>SOAK_UNARY</c> and <c>SOAK_STREAMS</c> set how many calls; the seed is printed, and <c>SOAK_SEED</c> sets it.
/// </summary>
[Collection(nameof(SoakTests))]
public sealed class SoakTests(ContractServer server, ITestOutputHelper output) : IClassFixture<ContractServer>
{
    private const int Callers = 64;

    private static readonly Marshaller<string> Text = Marshallers.Create(Encoding.UTF8.GetBytes, Encoding.UTF8.GetString);
    private static readonly Method<string, string> Unary = new(MethodType.Unary, "contract", "Unary", Text, Text);
    private static readonly Method<string, string> ClientStreaming = new(MethodType.ClientStreaming, "contract", "ClientStreaming", Text, Text);
    private static readonly Method<string, string> ServerStreaming = new(MethodType.ServerStreaming, "contract", "ServerStreaming", Text, Text);
    private static readonly Method<string, string> Duplex = new(MethodType.DuplexStreaming, "contract", "Duplex", Text, Text);

    private readonly ConcurrentDictionary<string, int> _ends = new();

    // The bare channels of other tests connect through a type of Grpc.Net.Client that those of the pool do without.
    [Fact]
    public Task RandomEndings_LeaveNothingBehind() => Unobserved.LeavesNothingUnobservedAsync(
        LeaveNothingBehindAsync, static exception => exception.ToString().Contains("Grpc.Net.Client.Balancer", StringComparison.Ordinal));

    private async Task LeaveNothingBehindAsync()
    {
        var unary = Setting("SOAK_UNARY", 20_000);
        var streams = Setting("SOAK_STREAMS", 4_000);
        var seed = Setting("SOAK_SEED", Random.Shared.Next());
        output.WriteLine($"seed {seed}");

        await using var invoker = PoolingCallInvoker.ForAddress(server.Address, new PoolingCallInvokerOptions
        {
            Pool = { MinPoolSize = 2, MaxPoolSize = 8, MaxConcurrentCallsPerChannel = 24 },
            IsIdempotent = static _ => true,
        });

        // The first part warms everything up; the memory is measured after it and at the end.
        await RunAsync(invoker, seed, unary / 10, streams / 10);
        var early = Memory();
        await RunAsync(invoker, seed + 1, unary - (unary / 10), streams - (streams / 10));
        await Waiting.Until(TimeSpan.FromMinutes(2), () =>
        {
            GC.Collect();
            GC.WaitForPendingFinalizers();
            return invoker.Pool.GetStatistics() is { CallsInFlight: 0, CallsWaiting: 0 };
        });
        var late = Memory();

        var statistics = invoker.Pool.GetStatistics();
        output.WriteLine($"{unary} unary calls and {streams} streams: {string.Join(", ", _ends.OrderByDescending(static end => end.Value).Select(static end => $"{end.Key} {end.Value}"))}");
        output.WriteLine($"{statistics}");
        output.WriteLine($"memory {early / 1024:N0} KiB after a tenth, {late / 1024:N0} KiB at the end");
        Assert.InRange(statistics.Channels + statistics.DrainingChannels, 1, 8);
        Assert.True(late - early < 4 * 1024 * 1024, $"The memory grew from {early:N0} to {late:N0} bytes.");
    }

    private async Task RunAsync(PoolingCallInvoker invoker, int seed, int unary, int streams)
    {
        var left = unary + streams;
        var streamsLeft = streams;
        await Task.WhenAll(Enumerable.Range(0, Callers).Select(caller => Task.Run(async () =>
        {
            var random = new Random(seed + (1000 * caller));
            for (var call = Interlocked.Decrement(ref left); call >= 0; call = Interlocked.Decrement(ref left))
            {
                // Streams evenly among the others.
                var isStream = (long)call * streams / (unary + streams) != (long)(call + 1) * streams / (unary + streams) && Interlocked.Decrement(ref streamsLeft) >= 0;
                await CallAsync(invoker, random, isStream);
            }
        })));
    }

    private async Task CallAsync(PoolingCallInvoker invoker, Random random, bool isStream)
    {
        var ending = Draw(random, isStream);
        using var cancellation = new CancellationTokenSource();
        var options = new CallOptions(
            new Metadata { { "ending", ending } },
            random.Next(20) == 0 || ending.StartsWith("hang", StringComparison.Ordinal) ? DateTime.UtcNow.AddMilliseconds(random.Next(1, 30)) : null,
            cancellation.Token);
        if (random.Next(25) == 0)
        {
            cancellation.CancelAfter(random.Next(10));
        }

        string end;
        try
        {
            end = isStream ? await StreamAsync(invoker, options, random) : await UnaryAsync(invoker, options, random);
        }
        catch (RpcException exception)
        {
            end = exception.StatusCode.ToString();
        }
        catch (Exception exception) when (exception is IOException or ObjectDisposedException)
        {
            end = exception.GetType().Name; // a write into a call that is over
        }

        _ends.AddOrUpdate(end, 1, static (_, count) => count + 1);
    }

    private static string Draw(Random random, bool isStream) => random.Next(200) switch
    {
        < 160 => isStream ? Ending.ThreeResponses : Ending.Response,
        < 170 => Ending.TrailersOnlyError,
        < 175 => Ending.ErrorAfterMessage,
        < 180 => Ending.ErrorAfterHeaders,
        < 184 => Ending.ResetBeforeHeaders,
        < 186 => Ending.Http503,
        < 187 => Ending.AbortBeforeHeaders,
        < 188 => Ending.AbortInMessage,
        < 192 => Ending.HangBeforeHeaders,
        < 196 => Ending.HangAfterHeaders,
        _ => Ending.HangAfterMessage,
    };

    private static async Task<string> UnaryAsync(PoolingCallInvoker invoker, CallOptions options, Random random)
    {
        var call = invoker.AsyncUnaryCall(Unary, null, options, "hello");
        if (random.Next(30) == 0)
        {
            call.Dispose();
        }

        await call.ResponseAsync;
        return nameof(StatusCode.OK);
    }

    private static async Task<string> StreamAsync(PoolingCallInvoker invoker, CallOptions options, Random random)
    {
        var end = random.Next(10); // 0 drops the call, 1 and 2 dispose it early
        switch (random.Next(3))
        {
            case 0:
                var server = invoker.AsyncServerStreamingCall(ServerStreaming, null, options, "hello");
                return await ReadAsync(server.ResponseStream, end, server.Dispose);
            case 1:
                var client = invoker.AsyncClientStreamingCall(ClientStreaming, null, options);

                // A connection that breaks fails the response too. Who is not there to see it, as on a bare channel, would leave it unseen.
                _ = client.ResponseAsync.ContinueWith(static response => response.Exception, TaskScheduler.Default);
                await client.RequestStream.WriteAsync("hello");
                if (end == 0 && random.Next(20) == 0)
                {
                    return "dropped"; // its lease comes back half a minute later
                }

                if (end < 3)
                {
                    client.Dispose();
                }

                await client.RequestStream.CompleteAsync();
                await client.ResponseAsync;
                return nameof(StatusCode.OK);
            default:
                var duplex = invoker.AsyncDuplexStreamingCall(Duplex, null, options);
                await duplex.RequestStream.WriteAsync("hello");
                await duplex.RequestStream.CompleteAsync();
                return await ReadAsync(duplex.ResponseStream, end, duplex.Dispose);
        }
    }

    private static async Task<string> ReadAsync(IAsyncStreamReader<string> responses, int end, Action dispose)
    {
        while (await responses.MoveNext(CancellationToken.None))
        {
            if (end == 0)
            {
                return "dropped";
            }

            if (end < 3)
            {
                dispose();
                return "disposed";
            }
        }

        dispose();
        return nameof(StatusCode.OK);
    }

    private static long Memory()
    {
        for (var i = 0; i < 3; i++)
        {
            GC.Collect(GC.MaxGeneration, GCCollectionMode.Forced, blocking: true, compacting: true);
            GC.WaitForPendingFinalizers();
        }

        return GC.GetTotalMemory(forceFullCollection: true);
    }

    private static int Setting(string name, int otherwise) =>
        Environment.GetEnvironmentVariable(name) is { Length: > 0 } value ? int.Parse(value, CultureInfo.InvariantCulture) : otherwise;
}

[CollectionDefinition(nameof(SoakTests), DisableParallelization = true)]
public sealed class SoakTestsRunAlone;

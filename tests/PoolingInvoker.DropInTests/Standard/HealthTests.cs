using Grpc.Core;
using Grpc.Health.V1;
using Grpc.Net.Client;
using PoolingInvoker.Testing;
using static Grpc.Health.V1.HealthCheckResponse.Types;

namespace PoolingInvoker.DropInTests.Standard;

/// <summary>The client of Grpc.HealthCheck.</summary>
public sealed class HealthTests(StandardServer server) : IClassFixture<StandardServer>
{
    public static TheoryData<PoolKind> EachPool => DropIn.EachPool;

    [Theory]
    [MemberData(nameof(EachPool))]
    public async Task Check(PoolKind pool)
    {
        var seen = await SameAsBareAsync(server, pool, async (client, service, transcript) =>
        {
            foreach (var status in new[] { ServingStatus.Serving, ServingStatus.NotServing })
            {
                server.SetStatus(service, status);
                transcript.Add($"{(await client.CheckAsync(new HealthCheckRequest { Service = service })).Status}");
                transcript.Add($"{client.Check(new HealthCheckRequest { Service = service }).Status}");
            }

            await transcript.StepAsync("unknown", async () => $"{await client.CheckAsync(new HealthCheckRequest { Service = "nobody" })}");
        });
        Assert.Equal(["Serving", "Serving", "NotServing", "NotServing", "unknown: NotFound '' []"], seen);
    }

    [Theory]
    [MemberData(nameof(EachPool))]
    public async Task Watch_LeftInTheMiddle(PoolKind pool)
    {
        var seen = await SameAsBareAsync(server, pool, async (client, service, transcript) =>
        {
            using var watch = client.Watch(new HealthCheckRequest { Service = service });
            await ReadAsync(watch, transcript);
            foreach (var status in new[] { ServingStatus.Serving, ServingStatus.NotServing })
            {
                server.SetStatus(service, status);
                await ReadAsync(watch, transcript);
            }

            // A read is under way when it is left.
            var next = watch.ResponseStream.MoveNext(CancellationToken.None);
            watch.Dispose();
            await transcript.StepAsync("next", async () => $"{await next}");
            transcript.Step("status", () => Transcript.Describe(watch.GetStatus()));
        });
        Assert.Equal(["ServiceUnknown", "Serving", "NotServing"], seen.Take(3));
        Assert.StartsWith("next: Cancelled ", seen[3], StringComparison.Ordinal);
    }

    [Theory]
    [MemberData(nameof(EachPool))]
    public async Task Watch_ThatIsCancelled(PoolKind pool)
    {
        var seen = await SameAsBareAsync(server, pool, static async (client, service, transcript) =>
        {
            using var cancellation = new CancellationTokenSource();
            using var watch = client.Watch(new HealthCheckRequest { Service = service }, cancellationToken: cancellation.Token);
            await ReadAsync(watch, transcript);
            var next = watch.ResponseStream.MoveNext(CancellationToken.None);
            await cancellation.CancelAsync();
            await transcript.StepAsync("next", async () => $"{await next}");
            transcript.Step("status", () => Transcript.Describe(watch.GetStatus()));
        });
        Assert.Equal("ServiceUnknown", seen[0]);
        Assert.StartsWith("next: Cancelled ", seen[1], StringComparison.Ordinal);
    }

    /// <summary>A server that stops says so to those who watch it.</summary>
    [Theory]
    [MemberData(nameof(EachPool))]
    public async Task Watch_WhoseServerStops(PoolKind kind)
    {
        var stopping = new StandardServer();
        await stopping.InitializeAsync();
        try
        {
            using var channel = GrpcChannel.ForAddress(stopping.Address);
            await using var pool = DropIn.NewPool(stopping.Address, kind);
            CallInvoker[] invokers = [channel.CreateCallInvoker(), pool];
            var watches = invokers.Select(static invoker => new Health.HealthClient(invoker).Watch(new HealthCheckRequest { Service = "any" })).ToList();
            var transcripts = new List<Transcript>();
            foreach (var watch in watches)
            {
                transcripts.Add(new Transcript());
                await ReadAsync(watch, transcripts[^1]).Soon();
            }

            var stopped = stopping.StopAsync();
            foreach (var (watch, transcript) in watches.Zip(transcripts))
            {
                await transcript.StepAsync("rest", async () => string.Join(", ", await watch.ResponseStream.ReadAllAsync().Select(static response => response.Status).ToListAsync().Soon()));
                transcript.Step("status", () => Transcript.Describe(watch.GetStatus()));
            }

            await stopped.Soon();
            Assert.Equal(transcripts[0].Lines, transcripts[1].Lines);
            await DropIn.NothingIsLeftAsync(pool);
        }
        finally
        {
            await stopping.DisposeAsync();
        }
    }

    private static Task<IReadOnlyList<string>> SameAsBareAsync(StandardServer server, PoolKind pool, Func<Health.HealthClient, string, Transcript, Task> converse) =>
        DropIn.SameAsBareAsync(server.Address, pool, (invoker, transcript) => converse(new Health.HealthClient(invoker), Guid.NewGuid().ToString(), transcript));

    private static async Task ReadAsync(AsyncServerStreamingCall<HealthCheckResponse> watch, Transcript transcript)
    {
        Assert.True(await watch.ResponseStream.MoveNext(CancellationToken.None));
        transcript.Add($"{watch.ResponseStream.Current.Status}");
    }
}

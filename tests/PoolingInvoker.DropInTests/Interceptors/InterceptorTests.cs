using Grpc.Core;
using Grpc.Core.Interceptors;
using Grpc.Net.Client;
using Microsoft.Extensions.Time.Testing;
using PoolingInvoker.DropInTests.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.DropInTests.Interceptors;

/// <summary>Interceptors that an application has above the pool.</summary>
public sealed class InterceptorTests(EchoServer server) : IClassFixture<EchoServer>
{
    public static TheoryData<PoolKind> EachPool => DropIn.EachPool;

    public static TheoryData<PoolKind, string> EachPoolAndMethod =>
        new MatrixTheoryData<PoolKind, string>(Enum.GetValues<PoolKind>(), ["blocking", "Say", "Repeat", "Join", "Chat"]);

    [Theory]
    [MemberData(nameof(EachPoolAndMethod))]
    public async Task AChain_SeesTheSame(PoolKind pool, string method)
    {
        var seen = await DropIn.SameAsBareAsync(server.Address, pool, async (invoker, transcript) =>
        {
            var (inner, outer) = (new TracingInterceptor("inner"), new TracingInterceptor("outer"));
            var client = new Echo.EchoClient(invoker.Intercept(inner).Intercept(outer));
            await TalkAsync(client, method, ["a", "b"], transcript);
            Add(inner, "inner", transcript);
            Add(outer, "outer", transcript);
        });
        if (method != "blocking")
        {
            Assert.Contains("headers: way=outer, inner, seen-by=inner, seen-by=outer", seen);
            Assert.Contains("trailers: " + (method is "Join" or "Chat" ? "requests=2" : "requests=1"), seen);
        }

        Assert.Contains(seen, static line => line.StartsWith("inner", StringComparison.Ordinal) && line.Contains("\"text\": \"a", StringComparison.Ordinal));
        Assert.Equal(
            seen.Count(static line => line.StartsWith("inner", StringComparison.Ordinal)),
            seen.Count(static line => line.StartsWith("outer", StringComparison.Ordinal)));
    }

    [Theory]
    [MemberData(nameof(EachPoolAndMethod))]
    public async Task AChain_SeesAnErrorStatus(PoolKind pool, string method)
    {
        var seen = await DropIn.SameAsBareAsync(server.Address, pool, async (invoker, transcript) =>
        {
            var (inner, outer) = (new TracingInterceptor("inner"), new TracingInterceptor("outer"));
            var client = new Echo.EchoClient(invoker.Intercept(inner).Intercept(outer));
            await TalkAsync(client, method, [EchoServer.Fail], transcript);
            Add(inner, "inner", transcript);
            Add(outer, "outer", transcript);
        });
        foreach (var who in new[] { "", "inner ", "outer " })
        {
            Assert.Contains(seen, line => line.StartsWith($"{who}failed: FailedPrecondition 'not now'", StringComparison.Ordinal));
        }
    }

    [Theory]
    [MemberData(nameof(EachPoolAndMethod))]
    public async Task WhatAnInterceptorThrows_BeforeTheCall_ReachesTheCaller(PoolKind pool, string method)
    {
        var seen = await DropIn.SameAsBareAsync(server.Address, pool, (invoker, transcript) =>
            TalkAsync(new Echo.EchoClient(invoker.Intercept(new ThrowingInterceptor(Where.BeforeTheCall))), method, ["a"], transcript));
        Assert.Equal(["failed: FormatException 'of the interceptor's'"], seen);
    }

    [Theory]
    [MemberData(nameof(EachPoolAndMethod))]
    public async Task WhatAnInterceptorThrows_OnTheHeaders_ReachesTheCaller(PoolKind pool, string method)
    {
        var seen = await DropIn.SameAsBareAsync(server.Address, pool, (invoker, transcript) =>
            TalkAsync(new Echo.EchoClient(invoker.Intercept(new ThrowingInterceptor(Where.OnTheHeaders)).Intercept(new TracingInterceptor("outer"))), method, ["a"], transcript));
        Assert.Equal(["failed: FormatException 'of the interceptor's'"], seen);
    }

    /// <summary>
    /// Nobody has the call to end it. A unary call ends by itself; a stream is found when it is collected, and ended then or, where its
    /// response might be awaited, some time later.
    /// </summary>
    [Theory]
    [MemberData(nameof(EachPoolAndMethod))]
    public async Task WhatAnInterceptorThrows_AfterTheStart_ReachesTheCaller_AndTheLeaseComesBack(PoolKind kind, string method)
    {
        var time = new FakeTimeProvider();
        await using var pool = DropIn.NewPool(server.Address, kind, time: time);
        await pool.ConnectAsync(); // a call that is dropped while it waits for a channel has no lease
        var transcript = new Transcript();
        await Task.Run(() => TalkAsync(new Echo.EchoClient(pool.Intercept(new ThrowingInterceptor(Where.AfterTheStart))), method, ["a"], transcript)).Soon();
        Assert.Equal(["failed: FormatException 'of the interceptor's'"], transcript.Lines);
        await Waiting.Until(() =>
        {
            GC.Collect();
            GC.WaitForPendingFinalizers();
            time.Advance(TimeSpan.FromSeconds(1));
            return pool.Pool.GetStatistics() is { CallsInFlight: 0, CallsWaiting: 0 };
        });
        Assert.Equal(method is "blocking" or "Say" ? 0 : 1, pool.Pool.GetStatistics().LeaksReclaimed);
    }

    [Theory]
    [MemberData(nameof(EachPoolAndMethod))]
    public async Task AChain_UnderWhichThePoolIsPut_Stays(PoolKind kind, string method)
    {
        // Nothing listens on the channel that there was.
        using var port = DropIn.HoldSilentPort(out var nowhere);
        using var existing = GrpcChannel.ForAddress(nowhere);
        await using var pool = DropIn.NewPool(server.Address, kind);
        var tracing = new TracingInterceptor("stays");
        var transcript = new Transcript();
        var invoker = existing.CreateCallInvoker().Intercept(new PoolingInterceptor(pool)).Intercept(tracing);
        await Task.Run(() => TalkAsync(new Echo.EchoClient(invoker), method, ["a", "b"], transcript)).Soon();
        Assert.DoesNotContain(transcript.Lines, static line => line.StartsWith("failed", StringComparison.Ordinal));
        Assert.Contains(tracing.Trace.Lines, static line => line.Contains("\"text\": \"a", StringComparison.Ordinal));
        await DropIn.NothingIsLeftAsync(pool);
        Assert.Equal(1, pool.Pool.GetStatistics().ChannelsCreated);
    }

    /// <summary>One call of the application's, in the middle of which it does not care that there are interceptors.</summary>
    private static Task TalkAsync(Echo.EchoClient client, string method, string[] texts, Transcript transcript) => TryAsync(transcript, async () =>
    {
        switch (method)
        {
            case "blocking":
                transcript.Add($"response {client.Say(new EchoMessage { Text = texts[0] })}");
                break;
            case "Say":
                using (var call = client.SayAsync(new EchoMessage { Text = texts[0] }))
                {
                    await EndAsync(call.ResponseHeadersAsync, async () => transcript.Add($"response {await call}"), call.GetStatus, call.GetTrailers, transcript);
                }

                break;
            case "Repeat":
                using (var call = client.Repeat(new EchoMessage { Text = texts[0] }))
                {
                    await EndAsync(call.ResponseHeadersAsync, () => ReadAsync(call.ResponseStream, transcript), call.GetStatus, call.GetTrailers, transcript);
                }

                break;
            case "Join":
                using (var call = client.Join())
                {
                    await WriteAsync(call.RequestStream, texts);
                    await EndAsync(call.ResponseHeadersAsync, async () => transcript.Add($"response {await call}"), call.GetStatus, call.GetTrailers, transcript);
                }

                break;
            default:
                using (var call = client.Chat())
                {
                    await WriteAsync(call.RequestStream, texts);
                    await EndAsync(call.ResponseHeadersAsync, () => ReadAsync(call.ResponseStream, transcript), call.GetStatus, call.GetTrailers, transcript);
                }

                break;
        }
    });

    private static async Task TryAsync(Transcript transcript, Func<Task> talk)
    {
        try
        {
            await talk();
        }
        catch (Exception exception)
        {
            transcript.Add($"failed: {Transcript.Describe(exception)}");
        }
    }

    // What ends the call is followed by its status and trailers. What an interceptor throws does not end it.
    private static async Task EndAsync(Task<Metadata> headers, Func<Task> end, Func<Status> getStatus, Func<Metadata> getTrailers, Transcript transcript)
    {
        try
        {
            await end();
            transcript.Add($"headers: {Transcript.Describe(await headers)}");
        }
        catch (RpcException)
        {
            AddEnd();
            throw;
        }

        AddEnd();

        void AddEnd()
        {
            transcript.Step("status", () => Transcript.Describe(getStatus()));
            transcript.Step("trailers", () => Transcript.Describe(getTrailers()));
        }
    }

    private static async Task WriteAsync(IClientStreamWriter<EchoMessage> requests, string[] texts)
    {
        foreach (var text in texts)
        {
            await requests.WriteAsync(new EchoMessage { Text = text });
        }

        await requests.CompleteAsync();
    }

    private static async Task ReadAsync(IAsyncStreamReader<EchoMessage> responses, Transcript transcript)
    {
        await foreach (var response in responses.ReadAllAsync())
        {
            transcript.Add($"response {response}");
        }
    }

    private static void Add(TracingInterceptor interceptor, string name, Transcript transcript)
    {
        foreach (var line in interceptor.Trace.Lines)
        {
            transcript.Add($"{name} {line}");
        }
    }
}

using System.Net.Sockets;
using System.Threading.Channels;
using Grpc.Core;
using PoolingInvoker.Testing;
using ProtoBuf.Grpc;
using ProtoBuf.Grpc.Client;

namespace PoolingInvoker.DropInTests.CodeFirst;

/// <summary>
/// The client of protobuf-net.Grpc: a proxy that it makes at run time. It captures headers before the response, and trailers after it.
/// </summary>
public sealed class CodeFirstTests(GreeterServer server) : IClassFixture<GreeterServer>
{
    public static TheoryData<PoolKind> EachPool => DropIn.EachPool;

    [Theory]
    [MemberData(nameof(EachPool))]
    public async Task Unary(PoolKind pool)
    {
        var seen = await SameAsBareAsync(pool, static async (greeter, transcript) =>
        {
            var context = NewContext();
            transcript.Add((await greeter.GreetAsync(new Greeting("Ann"), context)).Text);
            AddMetadata(context, transcript);
        });
        Assert.Equal(["hello Ann", "headers: said=first", "trailers: said=last", "status: OK ''"], seen);
    }

    [Theory]
    [MemberData(nameof(EachPool))]
    public async Task BlockingUnary(PoolKind pool)
    {
        var seen = await SameAsBareAsync(pool, static (greeter, transcript) =>
        {
            transcript.Add(greeter.GreetAtOnce(new Greeting("Ann")).Text);
            transcript.Step("failed", () => greeter.GreetAtOnce(new Greeting("Ann"), NewContext(GreeterServer.Fail)).Text);
            return Task.CompletedTask;
        });
        Assert.Equal(["hello Ann", "failed: FailedPrecondition 'not now' [said=last, why=because]"], seen);
    }

    [Theory]
    [MemberData(nameof(EachPool))]
    public async Task ServerStreaming(PoolKind pool)
    {
        var seen = await SameAsBareAsync(pool, static async (greeter, transcript) =>
        {
            var context = NewContext();
            await foreach (var greeting in greeter.GreetEachAsync(new Greeting("Ann Bob"), context))
            {
                transcript.Add($"{greeting.Text} ({Transcript.Describe(await context.ResponseHeadersAsync())})");
            }

            AddMetadata(context, transcript);
        });
        Assert.Equal(["hello Ann (said=first)", "hello Bob (said=first)", "headers: said=first", "trailers: said=last", "status: OK ''"], seen);
    }

    [Theory]
    [MemberData(nameof(EachPool))]
    public async Task ServerStreaming_LeftInTheMiddle(PoolKind pool)
    {
        var seen = await SameAsBareAsync(pool, async (greeter, transcript) =>
        {
            var id = NewId();
            await foreach (var greeting in greeter.GreetEachAsync(new Greeting("Ann Bob"), NewContext(GreeterServer.HangAfterHeaders, id)))
            {
                transcript.Add(greeting.Text);
                await server.Hangs(id);
                break;
            }
        });
        Assert.Equal(["hello Ann"], seen);
    }

    [Theory]
    [MemberData(nameof(EachPool))]
    public async Task ClientStreaming(PoolKind pool)
    {
        var seen = await SameAsBareAsync(pool, static async (greeter, transcript) =>
        {
            var context = NewContext();
            transcript.Add((await greeter.GreetTogetherAsync(Greetings("Ann", "Bob"), context)).Text);
            AddMetadata(context, transcript);
        });
        Assert.Equal(["hello Ann and Bob", "headers: said=first", "trailers: said=last", "status: OK ''"], seen);
    }

    [Theory]
    [MemberData(nameof(EachPool))]
    public async Task ClientStreaming_OfRequestsThatThrow(PoolKind pool)
    {
        var seen = await SameAsBareAsync(pool, static async (greeter, transcript) =>
        {
            var context = NewContext();
            await transcript.StepAsync("response", async () => (await greeter.GreetTogetherAsync(Failing(), context)).Text);
            AddMetadata(context, transcript);
        });
        Assert.Equal("response: FormatException 'of the user's'", seen[0]);

        static async IAsyncEnumerable<Greeting> Failing()
        {
            yield return new Greeting("Ann");
            await Task.Yield();
            throw new FormatException("of the user's");
        }
    }

    [Theory]
    [MemberData(nameof(EachPool))]
    public async Task Duplex_OneAfterTheOther(PoolKind pool)
    {
        var seen = await SameAsBareAsync(pool, static async (greeter, transcript) =>
        {
            var context = NewContext();
            var requests = Channel.CreateUnbounded<Greeting>();
            await requests.Writer.WriteAsync(new Greeting("Ann"));
            await foreach (var greeting in greeter.ConverseAsync(requests.Reader.ReadAllAsync(), context))
            {
                transcript.Add($"{greeting.Text} ({Transcript.Describe(await context.ResponseHeadersAsync())})");
                if (greeting.Text != "hello Bob")
                {
                    await requests.Writer.WriteAsync(new Greeting("Bob"));
                }
                else
                {
                    requests.Writer.Complete();
                }
            }

            AddMetadata(context, transcript);
        });
        Assert.Equal(["hello Ann (said=first)", "hello Bob (said=first)", "headers: said=first", "trailers: said=last", "status: OK ''"], seen);
    }

    [Theory]
    [MemberData(nameof(EachPool))]
    public async Task Duplex_BothWaysAtATime(PoolKind pool)
    {
        const int Count = 500;
        var seen = await SameAsBareAsync(pool, static async (greeter, transcript) =>
        {
            var texts = Enumerable.Range(0, Count).Select(static number => $"{number}").ToArray();
            await foreach (var greeting in greeter.ConverseAsync(Greetings(texts)))
            {
                transcript.Add(greeting.Text);
            }
        });
        Assert.Equal(Enumerable.Range(0, Count).Select(static number => $"hello {number}"), seen);
    }

    [Theory]
    [MemberData(nameof(EachPool))]
    public async Task Duplex_LeftInTheMiddle(PoolKind pool)
    {
        var seen = await SameAsBareAsync(pool, static async (greeter, transcript) =>
        {
            var requests = Channel.CreateUnbounded<Greeting>();
            await requests.Writer.WriteAsync(new Greeting("Ann"));
            await foreach (var greeting in greeter.ConverseAsync(requests.Reader.ReadAllAsync(), NewContext()))
            {
                transcript.Add(greeting.Text);
                break;
            }

            requests.Writer.Complete();
        });
        Assert.Equal(["hello Ann"], seen);
    }

    [Theory]
    [MemberData(nameof(EachPool))]
    public async Task ErrorStatus(PoolKind pool)
    {
        var seen = await SameAsBareAsync(pool, static (greeter, transcript) => OfEachKindAsync(greeter, transcript, static () => NewContext(GreeterServer.Fail), sendsBeforeHeaders: true));
        EachCallGave("FailedPrecondition 'not now' [said=last, why=because]", 4, seen);
    }

    [Theory]
    [MemberData(nameof(EachPool))]
    public async Task ErrorStatus_AfterHeadersAndMessages(PoolKind pool)
    {
        var seen = await SameAsBareAsync(pool, static (greeter, transcript) => OfEachKindAsync(greeter, transcript, static () => NewContext(GreeterServer.FailLate)));
        EachCallGave("FailedPrecondition 'no more' [said=last, why=because]", 4, seen);
    }

    [Theory]
    [MemberData(nameof(EachPool))]
    public async Task Cancellation(PoolKind pool)
    {
        Func<IGreeter, CallContext, Task>[] kinds =
        [
            static (greeter, context) => greeter.GreetAsync(new Greeting("Ann"), context).AsTask(),
            static (greeter, context) => greeter.GreetTogetherAsync(Greetings("Ann", "Bob"), context).AsTask(),
            static (greeter, context) => CountAsync(greeter.GreetEachAsync(new Greeting("Ann Bob"), context)),
            static (greeter, context) => CountAsync(greeter.ConverseAsync(Greetings("Ann", "Bob"), context)),
        ];
        var seen = await SameAsBareAsync(pool, async (greeter, transcript) =>
        {
            foreach (var where in new[] { GreeterServer.HangBeforeHeaders, GreeterServer.HangAfterHeaders })
            {
                foreach (var kind in kinds)
                {
                    using var cancellation = new CancellationTokenSource();
                    var id = NewId();
                    var context = NewContext(where, id, cancellationToken: cancellation.Token);
                    var call = kind(greeter, context);
                    await server.Hangs(id);
                    var headers = where == GreeterServer.HangAfterHeaders ? Transcript.Describe(await context.ResponseHeadersAsync()) : "none";
                    await cancellation.CancelAsync();

                    transcript.Add($"{headers}, {Cancellation(await Assert.ThrowsAnyAsync<Exception>(() => call))}");
                }
            }
        });
        Assert.Equal([.. Enumerable.Repeat("none, cancelled", 4), .. Enumerable.Repeat("said=first, cancelled", 4)], seen);

        // It is chance, on a bare channel too: the proxy looks at the token itself between its steps, and a channel that is cancelled as
        // it begins to read finds its response in whatever state the disposal of it has reached.
        static string Cancellation(Exception exception) => exception is OperationCanceledException
            or RpcException { StatusCode: StatusCode.Cancelled }
            or RpcException { StatusCode: StatusCode.Internal or StatusCode.Unavailable, Status.DebugException: not null } ? "cancelled" : Transcript.Describe(exception);
    }

    [Theory]
    [MemberData(nameof(EachPool))]
    public async Task Deadline(PoolKind pool)
    {
        var seen = await SameAsBareAsync(pool, static async (greeter, transcript) =>
        {
            // A call that waits for its lease has no headers yet when its deadline comes.
            await OfEachKindAsync(greeter, transcript, static () => NewContext(GreeterServer.HangBeforeHeaders, NewId(), deadline: TimeSpan.FromMilliseconds(300)));
        });
        EachCallGave("DeadlineExceeded ", 4, seen);
    }

    [Theory]
    [MemberData(nameof(EachPool))]
    public async Task CancelledBeforeTheStart(PoolKind pool)
    {
        var seen = await SameAsBareAsync(pool, static async (greeter, transcript) =>
            await OfEachKindAsync(greeter, transcript, static () => NewContext(cancellationToken: new CancellationToken(canceled: true))));
        Assert.Equal(4, seen.Count(IsCall));
    }

    [Theory]
    [MemberData(nameof(EachPool))]
    public async Task AnAnswerThatSaysTryAgain_IsNotFollowed_ByAMethodWithoutADescriptor(PoolKind pool)
    {
        var ids = new List<string>();
        var seen = await SameAsBareAsync(pool, async (greeter, transcript) => await OfEachKindAsync(greeter, transcript, () =>
        {
            ids.Add(NewId());
            return NewContext(GreeterServer.Unavailable, ids[^1]);
        }, sendsBeforeHeaders: true));
        EachCallGave("Unavailable 'try again'", 4, seen);
        Assert.All(ids, id => Assert.Equal(1, server.Arrived(id)));
    }

    [Theory]
    [MemberData(nameof(EachPool))]
    public async Task AnIdempotentMethod_IsTriedAgain(PoolKind kind)
    {
        await using var pool = DropIn.NewPool(server.Address, kind, static method => method.ServiceName == "dropin.v1.Greeter");
        var greeter = pool.CreateGrpcService<IGreeter>();
        var (first, second) = (NewId(), NewId());

        // Headers that were read would be seen already.
        Assert.Equal("hello Ann", (await greeter.GreetAsync(new Greeting("Ann"), NewContext(GreeterServer.UnavailableTwice, first).CallOptions).Soon()).Text);

        var texts = new List<string>();
        await foreach (var greeting in greeter.GreetEachAsync(new Greeting("Ann Bob"), NewContext(GreeterServer.UnavailableTwice, second).CallOptions))
        {
            texts.Add(greeting.Text);
        }

        Assert.Equal(["hello Ann", "hello Bob"], texts);
        Assert.Equal((3, 3), (server.Arrived(first), server.Arrived(second)));
        Assert.Equal(4, pool.Pool.GetStatistics().Retries);
        await DropIn.NothingIsLeftAsync(pool);
    }

    [Theory]
    [MemberData(nameof(EachPool))]
    public async Task NobodyListens(PoolKind pool)
    {
        using var port = DropIn.HoldSilentPort(out var address);
        var seen = await DropIn.SameAsBareAsync(
            address,
            pool,
            static (invoker, transcript) => OfEachKindAsync(invoker.CreateGrpcService<IGreeter>(), transcript, static () => NewContext()),
            static statistics => Assert.True(statistics.Retries > 0),
            new SocketsHttpHandler { ConnectCallback = ConnectAsync });
        EachCallGave("Unavailable 'Error", 4, seen);

        // A channel whose handler connects, as the pool's do: Grpc.Net.Client has words of its own where it connects by itself.
        static async ValueTask<Stream> ConnectAsync(SocketsHttpConnectionContext context, CancellationToken cancellationToken)
        {
            using var socket = new Socket(SocketType.Stream, ProtocolType.Tcp);
            await socket.ConnectAsync(context.DnsEndPoint, cancellationToken);
            throw new InvalidOperationException("Somebody listens.");
        }
    }

    [Fact]
    public async Task ManyAtATime()
    {
        await using var pool = PoolingCallInvoker.ForAddress(server.Address, new PoolingCallInvokerOptions
        {
            Pool = { MaxPoolSize = 4, MaxConcurrentCallsPerChannel = 10 },
        });
        var greeter = pool.CreateGrpcService<IGreeter>();
        var calls = Enumerable.Range(0, 400).Select(number => Task.Run(async () =>
        {
            var name = $"{number}";
            switch (number % 4)
            {
                case 0:
                    Assert.Equal($"hello {name}", (await greeter.GreetAsync(new Greeting(name), NewContext())).Text);
                    break;
                case 1:
                    Assert.Equal($"hello {name} and {name}", (await greeter.GreetTogetherAsync(Greetings(name, name), NewContext())).Text);
                    break;
                case 2:
                    Assert.Equal(2, await CountAsync(greeter.GreetEachAsync(new Greeting($"{name} {name}"), NewContext())));
                    break;
                default:
                    Assert.Equal(3, await CountAsync(greeter.ConverseAsync(Greetings(name, name, name), NewContext())));
                    break;
            }
        }));
        await Task.WhenAll(calls).Soon();
        Assert.Equal(0, pool.Pool.GetStatistics().Retries);
        Assert.InRange(pool.Pool.GetStatistics().ChannelsCreated, 1, 4);
        await DropIn.NothingIsLeftAsync(pool);
    }

    [Fact]
    public async Task OverTheInvokerAsAChannel()
    {
        await using var pool = PoolingCallInvoker.ForAddress(server.Address);
        var greeter = pool.AsChannel().CreateGrpcService<IGreeter>();
        Assert.Equal("hello Ann", (await greeter.GreetAsync(new Greeting("Ann")).Soon()).Text);
        await DropIn.NothingIsLeftAsync(pool);
    }

    private Task<IReadOnlyList<string>> SameAsBareAsync(PoolKind pool, Func<IGreeter, Transcript, Task> converse) =>
        DropIn.SameAsBareAsync(server.Address, pool, (invoker, transcript) => converse(invoker.CreateGrpcService<IGreeter>(), transcript));

    /// <summary>One call of each kind that does not block, and what it captures.</summary>
    /// <param name="greeter">The client.</param>
    /// <param name="transcript">Where it is written down.</param>
    /// <param name="newContext">Makes the context of each call.</param>
    /// <param name="sendsBeforeHeaders">Whether a stream of requests is sent to its end, whatever comes back: with captured metadata the headers are waited for.</param>
    private static async Task OfEachKindAsync(IGreeter greeter, Transcript transcript, Func<CallContext> newContext, bool sendsBeforeHeaders = false)
    {
        var context = newContext();
        await transcript.StepAsync("unary", async () => (await greeter.GreetAsync(new Greeting("Ann"), context)).Text);
        AddMetadata(context, transcript);

        context = sendsBeforeHeaders ? newContext().CallOptions : newContext();
        await transcript.StepAsync("client streaming", async () => (await greeter.GreetTogetherAsync(Greetings("Ann", "Bob"), context)).Text);
        if (!sendsBeforeHeaders)
        {
            AddMetadata(context, transcript);
        }

        context = newContext();
        await transcript.StepAsync("server streaming", async () => $"{await CountAsync(greeter.GreetEachAsync(new Greeting("Ann Bob"), context))}");
        AddMetadata(context, transcript);

        context = newContext();
        await transcript.StepAsync("duplex", async () => $"{await CountAsync(greeter.ConverseAsync(Greetings("Ann", "Bob"), context))}");
        AddMetadata(context, transcript);
    }

    private static bool IsCall(string line) => line.Split(':')[0] is "unary" or "client streaming" or "server streaming" or "duplex";

    private static void EachCallGave(string what, int calls, IEnumerable<string> seen)
    {
        var gave = seen.Where(IsCall).ToList();
        Assert.Equal(calls, gave.Count);
        Assert.All(gave, line => Assert.Contains($": {what}", line, StringComparison.Ordinal));
    }

    private static void AddMetadata(CallContext context, Transcript transcript)
    {
        // A call that is over has them, or never will.
        var headers = context.ResponseHeadersAsync().AsTask();
        transcript.Step("headers", () => headers.IsCompleted ? Transcript.Describe(headers.GetAwaiter().GetResult()) : "none");
        transcript.Step("trailers", () => Transcript.Describe(context.ResponseTrailers()));
        transcript.Step("status", () => Transcript.Describe(context.ResponseStatus()));
    }

    private static async Task<int> CountAsync(IAsyncEnumerable<Greeting> greetings)
    {
        var count = 0;
        await foreach (var _ in greetings)
        {
            count++;
        }

        return count;
    }

    private static async IAsyncEnumerable<Greeting> Greetings(params string[] texts)
    {
        foreach (var text in texts)
        {
            await Task.Yield();
            yield return new Greeting(text);
        }
    }

    private static CallContext NewContext(string what = "", string id = "", TimeSpan? deadline = null, CancellationToken cancellationToken = default) => new(
        new CallOptions(new Metadata { { "do", what }, { "id", id } }, deadline is { } due ? DateTime.UtcNow + due : null, cancellationToken),
        CallContextFlags.CaptureMetadata);

    private static string NewId() => Guid.NewGuid().ToString();
}

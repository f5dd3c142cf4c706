using System.Collections.Concurrent;
using System.Diagnostics;
using Grpc.Core;
using Grpc.Core.Interceptors;
using Grpc.Net.Client.Configuration;
using OpenTelemetry.Trace;
using PoolingInvoker.Demo.Servers;
using PoolingInvoker.FunctionalTests;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.TelemetryTests;

/// <summary>What an exporter gets of calls to a real server.</summary>
public sealed class SpanTests
{
    private const string GetName = "user.v1.User/GetName";

    public static TheoryData<string> WaysToListenToGrpcNetClient => ["AddSource", "AddGrpcClientInstrumentation"];

    [Fact]
    public async Task ACall_IsOneSpan_AndItsAttemptsAreNumberedBelowIt()
    {
        await using var server = await FailingOnceAsync();
        using var spans = new Spans();
        await using var invoker = PoolingCallInvoker.ForAddress(server.Address, NewOptions());
        await new User.UserClient(invoker).GetNameAsync(new GetNameRequest()).ResponseAsync.Soon();

        var call = await spans.CallAsync();
        Assert.Equal((GetName, ActivityKind.Client, "PoolingInvoker"), (call.DisplayName, call.Kind, call.Source.Name));
        Assert.Equal(ActivityStatusCode.Unset, call.Status);
        var attempts = await spans.AttemptsAsync(2);
        Assert.All(attempts, attempt => Assert.Equal(($"Attempt.{GetName}", ActivityKind.Client, "PoolingInvoker"), (attempt.DisplayName, attempt.Kind, attempt.Source.Name)));
        Assert.Equal([(1, "first"), (2, "retry")], attempts.Select(NumberAndKind));
        Assert.Equal([(ActivityStatusCode.Error, "UNAVAILABLE", "UNAVAILABLE"), (ActivityStatusCode.Unset, "OK", null)], attempts.Select(Outcome));
        Assert.Equal("test", attempts[0].StatusDescription);
        foreach (var span in (Activity[])[call, .. attempts])
        {
            Assert.Equal("grpc", span.GetTagItem("rpc.system.name"));
            Assert.Equal(GetName, span.GetTagItem("rpc.method"));
            Assert.Equal(("test", "127.0.0.1", server.Address.Port), (span.GetTagItem("pool.name"), span.GetTagItem("server.address"), span.GetTagItem("server.port")));
            Assert.Equal(server.Address.Authority, span.GetTagItem("pool.endpoint"));
        }

        Assert.Equal(attempts[1].GetTagItem("pool.channel.id"), call.GetTagItem("pool.channel.id"));
        Assert.Contains(attempts[0].GetTagItem("pool.channel.id"), invoker.Pool.GetChannels().Select(static channel => (object)channel.Id));
        Assert.True(call.StartTimeUtc <= attempts[0].StartTimeUtc && call.StartTimeUtc + call.Duration >= attempts[1].StartTimeUtc + attempts[1].Duration);
    }

    /// <summary>As in a loop that a request has begun, and that outlives it.</summary>
    [Fact]
    public async Task ACallerWhoseSpanHasEnded_KeepsIt()
    {
        await using var server = await FailingOnceAsync();
        using var spans = new Spans();
        await using var invoker = PoolingCallInvoker.ForAddress(server.Address, NewOptions());
        using var ended = new Activity("request").Start();
        await Task.Run(async () =>
        {
            await Task.Run(ended.Stop);
            var client = new User.UserClient(invoker);
            for (var i = 0; i < 3; i++)
            {
                await client.GetNameAsync(new GetNameRequest()).ResponseAsync.Soon();
                Assert.Same(ended, Activity.Current);
            }
        });
    }

    [Fact]
    public async Task AHedge_IsToldFromARetry()
    {
        var answer = new TaskCompletionSource();
        var calls = 0;
        await using var server = await HttpServer.StartAsync(async context =>
        {
            if (Interlocked.Increment(ref calls) == 1)
            {
                await answer.Task.WaitAsync(context.RequestAborted).ConfigureAwait(ConfigureAwaitOptions.SuppressThrowing);
            }

            await HttpServer.ReplyAsync(context, []);
        });
        using var spans = new Spans();
        await using var invoker = PoolingCallInvoker.ForAddress(server.Address, NewOptions(static options => options.MethodConfigs.Add(new PooledMethodConfig
        {
            Names = { MethodName.Default },
            Hedging = new ChannelHedgingStrategyOptions { Delay = TimeSpan.Zero, MaxHedgedAttempts = 1 },
        })));
        await new User.UserClient(invoker).GetNameAsync(new GetNameRequest()).ResponseAsync.Soon();

        var attempts = await spans.AttemptsAsync(2);
        Assert.Equal([(1, "first"), (2, "hedge")], attempts.Select(NumberAndKind));
        Assert.Single(attempts, static attempt => "OK".Equals(attempt.GetTagItem("rpc.status_code")));
        Assert.Single(attempts, static attempt => "CANCELLED".Equals(attempt.GetTagItem("rpc.status_code")));
        Assert.Equal((ActivityStatusCode.Unset, "OK", null), Outcome(await spans.CallAsync()));
        answer.SetResult();
    }

    [Theory]
    [MemberData(nameof(WaysToListenToGrpcNetClient))]
    public async Task WhereGrpcNetClientIsListenedTo_ItsSpansAreTheAttempts(string how)
    {
        await using var server = await FailingOnceAsync();
        using var spans = new Spans(builder => _ = how == "AddSource" ? builder.AddSource("Grpc.Net.Client") : builder.AddGrpcClientInstrumentation());
        await using var invoker = PoolingCallInvoker.ForAddress(server.Address, NewOptions());
        await new User.UserClient(invoker).GetNameAsync(new GetNameRequest()).ResponseAsync.Soon();

        var attempts = await spans.AttemptsAsync(2);
        Assert.All(attempts, static attempt => Assert.Equal("Grpc.Net.Client.GrpcOut", attempt.OperationName));
        Assert.Equal([(1, "first"), (2, "retry")], attempts.Select(NumberAndKind));
        Assert.All(attempts, attempt => Assert.Equal(server.Address.Authority, attempt.GetTagItem("pool.endpoint")));
        Assert.Equal(3, spans.Ended.Count); // and no twins
    }

    [Fact]
    public async Task WhatComesBelowAnAttempt_HasASpanThatIsExportedForItsParent()
    {
        var seen = new ConcurrentQueue<string>();
        await using var server = await HttpServer.StartAsync(context =>
        {
            seen.Enqueue($"{context.Request.Headers.TraceParent}");
            return HttpServer.ReplyAsync(context, []);
        });
        using var spans = new Spans(static builder => builder.AddHttpClientInstrumentation());
        await using var invoker = PoolingCallInvoker.ForAddress(server.Address, NewOptions());
        await new User.UserClient(invoker).GetNameAsync(new GetNameRequest()).ResponseAsync.Soon();

        var attempt = Assert.Single(await spans.AttemptsAsync(1));
        await Waiting.Until(() => spans.Below(attempt).Count == 1);
        Assert.Equal($"00-{spans.Root.TraceId}-{spans.Below(attempt)[0].SpanId}-01", Assert.Single(seen));
    }

    [Theory]
    [InlineData("GetName")]
    [InlineData("BlockingGetName")]
    [InlineData("ListNames")]
    [InlineData("ImportNames")]
    [InlineData("Chat")]
    public async Task EachKindOfCall_HasOneSpan_UntilItsEnd(string kind)
    {
        await using var server = await UserServer.StartAsync("one");
        using var spans = new Spans();
        await using var invoker = PoolingCallInvoker.ForAddress(server.Address, NewOptions());
        var client = new User.UserClient(invoker);
        switch (kind)
        {
            case "GetName":
                await client.GetNameAsync(new GetNameRequest()).ResponseAsync.Soon();
                break;
            case "BlockingGetName":
                client.GetName(new GetNameRequest());
                break;
            case "ListNames":
                using (var list = client.ListNames(new ListNamesRequest { Count = 2 }))
                {
                    Assert.True(await list.ResponseStream.MoveNext().Soon());
                    Assert.Empty(spans.Ended);
                    while (await list.ResponseStream.MoveNext().Soon())
                    {
                    }
                }

                break;
            case "ImportNames":
                using (var import = client.ImportNames())
                {
                    await import.RequestStream.WriteAsync(new ImportNameRequest()).Soon();
                    Assert.Empty(spans.Ended);
                    await import.RequestStream.CompleteAsync().Soon();
                    await import.ResponseAsync.Soon();
                }

                break;
            default:
                using (var chat = client.Chat())
                {
                    await chat.RequestStream.WriteAsync(new ChatMessage()).Soon();
                    Assert.True(await chat.ResponseStream.MoveNext().Soon());
                    Assert.Empty(spans.Ended);
                    await chat.RequestStream.CompleteAsync().Soon();
                    Assert.False(await chat.ResponseStream.MoveNext().Soon());
                }

                break;
        }

        Assert.Equal((ActivityStatusCode.Unset, "OK", null), Outcome(await spans.CallAsync()));
        Assert.Equal((ActivityStatusCode.Unset, "OK", null), Outcome(Assert.Single(await spans.AttemptsAsync(1))));
        Assert.Equal(2, spans.Ended.Count);
        Assert.Equal(spans.Root, Activity.Current);
    }

    [Theory]
    [InlineData("Dispose", "CANCELLED")]
    [InlineData("Token", "CANCELLED")]
    [InlineData("Deadline", "DEADLINE_EXCEEDED")]
    public async Task AStreamThatItsCallerEnds_EndsItsSpan(string by, string status)
    {
        await using var server = await UserServer.StartAsync("one");
        using var spans = new Spans();
        await using var invoker = PoolingCallInvoker.ForAddress(server.Address, NewOptions());
        using var stop = new CancellationTokenSource();
        var deadline = by == "Deadline" ? TimeProvider.System.GetUtcNow().UtcDateTime.AddSeconds(1) : default(DateTime?);
        using var chat = new User.UserClient(invoker).Chat(deadline: deadline, cancellationToken: stop.Token);
        await chat.RequestStream.WriteAsync(new ChatMessage()).Soon();
        Assert.True(await chat.ResponseStream.MoveNext().Soon());
        using (var own = new Activity("begun meanwhile").Start())
        {
            if (by == "Dispose")
            {
                chat.Dispose();
            }

            if (by == "Token")
            {
                await stop.CancelAsync();
            }

            await spans.CallAsync();
            Assert.Equal(own, Activity.Current); // whatever ended meanwhile
        }

        Assert.Equal((ActivityStatusCode.Error, status, status), Outcome(await spans.CallAsync()));
        await spans.AttemptsAsync(1);
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public async Task ADeadline_IsToldAsOne_WhateverTheCallThrows(bool throwsOperationCanceled)
    {
        var answer = new TaskCompletionSource();
        await using var server = await HttpServer.StartAsync(context => answer.Task.WaitAsync(context.RequestAborted));
        using var spans = new Spans();
        await using var invoker = PoolingCallInvoker.ForAddress(server.Address, NewOptions(options =>
            options.Pool.ConfigureChannel = channel => channel.ThrowOperationCanceledOnCancellation = throwsOperationCanceled));
        var call = new User.UserClient(invoker).GetNameAsync(new GetNameRequest(), deadline: TimeProvider.System.GetUtcNow().UtcDateTime.AddSeconds(1));
        var thrown = await Assert.ThrowsAnyAsync<Exception>(() => call.ResponseAsync).Soon();
        Assert.Equal(throwsOperationCanceled, thrown is OperationCanceledException);
        Assert.Equal((ActivityStatusCode.Error, "DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED"), Outcome(await spans.CallAsync()));
        answer.SetResult();
    }

    [Fact]
    public async Task ACallThatGetsNoChannel_HasASpanWithoutAttempts()
    {
        using var spans = new Spans();
        await using var invoker = PoolingCallInvoker.ForAddress("http://127.0.0.1:5000", NewOptions(static options => options.Pool.AcquireTimeout = TimeSpan.Zero));
        invoker.Dispose();
        Assert.Throws<ObjectDisposedException>(() => new User.UserClient(invoker).GetName(new GetNameRequest()));
        Assert.Equal((ActivityStatusCode.Error, "UNKNOWN", "System.ObjectDisposedException"), Outcome(await spans.CallAsync()));
        Assert.Single(spans.Ended);
    }

    [Fact]
    public async Task WhatThePoolDoesOfItsOwn_IsInNoTraceOfACaller()
    {
        var primed = new ConcurrentQueue<Activity?>();
        await using var server = await UserServer.StartAsync("one");
        using var spans = new Spans(static builder => builder.AddSource("Grpc.Net.Client").AddSource("System.Net.Http", "Experimental.System.Net.*"));
        await using var invoker = PoolingCallInvoker.ForAddress(server.Address, NewOptions(options =>
        {
            options.Pool.MinPoolSize = 2;
            options.Pool.TargetConcurrentCallsPerChannel = 1;
            options.Pool.PrimeCallback = async (channel, token) =>
            {
                primed.Enqueue(Activity.Current);
                await new User.UserClient(channel).GetNameAsync(new GetNameRequest(), cancellationToken: token);
            };
        }));
        await Task.WhenAll(Enumerable.Range(0, 8).Select(_ => new User.UserClient(invoker).GetNameAsync(new GetNameRequest { DelayMs = 1 }).ResponseAsync)).Soon();
        await Waiting.Until(() => primed.Count >= 2);

        Assert.All(primed, Assert.Null);
        Assert.Equal(8, spans.Below(spans.Root).Count);
        Assert.Equal(8 * 3, spans.Ended.Count); // the call, its attempt, and the request
    }

    [Fact]
    public async Task AListenerThatThrows_CostsNoCall_AndNoLease()
    {
        await using var server = await UserServer.StartAsync("one");
        using var listener = new ActivityListener
        {
            ShouldListenTo = static source => source.Name == "PoolingInvoker",
            Sample = static (ref ActivityCreationOptions<ActivityContext> _) => ActivitySamplingResult.AllDataAndRecorded,
            ActivityStarted = static _ => throw new InvalidOperationException("started"),
            ActivityStopped = static _ => throw new InvalidOperationException("stopped"),
        };
        ActivitySource.AddActivityListener(listener);
        await using var invoker = PoolingCallInvoker.ForAddress(server.Address, NewOptions());
        var client = new User.UserClient(invoker);
        Assert.Equal("user-7", (await client.GetNameAsync(new GetNameRequest { Id = 7 }).ResponseAsync.Soon()).Name);
        using (var list = client.ListNames(new ListNamesRequest { Count = 1 }))
        {
            Assert.True(await list.ResponseStream.MoveNext().Soon());
            Assert.False(await list.ResponseStream.MoveNext().Soon());
        }

        Assert.Null(Activity.Current);
        await Waiting.Until(() => invoker.Pool.GetStatistics().CallsInFlight == 0);
    }

    [Fact]
    public async Task ACallThatIsListenedTo_ThrowsNothingInside()
    {
        await using var server = await UserServer.StartAsync("one");
        using var spans = new Spans();
        await using var invoker = PoolingCallInvoker.ForAddress(server.Address, NewOptions());
        var thrown = new ConcurrentQueue<string>();
        AppDomain.CurrentDomain.FirstChanceException += Throws;
        try
        {
            await new User.UserClient(invoker).GetNameAsync(new GetNameRequest()).ResponseAsync.Soon();
            await spans.AttemptsAsync(1);
        }
        finally
        {
            AppDomain.CurrentDomain.FirstChanceException -= Throws;
        }

        Assert.Empty(thrown);

        void Throws(object? sender, System.Runtime.ExceptionServices.FirstChanceExceptionEventArgs one)
        {
            if (one.Exception.Message.Contains(nameof(Activity), StringComparison.Ordinal))
            {
                thrown.Enqueue(one.Exception.Message);
            }
        }
    }

    [Fact]
    public async Task InterceptorsAboveThePool_AreInTheSpanOfTheCaller()
    {
        await using var server = await UserServer.StartAsync("one");
        using var spans = new Spans();
        await using var invoker = PoolingCallInvoker.ForAddress(server.Address, NewOptions());
        Activity? seen = null;
        var client = new User.UserClient(invoker.Intercept(metadata =>
        {
            seen = Activity.Current;
            return metadata;
        }));
        await client.GetNameAsync(new GetNameRequest()).ResponseAsync.Soon();
        Assert.Equal(spans.Root, seen);
    }

    private static (object? Number, object? Kind) NumberAndKind(Activity span) => (span.GetTagItem("pool.attempt.number"), span.GetTagItem("pool.attempt.kind"));

    private static (ActivityStatusCode Status, object? Code, object? Error) Outcome(Activity span) =>
        (span.Status, span.GetTagItem("rpc.status_code"), span.GetTagItem("error.type"));

    private static PoolingCallInvokerOptions NewOptions(Action<PoolingCallInvokerOptions>? configure = null)
    {
        var options = new PoolingCallInvokerOptions { Pool = { Name = "test", DrainTimeout = TimeSpan.Zero }, Retry = { Delay = TimeSpan.FromMilliseconds(1) } };
        configure?.Invoke(options);
        return options;
    }

    private static Task<HttpServer> FailingOnceAsync()
    {
        var calls = 0;
        return HttpServer.StartAsync(context =>
        {
            if (Interlocked.Increment(ref calls) > 1)
            {
                return HttpServer.ReplyAsync(context, []);
            }

            context.Response.ContentType = "application/grpc";
            context.Response.Headers.GrpcStatus = "14";
            context.Response.Headers.GrpcMessage = "test";
            return Task.CompletedTask;
        });
    }
}

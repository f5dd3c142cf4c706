using System.Collections.Concurrent;
using Google.Protobuf;
using Grpc.Core;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.Tests.Calls;

/// <summary>Requests of a stream that are written again to the next attempt, until the call is committed.</summary>
public sealed class ReplayTests : ScriptedCalls
{
    private const MethodType ClientStreaming = MethodType.ClientStreaming;
    private const MethodType Duplex = MethodType.DuplexStreaming;

    private readonly ConcurrentQueue<string> _serialized = new();

    private Action<string>? OnSerialize { get; set; }

    [Theory]
    [InlineData(ClientStreaming, "Idempotent", "broken")]
    [InlineData(Duplex, "Idempotent", "broken")]
    [InlineData(ClientStreaming, "Plain", "refused stream")]
    [InlineData(Duplex, "Plain", "refused stream")]
    public async Task WhatWasWritten_GoesToTheNextAttempt_AndTheCallGoesOn(MethodType kind, string method, string fault)
    {
        var end = new TaskCompletionSource();
        var answer = new TaskCompletionSource();
        Server.ThenBreakWhen(end.Task, fault == "broken" ? null : RefusedStream()).ThenReplyAfter(answer.Task, Text("answer"));
        var (call, pool) = Start(kind, method);
        await call.WriteAsync("1", "2", "", "3");
        Assert.Equal(["1", "2", "", "3"], Texts(0));

        end.SetResult();
        await Elapse(() => Server.Sent is [_, { Messages.Count: 4 }]);
        await call.WriteAsync("4", "5");
        Assert.Equal(["1", "2", "", "3", "4", "5"], Texts(1));
        Assert.False(Server.Sent[1].IsComplete);
        await call.Requests.CompleteAsync().Soon();
        await Waiting.Until(() => Server.Sent[1].IsComplete);

        answer.SetResult();
        Assert.Equal(["answer"], await call.ReadToEndAsync());
        Assert.Equal(["1", "2", "", "3", "4", "5"], _serialized);
        Assert.Equal(1, pool.GetStatistics().Retries);
        Assert.Equal(0, Taken(pool));
    }

    [Theory]
    [InlineData(ClientStreaming)]
    [InlineData(Duplex)]
    public async Task AWriterThatMeetsLessThanWhatEndsTheAttempt_LeavesTheVerdictToThat(MethodType kind)
    {
        // As with a GOAWAY that excludes the call: to the writer the connection was closed, and the call was refused.
        var end = new TaskCompletionSource();
        var closed = Task.FromException(new IOException("aborted", new HttpProtocolException(0, "closed", innerException: null)));
        Server.ThenBreakWhen(end.Task, RefusedStream(), taken: write => write == 0 ? Task.CompletedTask : closed).ThenReplyAfterRequests(Text("answer"));
        var (call, pool) = Start(kind, "Plain");
        await call.WriteAsync("1");
        var writing = call.Requests.WriteAsync(Text("2"));
        end.SetResult();
        await Elapse(writing);
        await writing.Soon();
        await call.Requests.CompleteAsync().Soon();
        Assert.Equal(["answer"], await call.ReadToEndAsync());
        Assert.Equal(["1", "2"], Texts(1));
        Assert.Equal(1, pool.GetStatistics().Retries);
    }

    [Theory]
    [InlineData(ClientStreaming)]
    [InlineData(Duplex)]
    public async Task WhatMayHaveRun_AndIsNotIdempotent_IsNotSentAgain(MethodType kind)
    {
        var end = new TaskCompletionSource();
        Server.ThenBreakWhen(end.Task);
        var (call, pool) = Start(kind, "Plain");
        await call.WriteAsync("1", "2");
        var reading = call.ReadToEndAsync();
        end.SetResult();
        var exception = await Assert.ThrowsAsync<RpcException>(() => reading);
        Assert.Equal(StatusCode.Unavailable, exception.StatusCode);
        await Assert.ThrowsAnyAsync<Exception>(() => call.WriteAsync("3"));
        Assert.Single(Server.Requests);
        Assert.Equal(0, Taken(pool));
    }

    [Fact]
    public async Task AReadThatComesAfterTheBreak_ThrowsWhatBroke()
    {
        for (var i = 0; i < 300; i++)
        {
            var end = new TaskCompletionSource();
            Server.ThenBreakWhen(end.Task);
            var (call, _) = Start(Duplex, "Plain");
            await call.WriteAsync("1");
            end.SetResult();
            for (var yields = i % 30; yields > 0; yields--)
            {
                await Task.Yield();
            }

            var exception = await Assert.ThrowsAsync<RpcException>(() => call.ReadToEndAsync());
            Assert.True(exception.StatusCode == StatusCode.Unavailable, $"{exception}");
        }
    }

    [Theory]
    [InlineData(ClientStreaming)]
    [InlineData(Duplex)]
    public async Task AReplayThatBreaks_IsReplayed(MethodType kind)
    {
        var end = new TaskCompletionSource();
        var again = new TaskCompletionSource();
        Server.ThenBreakWhen(end.Task)
            .ThenBreakWhen(again.Task, taken: static write => write == 0 ? Task.CompletedTask : Never)
            .ThenReplyAfterRequests(Text("answer"));
        var (call, pool) = Start(kind);
        await call.WriteAsync("1", "2", "3");
        await call.Requests.CompleteAsync().Soon();
        end.SetResult();
        await Elapse(() => Server.Sent is [_, { Begun: 2 }]);
        again.SetResult();
        await Elapse(() => Server.Sent is [_, _, { IsComplete: true }]);
        Assert.Equal(["answer"], await call.ReadToEndAsync());
        Assert.Equal(["1"], Texts(1));
        Assert.Equal(["1", "2", "3"], Texts(2));
        Assert.Equal(["1", "2", "3"], _serialized);
        Assert.Equal(0, Taken(pool));
    }

    [Fact]
    public async Task TheWriteOptionsOfEachMessage_ComeAgain()
    {
        var end = new TaskCompletionSource();
        Server.ThenBreakWhen(end.Task).ThenReplyAfterRequests(Text("answer"));
        var (call, _) = Start(ClientStreaming, headers: new Metadata { { "grpc-internal-encoding-request", "gzip" } });
        var plain = new WriteOptions(WriteFlags.NoCompress);
        await call.WriteAsync("1");
        call.Requests.WriteOptions = plain;
        await call.WriteAsync("2", "3");
        call.Requests.WriteOptions = null;
        await call.WriteAsync("4");
        call.Requests.WriteOptions = plain;
        Assert.Equal([true, false, false, true], Server.Sent[0].Compressed);

        end.SetResult();
        await Elapse(() => Server.Sent is [_, { Messages.Count: 4 }]);
        await call.WriteAsync("5");
        Assert.Same(plain, call.Requests.WriteOptions);
        call.Requests.WriteOptions = null;
        await call.WriteAsync("6");
        Assert.Equal([true, false, false, true, false, true], Server.Sent[1].Compressed);
        Assert.Equal(Server.Sent[0].Messages, Server.Sent[1].Messages.Take(4));
        await call.Requests.CompleteAsync().Soon();
        Assert.Equal(["answer"], await call.ReadToEndAsync());
    }

    [Theory]
    [InlineData(ClientStreaming, "before")]
    [InlineData(ClientStreaming, "during")]
    [InlineData(ClientStreaming, "after")]
    [InlineData(Duplex, "before")]
    [InlineData(Duplex, "during")]
    [InlineData(Duplex, "after")]
    public async Task TheEndOfTheRequests_ComesBehindThemAll(MethodType kind, string when)
    {
        var end = new TaskCompletionSource();
        var takes = new TaskCompletionSource();
        var answer = new TaskCompletionSource();
        Server.ThenBreakWhen(end.Task).ThenReplyAfter(answer.Task, _ => takes.Task, Text("answer"));
        var (call, _) = Start(kind);
        await call.WriteAsync("1", "2");
        if (when == "before")
        {
            await call.Requests.CompleteAsync().Soon();
            await Waiting.Until(() => Server.Sent[0].IsComplete);
        }

        end.SetResult();
        await Elapse(() => Server.Sent is [_, { Begun: 1 }]);
        if (when == "during")
        {
            await call.Requests.CompleteAsync().Soon();
        }

        Assert.False(Server.Sent[1].IsComplete);
        takes.SetResult();
        await Waiting.Until(() => Server.Sent[1].Messages.Count == 2);
        if (when == "after")
        {
            await call.WriteAsync(); // nothing: lets the replay end
            Assert.False(Server.Sent[1].IsComplete);
            await call.Requests.CompleteAsync().Soon();
        }

        await Waiting.Until(() => Server.Sent[1].IsComplete);
        Assert.Equal(["1", "2"], Texts(1));
        await Assert.ThrowsAsync<InvalidOperationException>(() => call.WriteAsync("3"));
        answer.SetResult();
        Assert.Equal(["answer"], await call.ReadToEndAsync());
    }

    [Theory]
    [InlineData(ClientStreaming, true)]
    [InlineData(ClientStreaming, false)]
    [InlineData(Duplex, true)]
    [InlineData(Duplex, false)]
    public async Task ACallThatOutgrowsItsBuffer_IsNotSentAgain_AndGoesOn(MethodType kind, bool breaks)
    {
        var end = new TaskCompletionSource();
        _ = breaks ? Server.ThenBreakWhen(end.Task) : Server.ThenReplyAfter(end.Task, Text("answer"));
        var (call, pool) = Start(kind, configure: static options => options.MaxRetryBufferPerCallSize = (2 * 140) + 1);
        await call.WriteAsync("0123456789", "0123456789"); // 12 bytes each, and 128 for keeping them
        Assert.Equal(280, Taken(pool));
        await call.WriteAsync("0123456789");
        Assert.Equal(0, Taken(pool));
        await call.WriteAsync("after");
        Assert.Equal(0, Taken(pool));
        Assert.Equal(["0123456789", "0123456789", "0123456789", "after"], Texts(0));

        var reading = call.ReadToEndAsync();
        end.SetResult();
        if (breaks)
        {
            var exception = await Assert.ThrowsAsync<RpcException>(() => reading);
            Assert.Equal(StatusCode.Unavailable, exception.StatusCode);
        }
        else
        {
            Assert.Equal(["answer"], await reading);
        }

        Assert.Single(Server.Requests);
        Assert.Equal(["0123456789", "0123456789", "0123456789", "after"], _serialized);
    }

    [Fact]
    public async Task AMessageThatFillsTheBufferToTheLastByte_IsKept()
    {
        var end = new TaskCompletionSource();
        Server.ThenBreakWhen(end.Task).ThenReplyAfterRequests(Text("answer"));
        var (call, _) = Start(ClientStreaming, configure: static options => (options.MaxRetryBufferPerCallSize, options.Pool.MaxRetryBufferSize) = (140, 140));
        await call.WriteAsync("0123456789");
        await call.Requests.CompleteAsync().Soon();
        end.SetResult();
        await Elapse(() => Server.Sent is [_, { IsComplete: true }]);
        Assert.Equal(["answer"], await call.ReadToEndAsync());
    }

    [Fact]
    public async Task WithoutABuffer_TheFirstMessageCommits()
    {
        var end = new TaskCompletionSource();
        Server.ThenBreakWhen(end.Task);
        var (call, pool) = Start(Duplex, configure: static options => options.Pool.MaxRetryBufferSize = 0);
        await call.WriteAsync("1");
        var reading = call.ReadToEndAsync();
        end.SetResult();
        await Assert.ThrowsAsync<RpcException>(() => reading);
        Assert.Equal(0, pool.GetStatistics().Retries);
    }

    [Fact]
    public async Task WhenTheBufferOfThePoolIsFull_TheCallThatNeedsMoreIsCommitted_AndNoOther()
    {
        var end = new TaskCompletionSource();
        Server.ThenBreakWhen(end.Task).ThenBreakWhen(end.Task);
        var (first, pool) = Start(ClientStreaming, configure: static options => options.Pool.MaxRetryBufferSize = 140 + 139);
        await first.WriteAsync("0123456789");
        var second = Start(pool, ClientStreaming);
        await second.WriteAsync("0123456789"); // there is a byte too little
        Assert.Equal(140, Taken(pool));
        await first.WriteAsync("0123");
        Assert.Equal(140 + 134, Taken(pool));

        Server.ThenReplyAfterRequests(Text("answer"));
        end.SetResult();
        await Assert.ThrowsAsync<RpcException>(() => second.ReadToEndAsync());
        await Elapse(() => Server.Sent is [_, _, { Messages.Count: 2 }]);
        await first.Requests.CompleteAsync().Soon();
        Assert.Equal(["answer"], await first.ReadToEndAsync());
        Assert.Equal(0, Taken(pool));
    }

    [Theory]
    [InlineData("answer")]
    [InlineData("first message")]
    [InlineData("headers")]
    [InlineData("failure")]
    [InlineData("dispose")]
    [InlineData("token")]
    public async Task TheSpace_IsGivenBack_WhenNoAttemptCanFollow(string what)
    {
        var moment = new TaskCompletionSource();
        using var cancellation = new CancellationTokenSource();
        _ = what switch
        {
            "answer" => Server.ThenReplyAfter(moment.Task, Text("answer")),
            "failure" => Server.Then(async token =>
            {
                await moment.Task.WaitAsync(token);
                throw new FormatException("no fault of the transport");
            }),
            "dispose" or "token" => Server.ThenHang(),
            _ => Server.ThenPause(Text("first"), moment.Task, Text("second"), takesRequests: true),
        };
        var (call, pool) = Start(what is "answer" or "failure" ? ClientStreaming : Duplex, token: cancellation.Token);
        await call.WriteAsync("0123456789");
        if (what is not "first message" and not "headers")
        {
            Assert.Equal(140, Taken(pool));
        }

        switch (what)
        {
            case "first message":
                await call.ReadAsync().Soon();
                break;
            case "headers":
                await call.ReadHeadersAsync().Soon();
                break;
            case "dispose":
                call.Call.Dispose();
                break;
            case "token":
                await cancellation.CancelAsync();
                break;
            default:
                moment.SetResult();
                break;
        }

        await Waiting.Until(() => Taken(pool) == 0);
        if (what is "first message" or "headers")
        {
            await call.WriteAsync("0123456789");
            Assert.Equal(0, Taken(pool));
            Assert.Equal(2, _serialized.Count);
            moment.SetResult();
            Assert.Equal("second", (await call.ReadToEndAsync())[^1]);
        }
        else if (what == "answer")
        {
            Assert.Equal(["answer"], await call.ReadToEndAsync());
        }
        else
        {
            await Assert.ThrowsAnyAsync<Exception>(() => call.ReadToEndAsync());
        }

        Assert.Single(Server.Requests);
    }

    [Fact]
    public async Task AMessageWrittenAfterTheHeaders_CommitsTheCall()
    {
        var end = new TaskCompletionSource();
        Server.ThenPause(Text("first"), end.Task, Text("second"), takesRequests: true);
        var (call, pool) = Start(Duplex);
        await call.WriteAsync("1");
        for (var i = 0; i < 100_000 && Taken(pool) > 0; i++)
        {
            await call.WriteAsync(""); // they come on another thread
        }

        Assert.Equal(0, Taken(pool));
        end.SetResult();
        Assert.Equal(["first", "second"], await call.ReadToEndAsync());
    }

    [Theory]
    [InlineData(ClientStreaming)]
    [InlineData(Duplex)]
    public async Task AWriteUnderWay_IsWrittenOnceToTheNextAttempt_BehindTheOthers(MethodType kind)
    {
        var end = new TaskCompletionSource();
        Server.ThenBreakWhen(end.Task, taken: static write => write == 0 ? Task.CompletedTask : Never).ThenReplyAfterRequests(Text("answer"));
        var (call, _) = Start(kind);
        await call.WriteAsync("1");
        var writing = call.WriteAsync("2");
        await Waiting.Until(() => Server.Sent[0].Begun == 2);
        end.SetResult();
        await Elapse(writing);
        await writing.Soon();
        await call.Requests.CompleteAsync().Soon();
        Assert.Equal(["answer"], await call.ReadToEndAsync());
        Assert.Equal(["1", "2"], Texts(1));
        Assert.Equal(["1", "2"], _serialized);
    }

    [Fact]
    public async Task AWriteThatWaitsForAReplayThatBreaks_GoesToTheThirdAttempt()
    {
        var end = new TaskCompletionSource();
        var again = new TaskCompletionSource();
        Server.ThenBreakWhen(end.Task).ThenBreakWhen(again.Task, taken: static _ => Never).ThenReplyAfterRequests(Text("answer"));
        var (call, _) = Start(Duplex);
        await call.WriteAsync("1");
        end.SetResult();
        await Elapse(() => Server.Sent is [_, { Begun: 1 }]);
        var writing = call.WriteAsync("2");
        again.SetResult();
        await Elapse(writing);
        await writing.Soon();
        await call.Requests.CompleteAsync().Soon();
        Assert.Equal(["answer"], await call.ReadToEndAsync());
        Assert.Equal(["1", "2"], Texts(2));
        Assert.Equal(["1", "2"], _serialized);
    }

    [Theory]
    [InlineData(ClientStreaming, false)]
    [InlineData(ClientStreaming, true)]
    [InlineData(Duplex, false)]
    [InlineData(Duplex, true)]
    public async Task AMessageThatCannotBeSerialized_DoesNotEndTheCall_AndIsNotSentAgain(MethodType kind, bool looksLikeTransport)
    {
        var end = new TaskCompletionSource();
        Server.ThenBreakWhen(end.Task).ThenReplyAfterRequests(Text("answer"));
        OnSerialize = text =>
        {
            if (text == "bad")
            {
                throw looksLikeTransport ? new IOException("of the user's") : new FormatException("of the user's");
            }
        };
        var (call, pool) = Start(kind);
        await call.WriteAsync("1");
        await Assert.ThrowsAnyAsync<Exception>(() => call.WriteAsync("bad"));
        await call.WriteAsync("2");
        Assert.Equal(["1", "2"], Texts(0));
        Assert.Equal(0, pool.GetStatistics().Retries);

        end.SetResult();
        await Elapse(() => Server.Sent is [_, { Messages.Count: 2 }]);
        await Assert.ThrowsAnyAsync<Exception>(() => call.WriteAsync("bad"));
        await call.WriteAsync("3");
        await call.Requests.CompleteAsync().Soon();
        Assert.Equal(["answer"], await call.ReadToEndAsync());
        Assert.Equal(["1", "2", "3"], Texts(1));
    }

    [Fact]
    public async Task DuringAReplay_OneWriteMayWait_AndNoOther()
    {
        var end = new TaskCompletionSource();
        var takes = new TaskCompletionSource();
        Server.ThenBreakWhen(end.Task).ThenReplyAfter(takes.Task, _ => takes.Task, Text("answer"));
        var (call, _) = Start(Duplex);
        await call.WriteAsync("1", "2");
        end.SetResult();
        await Elapse(() => Server.Sent is [_, { Begun: 1 }]);

        var writing = call.WriteAsync("3");
        var write = await Assert.ThrowsAsync<InvalidOperationException>(() => call.WriteAsync("4"));
        Assert.Equal("Can't write the message because the previous write is in progress.", write.Message);
        var complete = await Assert.ThrowsAsync<InvalidOperationException>(() => call.Requests.CompleteAsync().Soon());
        Assert.Equal("Can't complete the client stream writer because the previous write is in progress.", complete.Message);
        Assert.False(writing.IsCompleted);

        takes.SetResult();
        await writing.Soon();
        Assert.Equal(["1", "2", "3"], Texts(1));
        Assert.Equal(["answer"], await call.ReadToEndAsync());
    }

    [Theory]
    [InlineData(false)] // on a bare channel: a write under way
    [InlineData(true)]
    public async Task TheTokenOfAWriteThatWaitsForAReplay_EndsTheCall(bool pooled)
    {
        var end = new TaskCompletionSource();
        Conversation call;
        using var channel = Server.Create();
        if (pooled)
        {
            Server.ThenBreakWhen(end.Task).ThenTakeNothing();
            call = Start(Duplex).Call;
            await call.WriteAsync("1");
            end.SetResult();
            await Elapse(() => Server.Sent is [_, { Begun: 1 }]);
        }
        else
        {
            Server.ThenTakeNothing();
            call = Start(channel.CreateCallInvoker(), Duplex, "Idempotent", default);
        }

        using var cancellation = new CancellationTokenSource();
        var writing = call.Requests.WriteAsync(Text("2"), cancellation.Token);
        await cancellation.CancelAsync();
        var exception = await Assert.ThrowsAsync<RpcException>(() => writing.Soon());
        Assert.Equal(StatusCode.Cancelled, exception.StatusCode);
        exception = await Assert.ThrowsAsync<RpcException>(() => call.ReadToEndAsync());
        Assert.Equal(StatusCode.Cancelled, exception.StatusCode);
    }

    [Fact]
    public async Task AnAnswerDuringTheReplay_CommitsTheCall_AndTheRestIsWrittenAllTheSame()
    {
        var end = new TaskCompletionSource();
        var takes = new TaskCompletionSource();
        Server.ThenBreakWhen(end.Task).ThenPause(Text("first"), takes.Task, Text("second"));
        var (call, pool) = Start(Duplex);
        await call.WriteAsync("1", "2");
        end.SetResult();
        var reading = call.ReadAsync();
        await Elapse(reading);
        Assert.Equal("first", (await reading.Soon()).Text);
        Assert.Equal(0, Taken(pool));
        var writing = call.WriteAsync("3");
        Assert.False(writing.IsCompleted);

        takes.SetResult();
        await writing.Soon();
        Assert.Equal(["1", "2", "3"], Texts(1));
        Assert.Equal(["second"], await call.ReadToEndAsync());
    }

    private static Task Never { get; } = new TaskCompletionSource().Task;

    private static ChatMessage Text(string text) => new() { Text = text };

    private static HttpRequestException RefusedStream() => new(HttpRequestError.HttpProtocolError, "", new HttpProtocolException(7, "refused", null));

    // The space is that of the pool, whoever asks for it.
    private static long Taken(ChannelPool pool) => new CallEnvironment(pool, new PoolingCallInvokerOptions()).ReplaySpace.Taken;

    private IEnumerable<string> Texts(int exchange) => Server.Sent[exchange].Messages.Select(static message => ChatMessage.Parser.ParseFrom(message).Text);

    private (Conversation Call, ChannelPool Pool) Start(
        MethodType kind,
        string method = "Idempotent",
        Action<PoolingCallInvokerOptions>? configure = null,
        Metadata? headers = null,
        CancellationToken token = default)
    {
        var invoker = NewInvoker(options =>
        {
            options.IsIdempotent = static method => method.Name == "Idempotent";
            configure?.Invoke(options);
        });
        return (Start(invoker, kind, method, new CallOptions(headers, cancellationToken: token)), invoker.Pool);
    }

    private Conversation Start(ChannelPool pool, MethodType kind) => Start(
        new PoolingCallInvoker(pool, new PoolingCallInvokerOptions { IsIdempotent = static _ => true }), kind, "Idempotent", default);

    private Conversation Start(CallInvoker invoker, MethodType kind, string name, CallOptions options)
    {
        var requests = Marshallers.Create<ChatMessage>(
            (message, context) =>
            {
                OnSerialize?.Invoke(message.Text);
                _serialized.Enqueue(message.Text);
                context.Complete(message.ToByteArray());
            },
            static _ => throw new NotSupportedException());
        var responses = Marshallers.Create(static message => message.ToByteArray(), ChatMessage.Parser.ParseFrom);
        var method = new Method<ChatMessage, ChatMessage>(kind, "test.Replay", name, requests, responses);
        if (kind == ClientStreaming)
        {
            var call = invoker.AsyncClientStreamingCall(method, host: null, options);
            return new Conversation(call.RequestStream, Responses: null, call.ResponseAsync, () => call.ResponseHeadersAsync, call);
        }

        var duplex = invoker.AsyncDuplexStreamingCall(method, host: null, options);
        return new Conversation(duplex.RequestStream, duplex.ResponseStream, Response: null, () => duplex.ResponseHeadersAsync, duplex);
    }

    private sealed record Conversation(
        IClientStreamWriter<ChatMessage> Requests,
        IAsyncStreamReader<ChatMessage>? Responses,
        Task<ChatMessage>? Response,
        Func<Task<Metadata>> ReadHeadersAsync,
        IDisposable Call)
    {
        public async Task WriteAsync(params string[] texts)
        {
            foreach (var text in texts)
            {
                await Requests.WriteAsync(Text(text)).Soon();
            }
        }

        public async Task<ChatMessage> ReadAsync()
        {
            if (Response is not null)
            {
                return await Response.Soon();
            }

            Assert.True(await Responses!.MoveNext(CancellationToken.None).Soon());
            return Responses.Current;
        }

        public async Task<IReadOnlyList<string>> ReadToEndAsync()
        {
            if (Response is not null)
            {
                return [(await Response.Soon()).Text];
            }

            var texts = new List<string>();
            while (await Responses!.MoveNext(CancellationToken.None).Soon())
            {
                texts.Add(Responses.Current.Text);
            }

            return texts;
        }
    }
}

using System.Diagnostics;
using System.IO.Pipelines;
using System.Runtime.CompilerServices;
using Google.Protobuf;
using Grpc.Core;
using Grpc.Net.Client;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.Tests.Calls;

/// <summary>
/// What the pool costs a call, in bytes on top of a bare channel over the same handler, which answers at once. Nothing else runs meanwhile,
/// and one thread runs all that is queued: what a stream allocates depends on whether its watch or its reader is first.
/// </summary>
[Collection(nameof(AllocationTests))]
public sealed class AllocationTests(ITestOutputHelper output)
{
    private const int Rounds = 10;
    private const int Calls = 400;

    private static readonly Metadata Headers = new() { { "tenant", "7" }, { "trace", "1" } };

    [Fact]
    public Task AUnaryCall() => AssertAsync(264, UnaryAsync);

    [Fact]
    public Task AUnaryCall_WithHeaders() => AssertAsync(472, UnaryWithHeadersAsync);

    [Fact]
    public Task AServerStream() => AssertAsync(1832, StreamAsync);

    [Fact]
    public async Task ACallThatNobodyListensTo_MakesNoActivity_AndAllocatesNothingForOne()
    {
        var handler = new AnsweringHandler();
        using var pool = new ChannelPool(new StubPolicy { OnCreate = () => StubPolicy.NewChannel(handler) });
        var client = new User.UserClient(new PoolingCallInvoker(pool));
        var (before, heard, after) = await OnOneThreadAsync(async () =>
        {
            var before = await MeasureAsync(client, UnaryAsync).ConfigureAwait(false);
            Assert.Null(handler.Activity);
            long heard;
            using (Listen())
            {
                heard = await MeasureAsync(client, UnaryAsync).ConfigureAwait(false);
                Assert.NotNull(handler.Activity);
            }

            return (before, heard, await MeasureAsync(client, UnaryAsync).ConfigureAwait(false));
        });
        output.WriteLine($"{before} bytes a call, {heard} with a listener, {after} after it");
        Assert.Null(handler.Activity);
        Assert.True(heard > before);
        Assert.Equal(before, after);

        static ActivityListener Listen()
        {
            var listener = new ActivityListener
            {
                ShouldListenTo = static source => source.Name == "PoolingInvoker",
                Sample = static (ref ActivityCreationOptions<ActivityContext> _) => ActivitySamplingResult.AllData,
            };
            ActivitySource.AddActivityListener(listener);
            return listener;
        }
    }

    [Fact]
    public async Task ALeaseByHand_AllocatesItself_AndTwoLooksAtTheChannel()
    {
        const int Most = 88; // 40 of the lease, and 24 of each look
        using var pool = new ChannelPool(new StubPolicy());
        await pool.ConnectAsync();
        var (got, acquired) = await OnOneThreadAsync(async () => (
            await MeasureAsync(() => GetAndReturn(pool)).ConfigureAwait(false),
            await MeasureAsync(() => AcquireAndDispose(pool)).ConfigureAwait(false)));
        output.WriteLine($"{got} bytes for Get and Return, {acquired} for AcquireAsync and Dispose");
        Assert.InRange(got, 0, Most);
        Assert.InRange(acquired, 0, Most);
    }

    [Fact]
    public async Task AStreamThatIsCommitted_HoldsNothingForAnotherAttempt()
    {
        const int Most = 530; // 360 are the objects of the call; the rest is the headers, for which a call over a transport of the user's own is asked
        using var channel = StubPolicy.NewChannel(new ChattingHandler());
        using var pool = new ChannelPool(
            new StubPolicy { OnCreate = static () => StubPolicy.NewChannel(new ChattingHandler()) },
            new ChannelPoolOptions { MaxPoolSize = 1, MaxConcurrentCallsPerChannel = Rounds * Calls });
        var bare = await HeldByAStreamAsync(new User.UserClient(channel));
        var pooled = await HeldByAStreamAsync(new User.UserClient(new PoolingCallInvoker(pool)));
        output.WriteLine($"{bare} bytes a stream on a bare channel, {pooled} through the pool: {pooled - bare} on top");
        Assert.InRange(pooled - bare, 0, Most);
    }

    [Fact]
    public async Task AStreamThatWasSentAgain_HoldsNothingMoreThanTheHeaderThatSaysSo()
    {
        using var pool = NewPool(refuses: false);
        using var refused = NewPool(refuses: true);
        var sentOnce = await HeldByAStreamAsync(NewClient(pool));
        var sentAgain = await HeldByAStreamAsync(NewClient(refused));
        output.WriteLine($"{sentOnce} bytes a stream, {sentAgain} where it was sent again");
        Assert.Equal(Rounds * Calls, refused.GetStatistics().Retries);
        Assert.InRange(sentAgain - sentOnce, 0, 300);

        static ChannelPool NewPool(bool refuses) => new(
            new StubPolicy { OnCreate = () => StubPolicy.NewChannel(new ChattingHandler { Refuses = refuses }) },
            new ChannelPoolOptions { MaxPoolSize = 1, MaxConcurrentCallsPerChannel = Rounds * Calls, RetryThrottling = null });

        static User.UserClient NewClient(ChannelPool pool) =>
            new(new PoolingCallInvoker(pool, new PoolingCallInvokerOptions { Retry = { Delay = TimeSpan.Zero }, IsIdempotent = static _ => true }));
    }

    private static async Task<long> HeldByAStreamAsync(User.UserClient client)
    {
        // The median of some rounds, whose streams all stay: what else is collected meanwhile, or made, differs.
        var held = new List<long>();
        var streams = new List<AsyncDuplexStreamingCall<ChatMessage, ChatMessage>>(Rounds * Calls);
        for (var round = 0; round < Rounds; round++)
        {
            var before = GC.GetTotalMemory(forceFullCollection: true);
            for (var i = 0; i < Calls; i++)
            {
                var stream = client.Chat();
                streams.Add(stream);
                await stream.RequestStream.WriteAsync(new ChatMessage { Text = "hello" });
                Assert.True(await stream.ResponseStream.MoveNext(CancellationToken.None));
            }

            held.Add((GC.GetTotalMemory(forceFullCollection: true) - before) / Calls);
        }

        streams.ForEach(static stream => stream.Dispose());
        return held.Order().ElementAt(Rounds / 2);
    }

    private static ValueTask GetAndReturn(ChannelPool pool)
    {
        pool.Return(pool.Get());
        return ValueTask.CompletedTask;
    }

    private static ValueTask AcquireAndDispose(ChannelPool pool)
    {
        var acquiring = pool.AcquireAsync();
        (acquiring.IsCompletedSuccessfully ? acquiring.Result : null)!.Dispose();
        return ValueTask.CompletedTask;
    }

    [AsyncMethodBuilder(typeof(PoolingAsyncValueTaskMethodBuilder))]
    private static async ValueTask UnaryAsync(User.UserClient client) => await client.GetNameAsync(new GetNameRequest()).ResponseAsync.ConfigureAwait(false);

    [AsyncMethodBuilder(typeof(PoolingAsyncValueTaskMethodBuilder))]
    private static async ValueTask UnaryWithHeadersAsync(User.UserClient client) => await client.GetNameAsync(new GetNameRequest(), Headers).ResponseAsync.ConfigureAwait(false);

    [AsyncMethodBuilder(typeof(PoolingAsyncValueTaskMethodBuilder))]
    private static async ValueTask StreamAsync(User.UserClient client)
    {
        using var call = client.ListNames(new ListNamesRequest());
        Assert.True(await call.ResponseStream.MoveNext(CancellationToken.None).ConfigureAwait(false));
        Assert.False(await call.ResponseStream.MoveNext(CancellationToken.None).ConfigureAwait(false));
    }

    private async Task AssertAsync(int most, Func<User.UserClient, ValueTask> call)
    {
        using var channel = NewChannel();
        using var pool = new ChannelPool(new StubPolicy { OnCreate = NewChannel });
        var (bare, pooled) = await OnOneThreadAsync(async () => (
            await MeasureAsync(new User.UserClient(channel), call).ConfigureAwait(false),
            await MeasureAsync(new User.UserClient(new PoolingCallInvoker(pool)), call).ConfigureAwait(false)));
        output.WriteLine($"{bare} bytes a call on a bare channel, {pooled} through the pool: {pooled - bare} on top");
        Assert.InRange(pooled - bare, 0, most);
    }

    private static Task<long> MeasureAsync(User.UserClient client, Func<User.UserClient, ValueTask> call) => MeasureAsync(() => call(client));

    private static async Task<long> MeasureAsync(Func<ValueTask> call)
    {
        // The least of some rounds: what the runtime does beside, such as compiling what is hot, only adds to it.
        var least = long.MaxValue;
        for (var round = 0; round < Rounds; round++)
        {
            var before = GC.GetTotalAllocatedBytes(precise: true);
            for (var i = 0; i < Calls; i++)
            {
                await call().ConfigureAwait(false);
            }

            least = Math.Min(least, (GC.GetTotalAllocatedBytes(precise: true) - before) / Calls);
        }

        return least;
    }

    // All threads of the thread pool but one are kept busy, and there are no more.
    private static async Task<T> OnOneThreadAsync<T>(Func<Task<T>> work)
    {
        ThreadPool.GetMinThreads(out var least, out var leastPorts);
        ThreadPool.GetMaxThreads(out var most, out var mostPorts);
        using var done = new ManualResetEventSlim();
        try
        {
            Assert.True(ThreadPool.SetMinThreads(1, leastPorts) && ThreadPool.SetMaxThreads(Environment.ProcessorCount, mostPorts));
            var busy = 0;
            for (var i = 1; i < Environment.ProcessorCount; i++)
            {
                ThreadPool.QueueUserWorkItem(_ =>
                {
                    Interlocked.Increment(ref busy);
                    done.Wait();
                });
            }

            await Waiting.Until(() => Volatile.Read(ref busy) == Environment.ProcessorCount - 1);
            return await Task.Run(work);
        }
        finally
        {
            done.Set();
            ThreadPool.SetMaxThreads(most, mostPorts);
            ThreadPool.SetMinThreads(least, leastPorts);
        }
    }

    private static GrpcChannel NewChannel() => StubPolicy.NewChannel(new AnsweringHandler());

    // Takes all requests, and gives one answer. Or it refuses each second call.
    private sealed class ChattingHandler : HttpMessageHandler
    {
        private int _calls;

        public bool Refuses { get; init; }

        protected override async Task<HttpResponseMessage> SendAsync(HttpRequestMessage request, CancellationToken cancellationToken)
        {
            _ = request.Content!.CopyToAsync(Stream.Null, CancellationToken.None);
            var body = new Pipe();
            await body.Writer.WriteAsync((byte[])[0, 0, 0, 0, 0], cancellationToken).ConfigureAwait(false);
            var response = new HttpResponseMessage { Version = new Version(2, 0), Content = new StreamContent(body.Reader.AsStream()) };
            response.Content.Headers.ContentType = new("application/grpc");
            if (Refuses && Interlocked.Increment(ref _calls) % 2 == 1)
            {
                response.Headers.Add("grpc-status", "14");
            }

            return response;
        }
    }

    private sealed class AnsweringHandler : HttpMessageHandler
    {
        private static readonly byte[] Frame = [0, 0, 0, 0, 6, .. new GetNameReply { Name = "anna" }.ToByteArray()];

        public Activity? Activity { get; private set; } // of the last call

        protected override Task<HttpResponseMessage> SendAsync(HttpRequestMessage request, CancellationToken cancellationToken)
        {
            Activity = Activity.Current;
            var response = new HttpResponseMessage { Version = new Version(2, 0), Content = new ByteArrayContent(Frame) };
            response.Content.Headers.ContentType = new("application/grpc");
            response.TrailingHeaders.Add("grpc-status", "0");
            return Task.FromResult(response);
        }
    }
}

[CollectionDefinition(nameof(AllocationTests), DisableParallelization = true)]
public sealed class AllocationTestsRunAlone;

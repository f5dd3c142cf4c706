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
    public Task AServerStream() => AssertAsync(2144, StreamAsync);

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

    private static async Task<long> MeasureAsync(User.UserClient client, Func<User.UserClient, ValueTask> call)
    {
        // The least of some rounds: what the runtime does beside, such as compiling what is hot, only adds to it.
        var least = long.MaxValue;
        for (var round = 0; round < Rounds; round++)
        {
            var before = GC.GetTotalAllocatedBytes(precise: true);
            for (var i = 0; i < Calls; i++)
            {
                await call(client).ConfigureAwait(false);
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

    private sealed class AnsweringHandler : HttpMessageHandler
    {
        private static readonly byte[] Frame = [0, 0, 0, 0, 6, .. new GetNameReply { Name = "anna" }.ToByteArray()];

        protected override Task<HttpResponseMessage> SendAsync(HttpRequestMessage request, CancellationToken cancellationToken)
        {
            var response = new HttpResponseMessage { Version = new Version(2, 0), Content = new ByteArrayContent(Frame) };
            response.Content.Headers.ContentType = new("application/grpc");
            response.TrailingHeaders.Add("grpc-status", "0");
            return Task.FromResult(response);
        }
    }
}

[CollectionDefinition(nameof(AllocationTests), DisableParallelization = true)]
public sealed class AllocationTestsRunAlone;

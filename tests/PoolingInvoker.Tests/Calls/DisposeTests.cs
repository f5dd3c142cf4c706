using Grpc.Core;
using Polly;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.Tests.Calls;

/// <summary>Calls that end on this side: by their Dispose, a token or a deadline, or with the pool.</summary>
public sealed class DisposeTests : ScriptedCalls
{
    [Theory]
    [InlineData("unary", true)]
    [InlineData("unary", false)]
    [InlineData("stream", true)]
    [InlineData("stream", false)]
    public async Task AfterDispose_TheStatusIsThereAtOnce(string kind, bool pooled)
    {
        using var channel = Server.Create();
        var (client, pool) = NewClient();
        (await pool.AcquireAsync().Soon()).Dispose();
        client = pooled ? client : new User.UserClient(channel);
        for (var i = 0; i < 200; i++)
        {
            Server.ThenHang();
            Assert.Equal(StatusCode.Cancelled, DisposeAndGetStatus());
        }

        StatusCode DisposeAndGetStatus()
        {
            if (kind == "unary")
            {
                var call = client.GetNameAsync(new GetNameRequest());
                call.Dispose();
                return call.GetStatus().StatusCode;
            }

            var stream = client.ListNames(new ListNamesRequest());
            stream.Dispose();
            return stream.GetStatus().StatusCode;
        }
    }

    // On a bare channel a disposed call throws that, however it had ended.
    [Theory]
    [InlineData("client streaming", true)]
    [InlineData("client streaming", false)]
    [InlineData("duplex", true)]
    [InlineData("duplex", false)]
    public async Task ThatHasEndedByAStrategy_ACallIsDisposedToItsWriter(string kind, bool completed)
    {
        Server.ThenHang();
        var (client, pool) = NewClient(static options => options.ConfigurePipeline = static pipeline => pipeline.AddTimeout(TimeSpan.FromSeconds(1)));
        var upload = kind == "duplex" ? null : client.ImportNames();
        var chat = kind == "duplex" ? client.Chat() : null;
        await Waiting.Until(() => pool.GetStatistics().CallsInFlight == 1);
        if (completed)
        {
            await CompleteAsync().Soon();
        }

        await Elapse(chat?.ResponseHeadersAsync ?? upload!.ResponseHeadersAsync);
        Assert.IsNotType<ObjectDisposedException>(await Record.ExceptionAsync(() => WriteAsync().Soon()));
        upload?.Dispose();
        chat?.Dispose();
        await Assert.ThrowsAsync<ObjectDisposedException>(() => WriteAsync().Soon());
        await Assert.ThrowsAsync<ObjectDisposedException>(() => CompleteAsync().Soon());

        Task WriteAsync() => upload?.RequestStream.WriteAsync(new ImportNameRequest()) ?? chat!.RequestStream.WriteAsync(new ChatMessage());
        Task CompleteAsync() => upload?.RequestStream.CompleteAsync() ?? chat!.RequestStream.CompleteAsync();
    }

    [Fact]
    public async Task Dispose_RacesWithTheEndOfTheSlowPath()
    {
        const int Calls = 6000;
        for (var i = 0; i < Calls; i++)
        {
            Server.ThenReply(new ChatMessage { Text = "a" });
        }

        // Over a pipeline of the user's own every call takes the slow path. It ends, on another thread, with the first message.
        var (client, _) = NewClient(static options => options.ConfigurePipeline = static pipeline => pipeline.AddTimeout(TimeSpan.FromHours(1)));
        await Task.WhenAll(Enumerable.Range(0, 2).Select(_ => Task.Run(async () =>
        {
            for (var i = 0; i < Calls / 2; i++)
            {
                var call = client.Chat();
                Assert.True(await call.ResponseStream.MoveNext(CancellationToken.None));
                Thread.SpinWait(i % 400);
                call.Dispose();
            }
        }))).Soon();
    }

    [Fact]
    public async Task AReadThatWaitsForItsChannel_WhileTheCallIsDisposed_EndsLikeOneUnderWay()
    {
        var (client, pool) = NewClient(static options => (options.Pool.MaxPoolSize, options.Pool.MaxConcurrentCallsPerChannel) = (1, 1));
        for (var i = 0; i < 3000; i++)
        {
            Server.ThenHang();
            var held = await pool.AcquireAsync().Soon();
            var call = client.ListNames(new ListNamesRequest());
            var read = call.ResponseStream.MoveNext(CancellationToken.None);
            held.Dispose();
            Thread.SpinWait(i % 300 * 10);
            call.Dispose();
            var exception = await Assert.ThrowsAsync<RpcException>(() => read.Soon());
            Assert.Equal(StatusCode.Cancelled, exception.StatusCode);
        }
    }

    [Fact]
    public void ADisposedPool_SaysSoAtOnce_AlsoWithAPipeline()
    {
        var (client, pool) = NewClient(static options => options.ConfigurePipeline = static pipeline => pipeline.AddTimeout(TimeSpan.FromSeconds(1)));
        pool.Dispose();
        Assert.Throws<ObjectDisposedException>(() => client.GetNameAsync(new GetNameRequest()));
        Assert.Throws<ObjectDisposedException>(() => client.Chat());
    }

    [Theory]
    [InlineData("read", true)]
    [InlineData("read", false)]
    [InlineData("complete", true)]
    [InlineData("complete", false)]
    [InlineData("write", true)]
    [InlineData("write", false)]
    public async Task TheLastStreamOfADrainingPool_BehavesAfterItsEnd(string what, bool pooled)
    {
        // The end has been read, and the channel is held up before it has done with the call: so the pool disposes the channel under it.
        using var goesOn = new ManualResetEventSlim();
        var logs = new PausingLogs("FinishedCall", Task.CompletedTask, goesOn);
        Server.ConfigureChannel = options => options.LoggerFactory = logs;
        Server.ThenReply(new ChatMessage { Text = "a" });
        var (client, pool) = NewClient();
        using var bare = Server.Create();
        using var call = (pooled ? client : new User.UserClient(bare)).Chat();
        Assert.True(await call.ResponseStream.MoveNext(CancellationToken.None).Soon());
        var draining = pooled ? pool.DisposeAsync().AsTask() : Task.CompletedTask;
        var context = SynchronizationContext.Current;
        Task<bool> reading;
        try
        {
            SynchronizationContext.SetSynchronizationContext(new SomeContext()); // nothing of the channel runs inline
            reading = call.ResponseStream.MoveNext(CancellationToken.None);
        }
        finally
        {
            SynchronizationContext.SetSynchronizationContext(context);
        }

        Assert.False(await reading.Soon());
        await logs.Paused.Soon();
        await draining.Soon();
        switch (what)
        {
            case "read":
                Assert.False(await call.ResponseStream.MoveNext(CancellationToken.None).Soon());
                break;
            case "complete":
                await call.RequestStream.CompleteAsync().Soon();
                break;
            default:
                var exception = await Assert.ThrowsAsync<RpcException>(() => call.RequestStream.WriteAsync(new ChatMessage()).Soon());
                Assert.Equal(StatusCode.OK, exception.StatusCode);
                break;
        }

        Assert.Equal(StatusCode.OK, call.GetStatus().StatusCode);
        goesOn.Set();
    }

    [Fact]
    public async Task ACancelledRead_EndsACallThatWaits_AlsoWhereChannelsThrowOperationCanceled()
    {
        await using var invoker = PoolingCallInvoker.ForAddress("http://users:5000", new PoolingCallInvokerOptions
        {
            Pool =
            {
                MaxPoolSize = 1,
                MaxConcurrentCallsPerChannel = 1,
                ConfigureChannel = static options => options.ThrowOperationCanceledOnCancellation = true,
            },
        });
        using var taken = await invoker.Pool.AcquireAsync().Soon();
        using var call = new User.UserClient(invoker).ListNames(new ListNamesRequest());
        using var cancellation = new CancellationTokenSource();
        var reading = call.ResponseStream.MoveNext(cancellation.Token);
        Assert.Equal(1, invoker.Pool.GetStatistics().CallsWaiting);

        await cancellation.CancelAsync();
        var exception = await Assert.ThrowsAnyAsync<OperationCanceledException>(() => reading.Soon());
        Assert.Equal(cancellation.Token, exception.CancellationToken);
        await Waiting.Until(() => invoker.Pool.GetStatistics().CallsWaiting == 0);
    }

    [Theory]
    [InlineData("dispose")]
    [InlineData("deadline")]
    public async Task AnEndOnThisSide_IsNoAnswerOfTheServer(string how)
    {
        Server.ThenHang();
        var (client, pool) = NewClient();
        (await pool.AcquireAsync().Soon()).Dispose();
        var deadline = how == "deadline" ? TimeProvider.System.GetUtcNow().UtcDateTime : (DateTime?)null;
        var call = client.GetNameAsync(new GetNameRequest(), deadline: deadline);
        if (how == "dispose")
        {
            call.Dispose();
        }

        await Assert.ThrowsAsync<RpcException>(() => call.ResponseAsync.Soon());
        using var lease = await pool.AcquireAsync().Soon();
        Assert.False(lease.Pooled.Proven);
    }

    private sealed class SomeContext : SynchronizationContext;
}

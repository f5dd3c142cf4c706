using Grpc.Core;
using Polly;
using Polly.Retry;
using Polly.Timeout;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.Tests.Calls;

/// <summary>What the application does while one attempt has failed and the next one is not there yet.</summary>
public sealed class BetweenAttemptsTests : ScriptedCalls
{
    [Theory]
    [InlineData("write")]
    [InlineData("complete")]
    public async Task AWriter_WaitsForTheNextAttempt(string what)
    {
        Server.ThenRefuse().ThenHang().ThenReplyAfterRequests(new ImportNamesReply { Imported = 1 });
        var (client, pool) = NewClient(static options => (options.Pool.MaxPoolSize, options.Pool.MaxConcurrentCallsPerChannel) = (1, 1));
        using var call = client.ImportNames();
        await Waiting.Until(() => Server.Requests.Count == 1 && pool.GetStatistics().CallsInFlight == 0);
        var other = client.GetNameAsync(new GetNameRequest()); // takes the only lease
        await Waiting.Until(() => Server.Requests.Count == 2);
        await Elapse(() => pool.GetStatistics().CallsWaiting == 1);

        var writing = what == "write" ? call.RequestStream.WriteAsync(new ImportNameRequest()) : call.RequestStream.CompleteAsync();
        other.Dispose();
        await writing.Soon();
        if (what == "write")
        {
            await call.RequestStream.CompleteAsync().Soon();
        }

        Assert.Equal(1, (await call.ResponseAsync.Soon()).Imported);
        Assert.Equal(3, Server.Requests.Count);
    }

    [Fact]
    public async Task AWriteInAnAttemptThatTimesOut_MovesOn()
    {
        Server.ThenTakeNothing().ThenReply(new ChatMessage { Text = "a" });
        var (client, _) = NewClient(static options => options.ConfigurePipeline = static pipeline => pipeline
            .AddRetry(new RetryStrategyOptions { Delay = TimeSpan.Zero })
            .AddTimeout(TimeSpan.FromSeconds(1)));
        using var call = client.Chat();
        var writing = call.RequestStream.WriteAsync(new ChatMessage());
        await Waiting.Until(() => Server.Requests.Count == 1);
        Assert.False(writing.IsCompleted);

        Time.Advance(TimeSpan.FromSeconds(1));
        await writing.Soon();
        Assert.True(await call.ResponseStream.MoveNext(CancellationToken.None).Soon());
        Assert.Equal(2, Server.Requests.Count);
    }

    [Theory]
    [InlineData("read", true)]
    [InlineData("read", false)]
    [InlineData("write", true)]
    [InlineData("write", false)]
    public async Task ATimeoutOfThePipeline_IsADeadlineExceeded_ToReadersAndWritersToo(string what, bool idempotent)
    {
        Server.ThenTakeNothing();
        var (client, _) = NewClient(options =>
        {
            options.IsIdempotent = _ => idempotent;
            options.ConfigurePipeline = static pipeline => pipeline.AddTimeout(TimeSpan.FromSeconds(1));
        });
        using var call = client.Chat();
        var doing = what == "read" ? call.ResponseStream.MoveNext(CancellationToken.None) : call.RequestStream.WriteAsync(new ChatMessage());
        await Waiting.Until(() => Server.Requests.Count == 1);
        Time.Advance(TimeSpan.FromSeconds(1));

        var exception = await Assert.ThrowsAsync<RpcException>(() => doing.Soon());
        Assert.Equal(StatusCode.DeadlineExceeded, exception.StatusCode);
        Assert.IsType<TimeoutRejectedException>(exception.Status.DebugException);
        Assert.Equal(StatusCode.DeadlineExceeded, call.GetStatus().StatusCode);
    }

    [Fact]
    public async Task TheTokenOfARead_EndsTheBackoff()
    {
        Server.ThenRefuse();
        var backoff = new TaskCompletionSource();
        var (client, _) = NewClient(options => options.Retry.DelayGenerator = _ =>
        {
            backoff.SetResult();
            return ValueTask.FromResult<TimeSpan?>(TimeSpan.FromHours(1));
        });
        using var call = client.ListNames(new ListNamesRequest());
        using var cancellation = new CancellationTokenSource();
        var reading = call.ResponseStream.MoveNext(cancellation.Token);
        await backoff.Task.Soon();
        await cancellation.CancelAsync();

        var exception = await Assert.ThrowsAsync<RpcException>(() => reading.Soon());
        Assert.Equal(StatusCode.Cancelled, exception.StatusCode);
        Assert.Equal(cancellation.Token, Assert.IsType<OperationCanceledException>(exception.Status.DebugException).CancellationToken);
        await Waiting.Until(() => IsOver(call));
        Assert.Single(Server.Requests);

        static bool IsOver(AsyncServerStreamingCall<NameReply> call)
        {
            try
            {
                return call.GetStatus().StatusCode == StatusCode.Cancelled;
            }
            catch (InvalidOperationException)
            {
                return false;
            }
        }
    }

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public async Task WriteOptions_SetBeforeTheAttemptThatCommits_ArePassedOnToIt(bool pooled)
    {
        // On the pool another attempt follows the one that they were set on.
        if (pooled)
        {
            Server.ThenRefuse();
        }

        Server.ThenReply(new ChatMessage { Text = "a" });
        using var channel = Server.Create();
        var client = pooled ? NewClient().Client : new User.UserClient(channel);
        using var call = client.Chat();
        var given = new WriteOptions(WriteFlags.NoCompress);
        call.RequestStream.WriteOptions = given;
        var reading = call.ResponseStream.MoveNext(CancellationToken.None);
        await Elapse(reading);
        Assert.True(await reading.Soon());
        Assert.Same(given, call.RequestStream.WriteOptions);
    }

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public async Task AFailedWrite_IsNotTheFailureOfTheResponse(bool pooled)
    {
        var end = new TaskCompletionSource();
        Server.ThenBreakUnderTheWriter(end.Task);
        using var channel = Server.Create();
        var client = pooled ? NewClient(static options => options.IsIdempotent = static _ => true).Client : new User.UserClient(channel);
        using var call = client.ImportNames();
        await Assert.ThrowsAsync<IOException>(() => call.RequestStream.WriteAsync(new ImportNameRequest()).Soon());
        Assert.False(call.ResponseAsync.IsCompleted);

        Server.ThenBreak().ThenBreak().ThenBreak();
        end.SetResult();
        await Elapse(call.ResponseAsync);
        var exception = await Assert.ThrowsAsync<RpcException>(() => call.ResponseAsync.Soon());
        Assert.Equal(StatusCode.Unavailable, exception.StatusCode);
        Assert.Equal(StatusCode.Unavailable, call.GetStatus().StatusCode);
    }
}

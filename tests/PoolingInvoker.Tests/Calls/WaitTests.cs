using Grpc.Core;
using Microsoft.Extensions.Time.Testing;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.Tests.Calls;

/// <summary>Calls that get no channel, or late.</summary>
public sealed class WaitTests : IDisposable
{
    private readonly FakeTimeProvider _time = new(DateTimeOffset.UtcNow);
    private readonly ScriptedServer _server = new();
    private readonly ChannelPool _pool;
    private readonly User.UserClient _client;

    public WaitTests()
    {
        _pool = new ChannelPool(_server, new ChannelPoolOptions { MaxPoolSize = 1, MaxConcurrentCallsPerChannel = 1, MaxCallsWaiting = 2, PooledChannelLifetime = Timeout.InfiniteTimeSpan, TimeProvider = _time, Queue = InlineWork.Queue });
        _client = new User.UserClient(new PoolingCallInvoker(_pool));
    }

    public void Dispose() => _pool.Dispose();

    [Fact]
    public async Task AFullPool_IsResourceExhausted_AndNothingIsSent()
    {
        using var taken = await _pool.AcquireAsync().Soon();
        var waiting = _client.GetNameAsync(new GetNameRequest());
        var second = _client.ListNames(new ListNamesRequest());

        var refused = await Assert.ThrowsAsync<RpcException>(() => _client.GetNameAsync(new GetNameRequest()).ResponseAsync.Soon());
        Assert.Equal(StatusCode.ResourceExhausted, refused.StatusCode);
        Assert.Contains("Pool.MaxCallsWaiting (2)", refused.Status.Detail, StringComparison.Ordinal);
        Assert.Equal(2, Assert.IsType<ChannelPoolExhaustedException>(refused.Status.DebugException).CallsWaiting);

        _time.Advance(TimeSpan.FromSeconds(30));
        var timedOut = await Assert.ThrowsAsync<RpcException>(() => waiting.ResponseAsync.Soon());
        Assert.Equal(typeof(RpcException), timedOut.GetType());
        Assert.Equal(StatusCode.ResourceExhausted, timedOut.StatusCode);
        Assert.Contains("Pool.AcquireTimeout", timedOut.Status.Detail, StringComparison.Ordinal);
        Assert.Equal(TimeSpan.FromSeconds(30), Assert.IsType<ChannelPoolExhaustedException>(timedOut.Status.DebugException).Waited);
        Assert.Equal(StatusCode.ResourceExhausted, waiting.GetStatus().StatusCode);
        await Assert.ThrowsAsync<RpcException>(() => second.ResponseStream.MoveNext(CancellationToken.None).Soon());
        await Assert.ThrowsAsync<RpcException>(() => second.ResponseHeadersAsync.Soon());
        Assert.Empty(_server.Requests);
        Assert.Equal(0, _pool.GetStatistics().CallsWaiting);
    }

    [Fact]
    public async Task ADeadline_ComesBeforeTheAcquireTimeout()
    {
        using var taken = await _pool.AcquireAsync().Soon();
        var call = _client.GetNameAsync(new GetNameRequest(), deadline: _time.GetUtcNow().UtcDateTime.AddSeconds(10));
        _time.Advance(TimeSpan.FromSeconds(10));
        Assert.Equal(StatusCode.DeadlineExceeded, (await Assert.ThrowsAsync<RpcException>(() => call.ResponseAsync.Soon())).StatusCode);
    }

    [Fact]
    public async Task ACallThatWaitsForReady_OutlastsTheAcquireTimeout()
    {
        _server.ThenName("anna");
        var taken = await _pool.AcquireAsync().Soon();
        var call = _client.GetNameAsync(new GetNameRequest(), new CallOptions().WithWaitForReady());
        _time.Advance(TimeSpan.FromHours(1));
        Assert.False(call.ResponseAsync.IsCompleted);
        taken.Dispose();
        Assert.Equal("anna", (await call.ResponseAsync.Soon()).Name);
    }

    [Fact]
    public async Task ACallThatHasWaited_GoesOnAsAnyOther()
    {
        _server.ThenReply(new ChatMessage { Text = "a" });
        var taken = await _pool.AcquireAsync().Soon();
        using var call = _client.Chat();
        var writing = call.RequestStream.WriteAsync(new ChatMessage());
        var reading = call.ResponseStream.MoveNext(CancellationToken.None);
        var headers = call.ResponseHeadersAsync;
        Assert.Equal(1, _pool.GetStatistics().CallsWaiting);
        taken.Dispose();

        await writing.Soon();
        Assert.True(await reading.Soon());
        Assert.NotNull(await headers.Soon());
        await call.RequestStream.CompleteAsync().Soon();
        Assert.False(await call.ResponseStream.MoveNext(CancellationToken.None).Soon());
        Assert.Equal(0, _pool.GetStatistics().CallsInFlight);
    }

    [Fact]
    public async Task RequestsThatAreCompleteBeforeThereIsAChannel_AreCompletedOnIt()
    {
        _server.ThenReply(new ImportNamesReply { Imported = 3 });
        var taken = await _pool.AcquireAsync().Soon();
        using var call = _client.ImportNames();
        await call.RequestStream.CompleteAsync().Soon();
        taken.Dispose();
        Assert.Equal(3, (await call.ResponseAsync.Soon()).Imported);
    }

    [Fact]
    public async Task ATokenOfTheFirstReadOrWrite_EndsACallThatWaits()
    {
        using var taken = await _pool.AcquireAsync().Soon();
        using var cancellation = new CancellationTokenSource();
        using var reads = _client.ListNames(new ListNamesRequest());
        using var writes = _client.ImportNames();
        var reading = reads.ResponseStream.MoveNext(cancellation.Token);
        var writing = writes.RequestStream.WriteAsync(new ImportNameRequest(), cancellation.Token);
        await cancellation.CancelAsync();

        foreach (var task in new[] { reading, writing })
        {
            var exception = await Assert.ThrowsAsync<RpcException>(() => task.Soon());
            Assert.Equal(StatusCode.Cancelled, exception.StatusCode);
            Assert.Equal(cancellation.Token, Assert.IsType<OperationCanceledException>(exception.Status.DebugException).CancellationToken);
        }

        await Waiting.Until(() => _pool.GetStatistics().CallsWaiting == 0);
    }

    [Fact]
    public async Task ThePoolThatIsDisposed_EndsACallThatWaits()
    {
        var taken = await _pool.AcquireAsync().Soon();
        var call = _client.GetNameAsync(new GetNameRequest());
        _pool.Dispose();
        var exception = await Assert.ThrowsAsync<RpcException>(() => call.ResponseAsync.Soon());
        Assert.Equal(new Status(StatusCode.Cancelled, "gRPC call disposed."), exception.Status);
        taken.Dispose();
    }

    [Fact]
    public async Task APolicyThatMakesNoChannel_IsTriedAgain_AndThenUnavailable()
    {
        var policy = new StubPolicy { OnCreate = static () => throw new TimeoutException("no dial tone") };
        using var pool = new ChannelPool(policy, new ChannelPoolOptions { TimeProvider = _time, Queue = InlineWork.Queue });
        var client = new User.UserClient(new PoolingCallInvoker(pool));
        var call = client.RenameAsync(new RenameRequest());
        await Waiting.Until(() =>
        {
            _time.Advance(TimeSpan.FromMilliseconds(50));
            return call.ResponseAsync.IsCompleted;
        });
        var exception = await Assert.ThrowsAsync<RpcException>(() => call.ResponseAsync.Soon());
        Assert.Equal(typeof(RpcException), exception.GetType());
        Assert.Equal(StatusCode.Unavailable, exception.StatusCode);
        Assert.Contains("no dial tone", exception.Status.Detail, StringComparison.Ordinal);
        Assert.Equal(3, pool.GetStatistics().Retries);
    }
}

using Grpc.Core;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.Tests.Calls;

/// <summary>The calls on a channel that is given up over a transport of the user's own: the pool ends them, as if the connection had broken.</summary>
public sealed class GivenUpCallsTests : ScriptedCalls
{
    private readonly Lock _gate = new();
    private CallInvoker? _silent; // the first channel that is asked; the others answer

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public async Task AnIdempotentCall_Moves(bool throwsOperationCanceled)
    {
        Server.ConfigureChannel = options => options.ThrowOperationCanceledOnCancellation = throwsOperationCanceled;
        Server.ThenHang().ThenName("anna");
        var (client, pool) = NewProbedClient();
        var call = client.GetNameAsync(new GetNameRequest());
        var headers = call.ResponseHeadersAsync;
        await ElapseAsync(call.ResponseAsync);
        Assert.Equal("anna", (await call).Name);
        await headers.Soon();
        Assert.Equal(StatusCode.OK, call.GetStatus().StatusCode);
        Assert.Equal(1, pool.GetStatistics().ChannelsGivenUp);
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public async Task AnotherOne_EndsWithTheReason_WhichStays(bool throwsOperationCanceled)
    {
        Server.ConfigureChannel = options => options.ThrowOperationCanceledOnCancellation = throwsOperationCanceled;
        Server.ThenHang();
        var (client, _) = NewProbedClient();
        var call = client.RenameAsync(new RenameRequest());
        var headers = call.ResponseHeadersAsync;
        await ElapseAsync(call.ResponseAsync);
        AssertGivenUp((await Assert.ThrowsAsync<RpcException>(() => call.ResponseAsync)).Status);
        AssertGivenUp((await Assert.ThrowsAsync<RpcException>(() => headers.Soon())).Status);
        AssertGivenUp((await Assert.ThrowsAsync<RpcException>(() => call.ResponseHeadersAsync.Soon())).Status);
        call.Dispose();
        AssertGivenUp(call.GetStatus());
        Assert.Single(Server.Requests);
    }

    [Fact]
    public async Task AClientStream_Ends()
    {
        Server.ThenHang();
        var (client, _) = NewProbedClient(retries: 0);
        var call = client.ImportNames();
        await call.RequestStream.WriteAsync(new ImportNameRequest());
        await ElapseAsync(call.ResponseAsync);
        AssertGivenUp((await Assert.ThrowsAsync<RpcException>(() => call.ResponseAsync)).Status);
        AssertGivenUp(call.GetStatus());
        AssertGivenUp((await Assert.ThrowsAsync<RpcException>(() => call.RequestStream.WriteAsync(new ImportNameRequest()).Soon())).Status);
        await call.RequestStream.CompleteAsync();
    }

    // The channel has ended the call, and the pool has yet to see that.
    [Fact]
    public async Task AClientStream_EndsForItsWriter_InTheMomentInWhichItIsBroken()
    {
        AsyncClientStreamingCall<ImportNameRequest, ImportNamesReply>? call = null;
        var ended = new TaskCompletionSource<Exception>();
        Server.Then(async token =>
        {
            await using var registration = token.Register(() => ended.SetResult(EndOfWrites()));
            await Task.Delay(Timeout.InfiniteTimeSpan, TimeProvider.System, token).ConfigureAwait(false);
            throw new InvalidOperationException();
        });
        var (client, _) = NewProbedClient(retries: 0);
        call = client.ImportNames();
        await call.RequestStream.WriteAsync(new ImportNameRequest());
        await ElapseAsync(ended.Task);
        AssertGivenUp(Assert.IsType<RpcException>(await ended.Task).Status);
        AssertGivenUp((await Assert.ThrowsAsync<RpcException>(() => call.ResponseAsync.Soon())).Status);

        Exception EndOfWrites()
        {
            try
            {
                call!.RequestStream.CompleteAsync().GetAwaiter().GetResult();
                return call.RequestStream.WriteAsync(new ImportNameRequest()).Exception!.InnerException!;
            }
            catch (Exception exception)
            {
                return exception;
            }
        }
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public async Task AStreamWithoutHeaders_EndsItsReadAndItsWrite(bool readsFirst)
    {
        Server.ThenTakeNothing();
        var (client, _) = NewProbedClient(retries: 0);
        var call = client.Chat();
        var reading = readsFirst ? call.ResponseStream.MoveNext(CancellationToken.None) : Task.FromResult(false);
        var writing = call.RequestStream.WriteAsync(new ChatMessage());
        await ElapseAsync(Task.WhenAll(reading, writing));
        AssertGivenUp((await Assert.ThrowsAsync<RpcException>(() => writing)).Status);
        reading = readsFirst ? reading : call.ResponseStream.MoveNext(CancellationToken.None);
        AssertGivenUp((await Assert.ThrowsAsync<RpcException>(() => reading.Soon())).Status);
        AssertGivenUp(call.GetStatus());
        call.Dispose();
        AssertGivenUp(call.GetStatus());
    }

    // It is at rest, which is no silence: another call is waited for in vain.
    [Fact]
    public async Task AStreamUnderWay_EndsItsReadAndItsWrite()
    {
        var never = new TaskCompletionSource();
        Server.ThenPause(new ChatMessage { Text = "a" }, never.Task, new ChatMessage()).ThenHang().ThenName("anna");
        var (client, _) = NewProbedClient();
        var call = client.Chat();
        Assert.True(await call.ResponseStream.MoveNext(CancellationToken.None).Soon());
        var reading = call.ResponseStream.MoveNext(CancellationToken.None);
        var writing = call.RequestStream.WriteAsync(new ChatMessage());
        Assert.False(writing.IsCompleted);
        var other = client.GetNameAsync(new GetNameRequest());
        await ElapseAsync(Task.WhenAll(reading, writing, other.ResponseAsync), requests: 2);
        Assert.Equal("anna", (await other).Name);
        AssertGivenUp((await Assert.ThrowsAsync<RpcException>(() => reading)).Status);
        AssertGivenUp((await Assert.ThrowsAsync<RpcException>(() => writing)).Status);
        AssertGivenUp(call.GetStatus());
        AssertGivenUp((await Assert.ThrowsAsync<RpcException>(() => call.ResponseStream.MoveNext(CancellationToken.None).Soon())).Status);
        call.Dispose();
        AssertGivenUp(call.GetStatus());
    }

    [Fact]
    public async Task WhatTheCallerHasEndedBefore_KeepsItsStatus()
    {
        Server.ThenHang().ThenHang().ThenName("anna");
        var (client, _) = NewProbedClient();
        using var cancellation = new CancellationTokenSource();
        var cancelled = client.RenameAsync(new RenameRequest(), cancellationToken: cancellation.Token);
        var other = client.GetNameAsync(new GetNameRequest());
        await Waiting.Until(() => Server.Requests.Count == 2);
        await cancellation.CancelAsync();
        Assert.Equal(StatusCode.Cancelled, (await Assert.ThrowsAsync<RpcException>(() => cancelled.ResponseAsync.Soon())).StatusCode);
        await ElapseAsync(other.ResponseAsync, requests: 2);
        Assert.Equal(StatusCode.Cancelled, cancelled.GetStatus().StatusCode);
    }

    // Time passes when the server has the requests: a call that was not sent yet could take the answer that is meant for another.
    private async Task ElapseAsync(Task ending, int requests = 1)
    {
        await Waiting.Until(() => Server.Requests.Count >= requests);
        await Elapse(ending);
        _ = ending.Exception; // of several the test looks at one after the other
    }

    private static void AssertGivenUp(Status status)
    {
        Assert.True(StatusCode.Unavailable == status.StatusCode, status.ToString());
        Assert.StartsWith("The pool has given the channel up: nothing has come from it for ", status.Detail, StringComparison.Ordinal);
    }

    private (User.UserClient Client, ChannelPool Pool) NewProbedClient(int retries = 3) => NewClient(options =>
    {
        options.Retry.MaxRetryAttempts = retries;
        options.Pool.ProbeDelay = TimeSpan.FromSeconds(1);
        options.Pool.ProbeCallback = (invoker, token) =>
        {
            lock (_gate)
            {
                _silent ??= invoker;
            }

            return invoker == _silent ? Task.Delay(Timeout.Infinite, token) : Task.CompletedTask;
        };
    });
}

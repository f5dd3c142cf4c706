using Grpc.Core;
using Grpc.Net.Client.Configuration;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.Tests.Calls;

/// <summary>Several attempts of a call at a time.</summary>
public sealed class HedgingTests : ScriptedCalls
{
    private static readonly TimeSpan Delay = TimeSpan.FromMilliseconds(100);

    [Fact]
    public async Task AnAnswerInTime_IsNotHedged()
    {
        var answer = new TaskCompletionSource();
        Server.ThenReplyAfter(answer.Task, new GetNameReply { Name = "anna" });
        var (client, pool) = NewHedged();
        var call = client.GetNameAsync(new GetNameRequest());
        await UntilHedgeIsDue(1);
        Time.Advance(Delay - TimeSpan.FromMilliseconds(1));
        answer.SetResult();
        Assert.Equal("anna", (await call.ResponseAsync.Soon()).Name);
        Time.Advance(TimeSpan.FromHours(1));
        Assert.Single(Server.Requests);
        Assert.Equal(0, pool.GetStatistics().Retries);
        Assert.Equal(StatusCode.OK, call.GetStatus().StatusCode);
    }

    [Fact]
    public async Task AfterTheDelay_TheFirstAnswerWins_AndTheLoserIsCancelled()
    {
        var cancelled = new TaskCompletionSource();
        Server.Then(token => Cancelled(cancelled, token)).ThenNameWithHeader("anna", "from", "hedge");
        var (client, pool) = NewHedged();
        var call = client.GetNameAsync(new GetNameRequest());
        var headers = call.ResponseHeadersAsync;
        Assert.Throws<InvalidOperationException>(() => call.GetStatus());
        await UntilHedgeIsDue(1);
        Time.Advance(Delay);

        Assert.Equal("anna", (await call.ResponseAsync.Soon()).Name);
        await cancelled.Task.Soon();
        Assert.Equal("hedge", (await headers.Soon()).GetValue("from"));
        Assert.Equal("hedge", (await call.ResponseHeadersAsync.Soon()).GetValue("from"));
        Assert.Equal(StatusCode.OK, call.GetStatus().StatusCode);
        Assert.Empty(call.GetTrailers());
        Assert.NotEqual(Server.Requests[0].Channel, Server.Requests[1].Channel);
        Assert.Equal(1, pool.GetStatistics().Retries);
        await Waiting.Until(() => pool.GetStatistics().CallsInFlight == 0);
        Assert.Equal(0, pool.GetStatistics().ChannelsReplaced); // to lose is no fault
    }

    [Fact]
    public async Task TheFirstAttempt_MayWinAllTheSame()
    {
        var answer = new TaskCompletionSource();
        var cancelled = new TaskCompletionSource();
        Server.ThenReplyAfter(answer.Task, new GetNameReply { Name = "anna" }).Then(token => Cancelled(cancelled, token));
        var (client, _) = NewHedged();
        var call = client.GetNameAsync(new GetNameRequest());
        await UntilHedgeIsDue(1);
        Time.Advance(Delay);
        await Waiting.Until(() => Server.Requests.Count == 2);
        answer.SetResult();
        Assert.Equal("anna", (await call.ResponseAsync.Soon()).Name);
        await cancelled.Task.Soon();
    }

    [Fact]
    public async Task AHedge_IsOnAnotherChannel_AlsoWhereOneIsEnoughForAllCalls()
    {
        Server.ThenHang().ThenName("anna");
        var (client, _) = NewHedged(options => options.Pool.MinPoolSize = 1);
        var call = client.GetNameAsync(new GetNameRequest());
        await UntilHedgeIsDue(1);
        Time.Advance(Delay);
        await call.ResponseAsync.Soon();
        Assert.NotEqual(Server.Requests[0].Channel, Server.Requests[1].Channel);
    }

    [Fact]
    public async Task AHedge_IsOnAnotherChannel_EvenIfThatIsBusier()
    {
        var (client, pool) = NewHedged(options => options.Pool.MinPoolSize = 2);
        for (var i = 0; i < 2; i++)
        {
            Server.ThenName("anna");
            await client.GetNameAsync(new GetNameRequest()).ResponseAsync.Soon();
        }

        var leases = new List<ChannelLease>();
        for (var i = 0; i < 10; i++)
        {
            leases.Add(await pool.AcquireAsync().Soon());
        }

        var idle = leases[0].Channel;
        leases.FindAll(lease => lease.Channel == idle).ForEach(static lease => lease.Dispose());
        Server.ThenHang().ThenName("anna");
        var due = Time.Dues.Count(static due => due == Delay);
        var call = client.GetNameAsync(new GetNameRequest());
        await UntilHedgeIsDue(due + 1);
        Time.Advance(Delay);
        await call.ResponseAsync.Soon();
        Assert.NotEqual(Server.Requests[^2].Channel, Server.Requests[^1].Channel);
        leases.ForEach(static lease => lease.Dispose());
    }

    [Fact]
    public async Task AsManyHedges_AsAreAllowed_EachOnAChannelOfItsOwn()
    {
        Server.ThenHang().ThenHang().ThenName("anna");
        var (client, _) = NewHedged(hedging: static hedging => hedging.MaxHedgedAttempts = 2);
        var call = client.GetNameAsync(new GetNameRequest());
        for (var i = 1; i <= 2; i++)
        {
            await UntilHedgeIsDue(i);
            Time.Advance(Delay);
        }

        Assert.Equal("anna", (await call.ResponseAsync.Soon()).Name);
        Assert.Equal(3, Server.Requests.Select(static request => request.Channel).Distinct().Count());
        Assert.Equal([null, "1", "2"], Server.Requests.Select(static request =>
            request.Request.Headers.TryGetValues("grpc-previous-rpc-attempts", out var values) ? Assert.Single(values) : null));
    }

    [Theory]
    [InlineData("unavailable")]
    [InlineData("refused")]
    public async Task AFailureOfTheFirstAttempt_IsHedgedAtOnce(string fault)
    {
        _ = fault == "refused" ? Server.ThenRefuse() : Server.ThenStatus(StatusCode.Unavailable);
        Server.ThenName("anna");
        var (client, _) = NewHedged();
        Assert.Equal("anna", (await client.GetNameAsync(new GetNameRequest()).ResponseAsync.Soon()).Name);
    }

    [Fact]
    public async Task AFailureThatAnotherAttemptWouldNotMend_EndsTheCall()
    {
        Server.ThenStatus(StatusCode.InvalidArgument);
        var (client, _) = NewHedged();
        var exception = await Assert.ThrowsAsync<RpcException>(() => client.GetNameAsync(new GetNameRequest()).ResponseAsync.Soon());
        Assert.Equal(StatusCode.InvalidArgument, exception.StatusCode);
    }

    [Fact]
    public async Task WhenBothFail_TheCallerGetsOneOfTheFailures()
    {
        Server.ThenStatus(StatusCode.Unavailable, ("from", "first")).ThenStatus(StatusCode.Unavailable, ("from", "hedge"));
        var (client, pool) = NewHedged();
        var call = client.GetNameAsync(new GetNameRequest());
        var exception = await Assert.ThrowsAsync<RpcException>(() => call.ResponseAsync.Soon());
        Assert.Equal(StatusCode.Unavailable, exception.StatusCode);
        Assert.Equal("first", exception.Trailers.GetValue("from")); // as Polly has it
        Assert.Equal(exception.Status, call.GetStatus());
        Assert.Equal("first", call.GetTrailers().GetValue("from"));
        Assert.Equal(1, pool.GetStatistics().Retries);
    }

    [Fact]
    public async Task WhatIsNotIdempotent_IsNotHedged_ButRetriedWhereThatIsSafe()
    {
        Server.ThenHang().ThenRefuse().ThenName("anna");
        var (client, _) = NewHedged();
        using (client.RenameAsync(new RenameRequest()))
        {
            await Waiting.Until(() => Server.Requests.Count == 1);
            Time.Advance(TimeSpan.FromHours(1));
            Assert.Single(Server.Requests);
        }

        var calling = client.RenameAsync(new RenameRequest()).ResponseAsync;
        await Elapse(calling);
        await calling.Soon();
        Assert.Equal(3, Server.Requests.Count);
    }

    [Fact]
    public async Task AStream_IsRetried_AsWithoutHedging()
    {
        Server.ThenBreak().ThenReply(new NameReply { Name = "anna" });
        var (client, _) = NewHedged();
        using var call = client.ListNames(new ListNamesRequest());
        var reading = call.ResponseStream.MoveNext(CancellationToken.None);
        await Elapse(reading);
        Assert.True(await reading.Soon());
        Assert.False(await call.ResponseStream.MoveNext(CancellationToken.None).Soon());
    }

    [Theory]
    [InlineData("late")]
    [InlineData("failed")]
    public async Task OnAnEmptyBudget_NothingIsHedged(string what)
    {
        var (client, pool) = NewHedged(static options => options.Pool.RetryThrottling = new RetryThrottlingPolicy { MaxTokens = 1, TokenRatio = 1 });
        var spending = new User.UserClient(new PoolingCallInvoker(pool, new PoolingCallInvokerOptions { Retry = { MaxRetryAttempts = 0 } }));
        Server.ThenStatus(StatusCode.Unavailable);
        await Assert.ThrowsAsync<RpcException>(() => spending.GetNameAsync(new GetNameRequest()).ResponseAsync.Soon());

        if (what == "failed")
        {
            Server.ThenStatus(StatusCode.Unavailable);
            await Assert.ThrowsAsync<RpcException>(() => client.GetNameAsync(new GetNameRequest()).ResponseAsync.Soon());
        }
        else
        {
            var answer = new TaskCompletionSource();
            Server.ThenReplyAfter(answer.Task, new GetNameReply { Name = "anna" });
            var calling = client.GetNameAsync(new GetNameRequest()).ResponseAsync;
            await Waiting.Until(() => Server.Requests.Count == 2);
            Time.Advance(TimeSpan.FromMinutes(1));
            answer.SetResult();
            Assert.Equal("anna", (await calling.Soon()).Name);
        }

        Assert.Equal(2, Server.Requests.Count);
    }

    [Theory]
    [InlineData("dispose", StatusCode.Cancelled)]
    [InlineData("token", StatusCode.Cancelled)]
    [InlineData("deadline", StatusCode.DeadlineExceeded)]
    public async Task TheCaller_EndsAllAttempts(string how, StatusCode expected)
    {
        var (first, second) = (new TaskCompletionSource(), new TaskCompletionSource());
        Server.Then(token => Cancelled(first, token)).Then(token => Cancelled(second, token));
        var (client, pool) = NewHedged();
        using var cancellation = new CancellationTokenSource();

        // The channel goes by the clock of the machine, which may be so busy that the deadline comes before the attempts.
        var deadline = how == "deadline" ? DateTime.UtcNow.AddSeconds(0.5) : (DateTime?)null;
        var call = client.GetNameAsync(new GetNameRequest(), deadline: deadline, cancellationToken: cancellation.Token);
        await Task.WhenAny(UntilHedgeIsDue(1), call.ResponseAsync);
        Time.Advance(Delay);
        await Waiting.Until(() => Server.Requests.Count == 2 || call.ResponseAsync.IsCompleted);

        switch (how)
        {
            case "dispose":
                call.Dispose();
                break;
            case "token":
                await cancellation.CancelAsync();
                break;
            default:
                Time.Advance(TimeSpan.FromSeconds(1));
                break;
        }

        var exception = await Assert.ThrowsAsync<RpcException>(() => call.ResponseAsync.Soon());
        Assert.Equal(expected, exception.StatusCode);
        Assert.Equal(expected, call.GetStatus().StatusCode);
        await Task.WhenAll(new[] { first.Task, second.Task }.Take(Server.Requests.Count)).Soon();
        await Waiting.Until(() => pool.GetStatistics().CallsInFlight == 0);
        Assert.Equal(0, pool.GetStatistics().ChannelsReplaced);
    }

    [Fact]
    public async Task ABlockingCall_IsHedgedToo()
    {
        Server.ThenHang().ThenName("anna");
        var (client, _) = NewHedged();
        var calling = Task.Run(() => client.GetName(new GetNameRequest()));
        await UntilHedgeIsDue(1);
        Time.Advance(Delay);
        Assert.Equal("anna", (await calling.Soon()).Name);
    }

    [Fact]
    public async Task ACallThatWaitsForReady_WaitsForAConnection()
    {
        Server.ThenRefuse().ThenRefuse().ThenRefuse().ThenName("anna");
        var (client, _) = NewHedged();
        var calling = client.GetNameAsync(new GetNameRequest(), new CallOptions().WithWaitForReady()).ResponseAsync;
        await Elapse(calling);
        Assert.Equal("anna", (await calling.Soon()).Name);
    }

    [Fact]
    public async Task AServerThatAsksForAPause_GetsIt()
    {
        Server.ThenStatus(StatusCode.Unavailable, ("grpc-retry-pushback-ms", "1234")).ThenName("anna");
        var (client, _) = NewHedged();
        var calling = client.GetNameAsync(new GetNameRequest()).ResponseAsync;
        await Waiting.Until(() => Server.Requests.Count == 2 || Time.Dues.Contains(TimeSpan.FromMilliseconds(1234)));
        Assert.Single(Server.Requests);
        Time.Advance(TimeSpan.FromMilliseconds(1234));
        Assert.Equal("anna", (await calling.Soon()).Name);
    }

    [Fact]
    public async Task AServerThatAsksForNoFurtherAttempt_DoesNotEndTheHedgeUnderWay()
    {
        var (refusal, answer) = (new TaskCompletionSource(), new TaskCompletionSource());
        Server.ThenStatusAfter(refusal.Task, StatusCode.Unavailable, ("grpc-retry-pushback-ms", "-1")).ThenReplyAfter(answer.Task, new GetNameReply { Name = "anna" });
        var (client, pool) = NewHedged();
        var calling = client.GetNameAsync(new GetNameRequest()).ResponseAsync;
        await UntilHedgeIsDue(1);
        Time.Advance(Delay);
        await Waiting.Until(() => Server.Requests.Count == 2);
        refusal.SetResult();
        await Waiting.Until(() => pool.GetStatistics().CallsInFlight == 1 || calling.IsCompleted);
        answer.SetResult();
        Assert.Equal("anna", (await calling.Soon()).Name);
    }

    private static async Task<HttpResponseMessage> Cancelled(TaskCompletionSource cancelled, CancellationToken token)
    {
        try
        {
            await Task.Delay(Timeout.InfiniteTimeSpan, TimeProvider.System, token);
        }
        finally
        {
            cancelled.TrySetResult();
        }

        throw new InvalidOperationException();
    }

    // And the attempts before it have arrived, in their order.
    private Task UntilHedgeIsDue(int times) => Waiting.Until(() => Time.Dues.Count(static due => due == Delay) == times && Server.Requests.Count >= times);

    private (User.UserClient Client, ChannelPool Pool) NewHedged(Action<PoolingCallInvokerOptions>? configure = null, Action<ChannelHedgingStrategyOptions>? hedging = null) =>
        NewClient(options =>
        {
            var strategy = new ChannelHedgingStrategyOptions { Delay = Delay };
            hedging?.Invoke(strategy);
            options.Pool.MinPoolSize = 3;
            options.MethodConfigs.Add(new PooledMethodConfig { Names = { new MethodName { Service = "user.v1.User" } }, Hedging = strategy });
            configure?.Invoke(options);
        });
}

using Grpc.Core;
using Microsoft.Extensions.Time.Testing;
using Polly;
using Polly.CircuitBreaker;
using Polly.Retry;
using Polly.Timeout;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.Tests.Calls;

/// <summary>What is tried again, where, how often, and what the caller sees when that does not help.</summary>
public sealed class RetryTests : IDisposable
{
    private readonly FakeTimeProvider _time = new(DateTimeOffset.UtcNow) { AutoAdvanceAmount = TimeSpan.Zero };
    private readonly ScriptedServer _server = new();
    private readonly List<ChannelPool> _pools = [];

    public void Dispose() => _pools.ForEach(static pool =>
    {
        Assert.Equal(0, pool.GetStatistics().CallsInFlight);
        pool.Dispose();
    });

    [Theory]
    [InlineData("refused", "GetName", true)]
    [InlineData("refused", "Rename", true)] // it never left
    [InlineData("broken", "GetName", true)]
    [InlineData("broken", "Rename", false)] // it may have run
    [InlineData("unavailable", "GetName", true)]
    [InlineData("unavailable", "Rename", false)]
    [InlineData("refused stream", "Rename", true)]
    [InlineData("reset", "GetName", true)]
    [InlineData("reset", "Rename", false)]
    [InlineData("invalid", "GetName", false)]
    public async Task AUnaryCall_IsTriedAgainWhereThatIsSafe(string fault, string method, bool again)
    {
        _ = fault switch
        {
            "refused" => _server.ThenRefuse(),
            "broken" => _server.ThenBreak(),
            "unavailable" => _server.ThenStatus(StatusCode.Unavailable),
            "refused stream" => _server.ThenThrow(new HttpRequestException(HttpRequestError.HttpProtocolError, "", new HttpProtocolException(7, "refused", null))),
            "reset" => _server.ThenThrow(new HttpRequestException(HttpRequestError.HttpProtocolError, "", new HttpProtocolException(2, "reset", null))),
            _ => _server.ThenStatus(StatusCode.InvalidArgument),
        };
        _server.ThenName("anna");
        var (client, pool) = NewClient();

        var calling = CallAsync(client, method);
        if (again)
        {
            await Elapse(calling);
            await calling.Soon();
        }
        else
        {
            await Assert.ThrowsAsync<RpcException>(() => calling.Soon());
        }

        Assert.Equal(again ? 2 : 1, _server.Requests.Count);
        Assert.Equal(again ? 1 : 0, pool.GetStatistics().Retries);
        Assert.Equal(fault is "refused" or "broken" ? 1 : 0, pool.GetStatistics().ChannelsReplaced);
    }

    [Fact]
    public async Task AnotherAttempt_GoesToAnotherChannel_WhereThereIsOne()
    {
        for (var i = 0; i < 20; i++)
        {
            _server.ThenStatus(StatusCode.Unavailable).ThenName("anna"); // no reason to replace the channel
        }

        var (client, pool) = NewClient(options => options.Pool.MinPoolSize = 3);
        for (var i = 0; i < 20; i++)
        {
            var calling = CallAsync(client, "GetName");
            await Elapse(calling);
            await calling.Soon();
        }

        Assert.Equal(3, pool.GetStatistics().Channels);
        Assert.All(_server.Requests.Chunk(2).Skip(1), static call => Assert.NotEqual(call[0].Channel, call[1].Channel));
    }

    [Fact]
    public async Task WhenAllAttemptsFail_TheCallerGetsTheLastFailure_WithItsCause()
    {
        _server.ThenRefuse().ThenRefuse().ThenRefuse().ThenRefuse();
        var (client, _) = NewClient();
        var call = client.GetNameAsync(new GetNameRequest());
        await Elapse(call.ResponseAsync);

        var exception = await Assert.ThrowsAsync<RpcException>(() => call.ResponseAsync.Soon());
        Assert.Equal(StatusCode.Unavailable, exception.StatusCode);
        Assert.IsType<HttpRequestException>(exception.Status.DebugException);
        Assert.Equal(exception.Status, call.GetStatus());
        Assert.Equal(4, _server.Requests.Count);
    }

    [Fact]
    public async Task WithTheRetryOff_TheFirstFailureIsTheLast()
    {
        _server.ThenRefuse();
        var (client, _) = NewClient(static options => options.Retry.MaxRetryAttempts = 0);
        await Assert.ThrowsAsync<RpcException>(() => CallAsync(client, "GetName").Soon());
    }

    [Theory]
    [InlineData("GetName", false)]
    [InlineData("Rename", true)]
    public async Task IsIdempotent_HasTheLastWord(string method, bool again)
    {
        _server.ThenBreak().ThenName("anna");
        var (client, _) = NewClient(static options => options.IsIdempotent = static method => method.Name == "Rename");
        var calling = CallAsync(client, method);
        if (again)
        {
            await Elapse(calling);
            await calling.Soon();
        }
        else
        {
            await Assert.ThrowsAsync<RpcException>(() => calling.Soon());
        }
    }

    [Fact]
    public async Task IsIdempotentThatThrows_HidesNothing()
    {
        _server.ThenBreak();
        var (client, _) = NewClient(static options => options.IsIdempotent = static _ => throw new InvalidOperationException("no idea"));
        var exception = await Assert.ThrowsAsync<RpcException>(() => CallAsync(client, "GetName").Soon());
        Assert.Equal(StatusCode.Unavailable, exception.StatusCode);
    }

    [Fact]
    public async Task APredicateOfTheUsers_SeesTheOutcomes_ButLaw7Stands()
    {
        _server.ThenStatus(StatusCode.ResourceExhausted).ThenName("anna").ThenStatus(StatusCode.ResourceExhausted);
        var asked = 0;
        var (client, _) = NewClient(options => options.Retry.ShouldHandle = arguments =>
        {
            asked++;
            return ValueTask.FromResult(arguments.Outcome.Exception is RpcException { StatusCode: StatusCode.ResourceExhausted });
        });

        var calling = CallAsync(client, "GetName");
        await Elapse(calling);
        await calling.Soon();
        Assert.Equal(2, asked);

        await Assert.ThrowsAsync<RpcException>(() => CallAsync(client, "Rename").Soon());
        Assert.Equal(3, _server.Requests.Count);
    }

    [Fact]
    public async Task APipelineThatRetriesEverything_DoesNotMakeRenameRunTwice()
    {
        _server.ThenBreak().ThenBreak().ThenName("anna");
        var (client, _) = NewClient(static options => options.ConfigurePipeline = static pipeline => pipeline.AddRetry(new RetryStrategyOptions
        {
            MaxRetryAttempts = 5,
            Delay = TimeSpan.Zero,
        }));

        await Assert.ThrowsAsync<RpcException>(() => CallAsync(client, "Rename").Soon());
        Assert.Single(_server.Requests);
        await CallAsync(client, "GetName").Soon();
        Assert.Equal(3, _server.Requests.Count);
    }

    [Fact]
    public async Task ATimeoutOfThePipeline_IsADeadlineExceeded_AndGivesTheLeaseBack()
    {
        _server.ThenHang();
        var (client, pool) = NewClient(static options => options.ConfigurePipeline = static pipeline => pipeline.AddTimeout(TimeSpan.FromSeconds(3)));
        var calling = CallAsync(client, "GetName");
        Assert.Equal(1, pool.GetStatistics().CallsInFlight);
        _time.Advance(TimeSpan.FromSeconds(3));

        var exception = await Assert.ThrowsAsync<RpcException>(() => calling.Soon());
        Assert.Equal(StatusCode.DeadlineExceeded, exception.StatusCode);
        Assert.IsType<TimeoutRejectedException>(exception.Status.DebugException);
        Assert.Equal(0, pool.GetStatistics().CallsInFlight);
    }

    [Fact]
    public async Task ABrokenCircuit_IsUnavailable()
    {
        _server.ThenBreak().ThenBreak();
        var (client, _) = NewClient(static options => options.ConfigurePipeline = static pipeline => pipeline.AddCircuitBreaker(new CircuitBreakerStrategyOptions
        {
            MinimumThroughput = 2,
            FailureRatio = 1,
        }));
        await Assert.ThrowsAsync<RpcException>(() => CallAsync(client, "GetName").Soon());
        await Assert.ThrowsAsync<RpcException>(() => CallAsync(client, "GetName").Soon());

        var exception = await Assert.ThrowsAsync<RpcException>(() => CallAsync(client, "GetName").Soon());
        Assert.Equal(StatusCode.Unavailable, exception.StatusCode);
        Assert.IsType<BrokenCircuitException>(exception.Status.DebugException);
        Assert.Equal(2, _server.Requests.Count);
    }

    [Fact]
    public async Task APipelineThatThrows_IsInternal_WithTheCauseInside()
    {
        _server.ThenBreak();
        var (client, _) = NewClient(static options => options.ConfigurePipeline = static pipeline => pipeline.AddRetry(new RetryStrategyOptions
        {
            OnRetry = static _ => throw new FormatException("of the user's"),
        }));
        var exception = await Assert.ThrowsAsync<RpcException>(() => CallAsync(client, "GetName").Soon());
        Assert.Equal(StatusCode.Internal, exception.StatusCode);
        Assert.IsType<FormatException>(exception.Status.DebugException);
    }

    [Fact]
    public async Task ABackoffThatTheDeadlineCutsShort_IsNotBegun()
    {
        _server.ThenRefuse();
        var (client, pool) = NewClient(static options => options.Retry.DelayGenerator = static _ => ValueTask.FromResult<TimeSpan?>(TimeSpan.FromHours(2)));
        var call = client.GetNameAsync(new GetNameRequest(), deadline: _time.GetUtcNow().UtcDateTime.AddHours(1));
        var exception = await Assert.ThrowsAsync<RpcException>(() => call.ResponseAsync.Soon());
        Assert.Equal(StatusCode.Unavailable, exception.StatusCode);
        Assert.Equal(StatusCode.Unavailable, call.GetStatus().StatusCode);
        Assert.Equal(0, pool.GetStatistics().Retries);
    }

    [Fact]
    public async Task TheDeadline_BoundsTheBackoffOfAnyPipeline()
    {
        _server.ThenRefuse();
        var (client, _) = NewClient(static options => options.ConfigurePipeline = static pipeline => pipeline.AddRetry(new RetryStrategyOptions { Delay = TimeSpan.FromHours(2) }));
        var call = client.GetNameAsync(new GetNameRequest(), deadline: _time.GetUtcNow().UtcDateTime.AddHours(1));
        await Waiting.Until(() => _server.Requests.Count == 1);
        _time.Advance(TimeSpan.FromMinutes(59));
        Assert.False(call.ResponseAsync.IsCompleted);
        Assert.Throws<InvalidOperationException>(() => call.GetStatus());
        _time.Advance(TimeSpan.FromMinutes(1));

        var exception = await Assert.ThrowsAsync<RpcException>(() => call.ResponseAsync.Soon());
        Assert.Equal(StatusCode.DeadlineExceeded, exception.StatusCode);
        Assert.Equal(StatusCode.DeadlineExceeded, call.GetStatus().StatusCode);
        Assert.IsType<RpcException>(exception.Status.DebugException); // why it had to be tried again
    }

    [Fact]
    public async Task TheCaller_EndsTheBackoff()
    {
        _server.ThenRefuse().ThenRefuse();
        var retries = 0;
        var (client, _) = NewClient(options =>
        {
            options.Retry.Delay = TimeSpan.FromSeconds(1);
            options.Retry.OnRetry = _ =>
            {
                Interlocked.Increment(ref retries); // the backoff comes next
                return default;
            };
        });
        using var cancellation = new CancellationTokenSource();
        var cancelled = client.GetNameAsync(new GetNameRequest(), cancellationToken: cancellation.Token);
        var disposed = client.GetNameAsync(new GetNameRequest());
        await Waiting.Until(() => Volatile.Read(ref retries) == 2);

        await cancellation.CancelAsync();
        disposed.Dispose();

        var exception = await Assert.ThrowsAsync<RpcException>(() => cancelled.ResponseAsync.Soon());
        Assert.Equal(StatusCode.Cancelled, exception.StatusCode);
        Assert.Equal(cancellation.Token, Assert.IsType<OperationCanceledException>(exception.Status.DebugException).CancellationToken);
        Assert.Equal(StatusCode.Cancelled, (await Assert.ThrowsAsync<RpcException>(() => disposed.ResponseAsync.Soon())).StatusCode);
    }

    [Fact]
    public async Task AServerStream_IsTriedAgain_UntilItsFirstMessage()
    {
        _server.ThenBreak().ThenBreakAfter().ThenReply(new NameReply { Name = "anna" });
        var (client, pool) = NewClient();
        using var call = client.ListNames(new ListNamesRequest());
        var reading = call.ResponseStream.MoveNext(CancellationToken.None);
        Assert.Throws<InvalidOperationException>(() => call.GetStatus());
        await Elapse(reading);

        Assert.True(await reading.Soon());
        Assert.Equal("anna", call.ResponseStream.Current.Name);
        Assert.False(await call.ResponseStream.MoveNext(CancellationToken.None).Soon());
        Assert.Equal(StatusCode.OK, call.GetStatus().StatusCode);
        Assert.Equal(0, pool.GetStatistics().CallsInFlight);
    }

    [Fact]
    public async Task TheHeaders_AreThoseOfTheAttemptThatCommits()
    {
        _server.ThenBreak().ThenReply(new NameReply { Name = "anna" });
        var (client, _) = NewClient();
        using var call = client.ListNames(new ListNamesRequest());
        var headers = call.ResponseHeadersAsync; // asked for before there are any
        await Elapse(headers);
        Assert.NotNull(await headers.Soon());
        Assert.True(await call.ResponseStream.MoveNext(CancellationToken.None).Soon());
        Assert.False(await call.ResponseStream.MoveNext(CancellationToken.None).Soon());
    }

    [Fact]
    public async Task AServerStream_IsNotTriedAgain_AfterItsFirstMessage()
    {
        _server.ThenBreakAfter(new NameReply { Name = "anna" });
        var (client, pool) = NewClient();
        using var call = client.ListNames(new ListNamesRequest());
        Assert.True(await call.ResponseStream.MoveNext(CancellationToken.None).Soon());

        var exception = await Assert.ThrowsAsync<RpcException>(() => call.ResponseStream.MoveNext(CancellationToken.None).Soon());
        Assert.Equal(StatusCode.Unavailable, exception.StatusCode);
        Assert.Equal(StatusCode.Unavailable, call.GetStatus().StatusCode);
        Assert.Equal(0, pool.GetStatistics().CallsInFlight);
        Assert.Single(_server.Requests);
    }

    [Fact]
    public async Task HeadersThatTheApplicationHasSeen_CommitTheCall()
    {
        _server.ThenBreakAfter();
        var (client, _) = NewClient();
        using var call = client.ListNames(new ListNamesRequest());
        await call.ResponseHeadersAsync.Soon();
        await Assert.ThrowsAsync<RpcException>(() => call.ResponseStream.MoveNext(CancellationToken.None).Soon());
        Assert.Single(_server.Requests);
    }

    [Fact]
    public async Task TheFirstMessageOfAClientStream_IsWrittenAgain_WhenItNeverLeft()
    {
        _server.ThenRefuse().ThenReply(new ImportNamesReply { Imported = 1 });
        var (client, pool) = NewClient();
        using var call = client.ImportNames();
        await call.RequestStream.CompleteAsync().Soon();
        await Elapse(call.ResponseAsync);
        Assert.Equal(1, (await call.ResponseAsync.Soon()).Imported);
        Assert.Equal(0, pool.GetStatistics().CallsInFlight);
        Assert.Equal(2, _server.Requests.Count);
    }

    [Fact]
    public async Task ADuplexCall_IsTriedAgain_UntilSomethingHasPassed()
    {
        _server.ThenBreak().ThenBreak().ThenReply(new ChatMessage { Text = "a" });
        var (client, pool) = NewClient();
        using var call = client.Chat();
        var reading = call.ResponseStream.MoveNext(CancellationToken.None);
        await Elapse(reading);
        Assert.True(await reading.Soon());
        Assert.False(await call.ResponseStream.MoveNext(CancellationToken.None).Soon());
        Assert.Equal(0, pool.GetStatistics().CallsInFlight);
    }

    [Theory]
    [InlineData("GetName")]
    [InlineData("Rename")]
    public async Task AChannelThatWasDisposedBehindThePoolsBack_TakesNothing_AndAnotherDoes(string method)
    {
        _server.ThenName("anna").ThenName("anna");
        var (client, pool) = NewClient();
        await CallAsync(client, method).Soon();
        var lease = await pool.AcquireAsync().Soon();
        lease.Channel.Dispose();
        await CallAsync(client, method).Soon();
        Assert.Equal([1, 2], _server.Requests.Select(static request => request.Channel));
        lease.Dispose();
        Assert.Equal(1, pool.GetStatistics().ChannelsReplaced);
    }

    [Fact]
    public async Task ABlockingCall_IsTriedAgainToo()
    {
        _server.ThenBreak().ThenName("anna");
        var (client, _) = NewClient();
        var calling = Task.Run(() => client.GetName(new GetNameRequest()));
        await Elapse(calling);
        Assert.Equal("anna", (await calling.Soon()).Name);
    }

    [Fact]
    public async Task WhatACallerBreaks_IsNoFaultOfTheChannel()
    {
        // A cancellation that meets the channel as it begins to read makes it say that the connection broke.
        using var cancellation = new CancellationTokenSource();
        _server.ThenName("anna").Then(_ =>
        {
            cancellation.Cancel();
            return Task.FromException<HttpResponseMessage>(new IOException("The request was aborted."));
        });
        var (client, pool) = NewClient();
        await CallAsync(client, "GetName").Soon();
        await Assert.ThrowsAsync<RpcException>(() => client.GetNameAsync(new GetNameRequest(), cancellationToken: cancellation.Token).ResponseAsync.Soon());
        Assert.Equal(0, pool.GetStatistics().ChannelsReplaced);
        Assert.Equal(2, _server.Requests.Count);
    }

    [Fact]
    public async Task AChannelThatThrowsOperationCanceled_KeepsItsExceptions()
    {
        _server.ConfigureChannel = static options => options.ThrowOperationCanceledOnCancellation = true;
        _server.ThenHang();
        var (client, _) = NewClient();
        using var cancellation = new CancellationTokenSource();
        var call = client.GetNameAsync(new GetNameRequest(), cancellationToken: cancellation.Token);
        await cancellation.CancelAsync();
        var exception = await Assert.ThrowsAnyAsync<OperationCanceledException>(() => call.ResponseAsync.Soon());
        Assert.Equal(cancellation.Token, exception.CancellationToken);
    }

    private static Task CallAsync(User.UserClient client, string method) => method == "GetName"
        ? client.GetNameAsync(new GetNameRequest()).ResponseAsync
        : client.RenameAsync(new RenameRequest()).ResponseAsync;

    // Lets the virtual time pass that the backoff takes.
    private Task Elapse(Task ending) => Waiting.Until(() =>
    {
        _time.Advance(TimeSpan.FromMilliseconds(50));
        return ending.IsCompleted;
    });

    private (User.UserClient Client, ChannelPool Pool) NewClient(Action<PoolingCallInvokerOptions>? configure = null)
    {
        var options = new PoolingCallInvokerOptions { Pool = { TimeProvider = _time, Queue = InlineWork.Queue, PooledChannelLifetime = Timeout.InfiniteTimeSpan, AcquireTimeout = Timeout.InfiniteTimeSpan } };
        configure?.Invoke(options);
        var pool = new ChannelPool(_server, options.Pool);
        _pools.Add(pool);
        return (new User.UserClient(new PoolingCallInvoker(pool, options)), pool);
    }
}

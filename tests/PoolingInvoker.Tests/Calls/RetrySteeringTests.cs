using Grpc.Core;
using Polly;
using Polly.Retry;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.Tests.Calls;

/// <summary>When another attempt is made, on which channel, and what it tells the server.</summary>
public sealed class RetrySteeringTests : ScriptedCalls
{
    private const string Pushback = "grpc-retry-pushback-ms";
    private const string PreviousAttempts = "grpc-previous-rpc-attempts";

    [Fact]
    public async Task Pushback_IsTheDelay()
    {
        Server.ThenStatus(StatusCode.Unavailable, (Pushback, "1234")).ThenName("anna");
        var (client, _) = NewClient();
        var calling = client.GetNameAsync(new GetNameRequest()).ResponseAsync;
        await Waiting.Until(() => Time.Dues.Contains(TimeSpan.FromMilliseconds(1234)));
        Time.Advance(TimeSpan.FromMilliseconds(1233));
        Assert.Single(Server.Requests);
        Time.Advance(TimeSpan.FromMilliseconds(1));
        Assert.Equal("anna", (await calling.Soon()).Name);
    }

    [Fact]
    public async Task PushbackOfZero_IsNoDelay()
    {
        Server.ThenStatus(StatusCode.Unavailable, (Pushback, "0")).ThenStatus(StatusCode.Unavailable, (Pushback, "0")).ThenName("anna");
        var (client, _) = NewClient(static options => options.Retry.Delay = TimeSpan.FromHours(1));
        Assert.Equal("anna", (await client.GetNameAsync(new GetNameRequest()).ResponseAsync.Soon()).Name);
    }

    [Theory]
    [InlineData(50, 1184)]
    [InlineData(2000, null)] // has given the server more than it asked for
    public async Task Pushback_IsTheLeastDelay_OfAPipelineOfTheUsers(int delay, int? rest)
    {
        Server.ThenStatus(StatusCode.Unavailable, (Pushback, "1234")).ThenName("anna");
        var (client, _) = NewClient(options => options.ConfigurePipeline = pipeline => pipeline.AddRetry(new RetryStrategyOptions
        {
            Delay = TimeSpan.FromMilliseconds(delay),
            BackoffType = DelayBackoffType.Constant,
        }));
        var calling = client.GetNameAsync(new GetNameRequest()).ResponseAsync;
        await Waiting.Until(() => Time.Dues.Contains(TimeSpan.FromMilliseconds(delay)));
        Time.Advance(TimeSpan.FromMilliseconds(delay));
        if (rest is { } left)
        {
            await Waiting.Until(() => Time.Dues.Contains(TimeSpan.FromMilliseconds(left)));
            Time.Advance(TimeSpan.FromMilliseconds(left - 1));
            Assert.Single(Server.Requests);
            Time.Advance(TimeSpan.FromMilliseconds(1));
        }

        Assert.Equal("anna", (await calling.Soon()).Name);
    }

    [Fact]
    public async Task Pushback_IsTheLeastDelay_OfAGeneratorOfTheUsers()
    {
        Server.ThenStatus(StatusCode.Unavailable, (Pushback, "1234")).ThenName("anna");
        var (client, _) = NewClient(static options => options.Retry.DelayGenerator = static _ => ValueTask.FromResult<TimeSpan?>(TimeSpan.Zero));
        var calling = client.GetNameAsync(new GetNameRequest()).ResponseAsync;
        await Waiting.Until(() => Time.Dues.Contains(TimeSpan.FromMilliseconds(1234)));
        Assert.Single(Server.Requests);
        Time.Advance(TimeSpan.FromMilliseconds(1234));
        Assert.Equal("anna", (await calling.Soon()).Name);
    }

    [Theory]
    [InlineData(Pushback, "-1", false)]
    [InlineData(Pushback, "soon", false)]
    [InlineData("grpc-internal-drop-request", "True", false)]
    [InlineData(Pushback, "-1", true)]
    [InlineData("grpc-internal-drop-request", "true", true)]
    public async Task AServerThatAsksToBeLeftAlone_IsLeftAlone(string name, string value, bool pipeline)
    {
        Server.ThenStatus(StatusCode.Unavailable, (name, value));
        var (client, pool) = NewClient(options => options.ConfigurePipeline = !pipeline ? null
            : static pipeline => pipeline.AddRetry(new RetryStrategyOptions { Delay = TimeSpan.Zero }));
        var call = client.GetNameAsync(new GetNameRequest());
        var exception = await Assert.ThrowsAsync<RpcException>(() => call.ResponseAsync.Soon());
        Assert.Equal(StatusCode.Unavailable, exception.StatusCode);
        Assert.Equal(value, call.GetTrailers().GetValue(name));
        Assert.Single(Server.Requests);
        Assert.Equal(0, pool.GetStatistics().Retries);
    }

    [Theory]
    [InlineData("GetName")]
    [InlineData("ListNames")]
    public async Task PushbackBeyondTheDeadline_EndsTheCallAtOnce(string method)
    {
        Server.ThenStatus(StatusCode.Unavailable, (Pushback, "7200000"));
        var (client, _) = NewClient();
        var deadline = Time.GetUtcNow().UtcDateTime.AddHours(1);
        Task calling = method == "GetName"
            ? client.GetNameAsync(new GetNameRequest(), deadline: deadline).ResponseAsync
            : client.ListNames(new ListNamesRequest(), deadline: deadline).ResponseStream.MoveNext(CancellationToken.None);
        Assert.Equal(StatusCode.Unavailable, (await Assert.ThrowsAsync<RpcException>(() => calling.Soon())).StatusCode);
        Assert.Single(Server.Requests);
    }

    [Fact]
    public async Task AStream_IsPushedBackToo()
    {
        Server.ThenStatus(StatusCode.Unavailable, (Pushback, "1234")).ThenReply(new NameReply { Name = "anna" });
        var (client, _) = NewClient();
        using var call = client.ListNames(new ListNamesRequest());
        var reading = call.ResponseStream.MoveNext(CancellationToken.None);
        await Waiting.Until(() => Time.Dues.Contains(TimeSpan.FromMilliseconds(1234)));
        Time.Advance(TimeSpan.FromMilliseconds(1234));
        Assert.True(await reading.Soon());
        Assert.False(await call.ResponseStream.MoveNext(CancellationToken.None).Soon());
    }

    [Fact]
    public async Task TheServer_IsTold_HowOftenItMayHaveHadTheRequest()
    {
        Server.ThenBreak().ThenRefuse().ThenStatus(StatusCode.Unavailable).ThenName("anna");
        var (client, _) = NewClient();
        var calling = client.GetNameAsync(new GetNameRequest()).ResponseAsync;
        await Elapse(calling);
        await calling.Soon();
        Assert.Equal([null, "1", "1", "2"], Server.Requests.Select(static request => HeaderOf(request.Request)));
    }

    [Fact]
    public async Task WhatNeverLeft_DoesNotCount()
    {
        Server.ThenRefuse().ThenRefuse().ThenName("anna");
        var (client, _) = NewClient();
        var calling = client.RenameAsync(new RenameRequest()).ResponseAsync;
        await Elapse(calling);
        await calling.Soon();
        Assert.Equal([null, null, null], Server.Requests.Select(static request => HeaderOf(request.Request)));
    }

    [Fact]
    public async Task AHeaderOfThatNameByTheUser_IsReplaced_AndTheirMetadataIsNotTouched()
    {
        Server.ThenBreak().ThenStatus(StatusCode.Unavailable).ThenName("anna");
        var (client, _) = NewClient();
        var headers = new Metadata { { "first", "1" }, { PreviousAttempts, "7" }, { "last-bin", new byte[] { 1, 2 } } };
        var calling = client.GetNameAsync(new GetNameRequest(), headers).ResponseAsync;
        await Elapse(calling);
        await calling.Soon();

        Assert.Equal(["7", "1", "2"], Server.Requests.Select(static request => HeaderOf(request.Request)));
        Assert.All(Server.Requests, static request =>
        {
            Assert.Equal("1", Assert.Single(request.Request.Headers.GetValues("first")));
            Assert.Equal("AQI", Assert.Single(request.Request.Headers.GetValues("last-bin")).TrimEnd('='));
        });
        Assert.Equal(["first", PreviousAttempts, "last-bin"], headers.Select(static entry => entry.Key));
        Assert.Equal("7", headers.GetValue(PreviousAttempts));
    }

    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    public async Task TheFirstRetry_IsMadeAtOnce_OnAnotherChannelThatWorks(int channels)
    {
        var (client, pool) = NewClient(options => options.Pool.MinPoolSize = channels);
        while (Server.Requests.DistinctBy(static request => request.Channel).Count() < channels)
        {
            Server.ThenName("anna");
            await client.GetNameAsync(new GetNameRequest()).ResponseAsync.Soon();
        }

        Assert.Equal(channels, pool.GetStatistics().Channels);
        var before = Server.Requests.Count;
        Server.ThenStatus(StatusCode.Unavailable).ThenName("anna");
        var timers = Time.Dues.Count;
        var calling = client.GetNameAsync(new GetNameRequest()).ResponseAsync;
        if (channels == 1)
        {
            await Waiting.Until(() => Time.Dues.Count > timers && Server.Requests.Count == before + 1);
            await Elapse(calling);
            await calling.Soon();
        }
        else
        {
            await calling.Soon();
            Assert.NotEqual(Server.Requests[^2].Channel, Server.Requests[^1].Channel);
        }
    }

    [Fact]
    public async Task TheSecondRetry_BacksOff_WhereverItGoes()
    {
        var backoff = new List<TimeSpan>();
        var (client, pool) = NewClient(options =>
        {
            options.Pool.MinPoolSize = 4;
            options.Retry.OnRetry = arguments =>
            {
                backoff.Add(arguments.RetryDelay);
                return default;
            };
        });
        for (var i = 0; i < 4; i++)
        {
            Server.ThenName("anna");
            await client.GetNameAsync(new GetNameRequest()).ResponseAsync.Soon();
        }

        await Waiting.Until(() => pool.GetChannels().Count(static channel => channel.State == PooledChannelState.Active) == 4);
        Server.ThenStatus(StatusCode.Unavailable).ThenStatus(StatusCode.Unavailable).ThenName("anna");
        var calling = client.GetNameAsync(new GetNameRequest()).ResponseAsync;
        await Elapse(calling);
        await calling.Soon();
        Assert.Equal(2, backoff.Count);
        Assert.Equal(TimeSpan.Zero, backoff[0]);
        Assert.InRange(backoff[1], TimeSpan.FromMilliseconds(1), TimeSpan.FromSeconds(1));
        var attempts = Server.Requests.Skip(4).Select(static request => request.Channel).ToList();
        Assert.Equal(3, attempts.Count);
        Assert.NotEqual(attempts[0], attempts[1]);
        Assert.NotEqual(attempts[1], attempts[2]);
    }

    private static string? HeaderOf(HttpRequestMessage request) =>
        request.Headers.TryGetValues(PreviousAttempts, out var values) ? Assert.Single(values) : null;
}

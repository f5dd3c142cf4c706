using System.Text.Json;
using Grpc.Core;
using PoolingInvoker.Demo.Servers;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.AspNetCoreTests;

/// <summary>What the page is told, of real pools and servers.</summary>
public sealed class StreamTests
{
    [Fact]
    public async Task CallsInFlight_AreSeenOnTheirChannel()
    {
        await using var server = await UserServer.StartAsync("one");
        await using var invoker = PoolingCallInvoker.ForAddress(server.Address);
        await using var app = await PageApp.StartAsync(pools => pools.Add(invoker.Pool, "users"));
        using var frames = await app.WatchAsync();
        Assert.Equal("text/event-stream", frames.Response.Content.Headers.ContentType?.MediaType);
        Assert.True(frames.Response.Headers.CacheControl?.NoStore);

        using var chat = new User.UserClient(invoker).Chat();
        await chat.RequestStream.WriteAsync(new ChatMessage { Text = "hello" }).Soon();
        Assert.True(await chat.ResponseStream.MoveNext().Soon());

        var users = await frames.PoolAsync("users", static pool => pool.GetProperty("now").GetProperty("inFlight").GetInt32() == 1);
        var lane = users.GetProperty("lanes").EnumerateArray().Single(static lane => lane.GetProperty("calls").GetInt32() == 1);
        Assert.Equal("Active", lane.GetProperty("state").GetString());
        Assert.Equal(server.Address.Authority, lane.GetProperty("endpoint").GetString());
        Assert.Equal(100, lane.GetProperty("capacity").GetInt32());
    }

    [Fact]
    public async Task AnEvent_ComesWithItsReason_AndStaysForTheNextWhoComes()
    {
        await using var server = await UserServer.StartAsync("one");
        await using var invoker = PoolingCallInvoker.ForAddress(server.Address);
        await using var app = await PageApp.StartAsync(pools => pools.Add(invoker.Pool, "users"));
        using var frames = await app.WatchAsync();
        await frames.NextAsync();
        await invoker.ConnectAsync().Soon();

        var users = await frames.PoolAsync("users", static pool => pool.GetProperty("events").GetArrayLength() > 0);
        Assert.Equal("Created", users.GetProperty("events")[0].GetProperty("kind").GetString());
        Assert.NotEmpty(users.GetProperty("events")[0].GetProperty("text").GetString()!);

        using var late = await app.WatchAsync();
        var whole = Assert.NotNull(await late.NextAsync());
        Assert.True(whole.GetProperty("whole").GetBoolean());
        Assert.Equal(1, whole.GetProperty("pools")[0].GetProperty("events")[0].GetProperty("number").GetInt32());
    }

    [Fact]
    public async Task ACall_ThatFails_IsSeenWithItsError()
    {
        await using var server = await UserServer.StartAsync("one");
        await using var invoker = PoolingCallInvoker.ForAddress(server.Address, new PoolingCallInvokerOptions { Retry = { MaxRetryAttempts = 1 } });
        await using var app = await PageApp.StartAsync(pools => pools.Add(invoker.Pool, "users"));
        using var frames = await app.WatchAsync();
        await invoker.ConnectAsync().Soon();
        await server.DisposeAsync();
        await Assert.ThrowsAsync<RpcException>(async () => await new User.UserClient(invoker).GetNameAsync(new GetNameRequest { Id = 1 })).Soon();

        var users = await frames.PoolAsync("users", static pool => pool.GetProperty("lanes").EnumerateArray().Any(static lane => lane.TryGetProperty("error", out _)));
        Assert.Contains("refused", users.GetProperty("lanes")[0].GetProperty("error").GetString(), StringComparison.OrdinalIgnoreCase);
    }

    [Fact]
    public async Task AClientOfTheContainer_IsSeen_BeforeAndAfterItsPoolIsMade()
    {
        await using var server = await UserServer.StartAsync("one");
        await using var app = await PageApp.StartAsync(services: services => services.AddPooledGrpcClient<User.UserClient>(server.Address.OriginalString));
        using var frames = await app.WatchAsync();
        await frames.PoolAsync("UserClient", static pool => !pool.TryGetProperty("now", out _));

        await app.Application.Services.GetRequiredService<User.UserClient>().GetNameAsync(new GetNameRequest { Id = 1 }).ResponseAsync.Soon();
        await frames.PoolAsync("UserClient", static pool => pool.TryGetProperty("now", out var now) && now.GetProperty("created").GetInt32() > 0);
    }

    [Fact]
    public async Task WhereThereIsNoPool_ThereAreFramesWithout()
    {
        await using var app = await PageApp.StartAsync();
        using var frames = await app.WatchAsync();
        var frame = Assert.NotNull(await frames.NextAsync());
        Assert.Equal(0, frame.GetProperty("pools").GetArrayLength());
    }

    [Fact]
    public async Task TheRateOfCalls_IsCounted()
    {
        await using var server = await UserServer.StartAsync("one");
        await using var invoker = PoolingCallInvoker.ForAddress(server.Address);
        await using var app = await PageApp.StartAsync(pools => pools.Add(invoker.Pool, "users"));
        using var frames = await app.WatchAsync();
        await frames.NextAsync();
        await new User.UserClient(invoker).GetNameAsync(new GetNameRequest { Id = 1 }).ResponseAsync.Soon();
        await frames.PoolAsync("users", static pool => RateOf(pool) > 0);
        await frames.PoolAsync("users", static pool => RateOf(pool) == 0);
    }

    [Fact]
    public async Task WhenTheClientGoes_NothingIsWatched()
    {
        await using var app = await PageApp.StartAsync();
        using (var frames = await app.WatchAsync())
        {
            await frames.NextAsync();
            Assert.Equal(1, app.Sampler.Watchers);
        }

        await Waiting.Until(() => app.Sampler.Watchers == 0);
    }

    [Fact]
    public async Task WhenTheHostStops_TheStreamEnds_AndHoldsNothingUp()
    {
        await using var app = await PageApp.StartAsync();
        using var frames = await app.WatchAsync();
        await frames.NextAsync();
        var stopping = app.Application.StopAsync(CancellationToken.None);
        while (await frames.NextAsync() is not null)
        {
            // One may be under way.
        }

        await stopping.Soon();
        Assert.Equal(0, app.Sampler.Watchers);
    }

    private static double? RateOf(JsonElement pool) => pool.GetProperty("points").EnumerateArray().Last() is var point && point.TryGetProperty("rate", out var rate) ? rate.GetDouble() : null;
}

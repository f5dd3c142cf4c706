using Grpc.Core;
using Microsoft.Extensions.Time.Testing;
using PoolingInvoker.Demo.Servers;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.FunctionalTests;

/// <summary>Calls for which there is no connection, or so it looks.</summary>
public sealed class ConnectionFaultTests
{
    [Fact]
    public async Task CredentialsThatCannotConnect_SayNothingAgainstAChannelThatIs()
    {
        await using var server = await UserServer.StartAsync("one");
        var tokenServerIsDown = false;
        var credentials = CallCredentials.FromInterceptor((_, _) => tokenServerIsDown
            ? throw new HttpRequestException(HttpRequestError.ConnectionError, "the token server is down")
            : Task.CompletedTask);
        await using var invoker = PoolingCallInvoker.ForAddress(server.Address, new PoolingCallInvokerOptions
        {
            Pool =
            {
                ConfigureChannel = options =>
                {
                    options.UnsafeUseInsecureChannelCallCredentials = true;
                    options.Credentials = ChannelCredentials.Create(ChannelCredentials.Insecure, credentials);
                },
            },
            Retry = { MaxRetryAttempts = 0 },
        });
        var client = new User.UserClient(invoker);
        await client.GetNameAsync(new GetNameRequest()).ResponseAsync.Soon();

        tokenServerIsDown = true;
        for (var i = 0; i < 5; i++)
        {
            var exception = await Assert.ThrowsAsync<RpcException>(() => client.GetNameAsync(new GetNameRequest()).ResponseAsync.Soon());
            Assert.IsType<HttpRequestException>(exception.Status.DebugException);
        }

        tokenServerIsDown = false;
        await client.GetNameAsync(new GetNameRequest()).ResponseAsync.Soon();
        Assert.Equal(1, invoker.Pool.GetStatistics().ChannelsCreated);
        Assert.Equal(1, server.Journal.PeakConnections);
    }

    [Fact]
    public async Task CallsThatWaitForReady_HoldNoChannelsWhileTheServerIsDown()
    {
        const int Calls = 8;
        var server = await UserServer.StartAsync("gone");
        var port = server.Address.Port;
        await server.DisposeAsync();
        var time = new FakeTimeProvider(DateTimeOffset.UtcNow);
        using var invoker = PoolingCallInvoker.ForAddress(server.Address, new PoolingCallInvokerOptions { Pool = { MaxPoolSize = 1, TimeProvider = time } });
        var client = new User.UserClient(invoker);

        // Between two calls the pause is over after which the pool may dial again.
        var calls = new List<Task<GetNameReply>>();
        for (var i = 1; i <= Calls; i++)
        {
            calls.Add(client.GetNameAsync(new GetNameRequest { Id = i }, new CallOptions().WithWaitForReady()).ResponseAsync);
            await Waiting.Until(() => invoker.Pool.GetStatistics() is { Channels: 1, DrainingChannels: 0, CallsInFlight: 0, CallsWaiting: 0 });
            time.Advance(TimeSpan.FromSeconds(2));
        }

        Assert.InRange(invoker.Pool.GetStatistics().ChannelsReplaced, 1, Calls * Calls);
        Assert.All(calls, static call => Assert.False(call.IsCompleted));

        await using var back = await UserServer.StartAsync("back", port);
        await Waiting.Until(() =>
        {
            time.Advance(TimeSpan.FromMilliseconds(100));
            return calls.All(static call => call.IsCompleted);
        });
        Assert.All(await Task.WhenAll(calls).Soon(), static reply => Assert.Equal("back", reply.Origin.Server));
        await Waiting.Until(() => invoker.Pool.GetStatistics().DrainingChannels == 0);
    }
}

using System.Net.Sockets;
using Grpc.Core;
using Grpc.Net.Client;
using PoolingInvoker.Demo.Servers;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.FunctionalTests;

/// <summary>The pool over real sockets: exclusive leases, connections, servers that are away and come back.</summary>
public sealed class PoolTests
{
    [Fact]
    public async Task ExclusiveLeases_AreNeverMoreThanThePool_AndAreServedInOrder()
    {
        const int Callers = 200;
        const int Rounds = 5;
        const int MaxPoolSize = 8;
        await using var server = await UserServer.StartAsync("one");
        await using var invoker = PoolingCallInvoker.ForAddress(server.Address, new PoolingCallInvokerOptions
        {
            Pool = { MaxConcurrentCallsPerChannel = 1, MaxPoolSize = MaxPoolSize },
        });
        var client = new User.UserClient(invoker);

        for (var round = 0; round < Rounds; round++)
        {
            // One after the other in line, while all that there is is taken.
            var taken = await Task.WhenAll(Enumerable.Range(0, MaxPoolSize).Select(_ => invoker.Pool.AcquireAsync().AsTask())).Soon();
            var calls = Enumerable.Range(0, Callers)
                .Select(caller => client.RenameAsync(new RenameRequest { RequestId = $"{(round * Callers) + caller}", DelayMs = 3 }).ResponseAsync)
                .ToArray();
            Assert.Equal(Callers, invoker.Pool.GetStatistics().CallsWaiting);
            Array.ForEach(taken, static lease => lease.Dispose());
            await Task.WhenAll(calls).Soon();
        }

        // When a call reaches the server, all before it in line have been served before: up to 7 of them may still be on their way.
        var arrived = server.Journal.Executed.Select(int.Parse).ToList();
        Assert.Equal(Callers * Rounds, arrived.Distinct().Count());
        Assert.All(arrived.Select(static (item, index) => (item, index)), static arrival =>
            Assert.True(arrival.index >= arrival.item - (MaxPoolSize - 1), $"{arrival.item} was served as number {arrival.index}"));
        Assert.Equal(MaxPoolSize, server.Journal.PeakCallsInFlight);
        Assert.Equal(MaxPoolSize, server.Journal.PeakConnections);
        Assert.Equal(0, invoker.Pool.GetStatistics().CallsInFlight);
        Assert.Equal(MaxPoolSize, invoker.Pool.GetStatistics().Channels);
    }

    [Fact]
    public async Task AChannel_IsOneConnection_AndConnectAsyncMakesThemAll()
    {
        await using var server = await UserServer.StartAsync("one");
        await using var invoker = PoolingCallInvoker.ForAddress(server.Address, new PoolingCallInvokerOptions
        {
            // There is room for all calls: with no target, and no probe, nothing asks for another channel however long they take.
            Pool = { MinPoolSize = 5, TargetConcurrentCallsPerChannel = null, ProbeDelay = Timeout.InfiniteTimeSpan },
        });
        await invoker.ConnectAsync().Soon();
        await Waiting.Until(() => server.Journal.Connections == 5);
        Assert.Equal(5, invoker.Pool.GetStatistics().IdleChannels);

        var client = new User.UserClient(invoker);
        await Task.WhenAll(Enumerable.Range(0, 300).Select(id => client.GetNameAsync(new GetNameRequest { Id = id, DelayMs = 20 }).ResponseAsync)).Soon();
        Assert.Equal(5, server.Journal.PeakConnections);

        await invoker.DisposeAsync();
        await Waiting.Until(() => server.Journal.Connections == 0);
    }

    [Fact]
    public async Task ConnectAsync_SaysWhenItCannot()
    {
        await using var invoker = PoolingCallInvoker.ForAddress(await FreeAddressAsync(), new PoolingCallInvokerOptions { Pool = { MinPoolSize = 2 } });
        var exception = await Assert.ThrowsAsync<HttpRequestException>(() => invoker.ConnectAsync().Soon());
        Assert.Contains("could not connect to 127.0.0.1:", exception.Message, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData(0)]
    [InlineData(3)]
    public async Task WithTheServerDown_ACallFailsAsOnABareChannel(int retries)
    {
        var address = await FreeAddressAsync();
        using var channel = GrpcChannel.ForAddress(address);
        await using var invoker = PoolingCallInvoker.ForAddress(address, new PoolingCallInvokerOptions { Retry = { MaxRetryAttempts = retries } });
        var bare = await FailAsync(channel.CreateCallInvoker());
        var pooled = await FailAsync(invoker);

        Assert.Equal(bare.Status.StatusCode, pooled.Status.StatusCode);
        Assert.Equal(
            Assert.IsType<SocketException>(bare.Status.DebugException).SocketErrorCode,
            Assert.IsType<SocketException>(Assert.IsType<HttpRequestException>(pooled.Status.DebugException).InnerException).SocketErrorCode);
        Assert.Equal(retries, invoker.Pool.GetStatistics().Retries);

        static async Task<RpcException> FailAsync(CallInvoker invoker) =>
            await Assert.ThrowsAsync<RpcException>(() => new User.UserClient(invoker).RenameAsync(new RenameRequest()).ResponseAsync.Soon());
    }

    [Fact]
    public async Task WithTheServerDown_ManyCallsMakeFewChannels_AndAllGoesOnWhenItIsBack()
    {
        var server = await UserServer.StartAsync("one");
        var port = server.Address.Port;
        await using var invoker = PoolingCallInvoker.ForAddress(server.Address, new PoolingCallInvokerOptions { Retry = { MaxRetryAttempts = 0 } });
        var client = new User.UserClient(invoker);
        await client.GetNameAsync(new GetNameRequest()).ResponseAsync.Soon();
        await server.DisposeAsync();

        var since = TimeProvider.System.GetTimestamp();
        for (var i = 0; i < 200; i++)
        {
            await Assert.ThrowsAsync<RpcException>(() => client.GetNameAsync(new GetNameRequest()).ResponseAsync.Soon());
        }

        // Up to ten in the first second, and four in each later one: OutageTests has the arithmetic.
        Assert.InRange(invoker.Pool.GetStatistics().ChannelsCreated, 2, 12 + (int)(4 * TimeProvider.System.GetElapsedTime(since).TotalSeconds));

        await using var again = await UserServer.StartAsync("again", port);
        var patient = new CallOptions(deadline: DateTime.UtcNow.AddSeconds(20)).WithWaitForReady();
        Assert.Equal("again", (await client.GetNameAsync(new GetNameRequest(), patient).ResponseAsync.Soon()).Origin.Server);
        Assert.Equal(0, invoker.Pool.GetStatistics().CallsInFlight);
    }

    [Fact]
    public async Task ALeaseAndTheSnapshot_SayTheStateOfTheConnection_AndAChannelWhoseConnectionIsGoneIsReplacedOnReturn()
    {
        var server = await UserServer.StartAsync("one");
        await using var pool = ChannelPool.ForAddress(server.Address, new ChannelPoolOptions { MinPoolSize = 2 });
        await pool.ConnectAsync().Soon();
        Assert.All(pool.GetChannels(), static channel => Assert.Equal(ConnectivityState.Ready, channel.ConnectivityState));
        using var lease = await pool.AcquireAsync().AsTask().Soon();
        var channel = lease.Channel;
        Assert.Equal(ConnectivityState.Ready, lease.ConnectivityState);
        Assert.Throws<InvalidOperationException>(() => channel.State);

        await server.DisposeAsync();
        await Waiting.Until(() => lease.ConnectivityState == ConnectivityState.Idle);
        await Assert.ThrowsAsync<RpcException>(() => new User.UserClient(lease.CallInvoker).GetNameAsync(new GetNameRequest()).ResponseAsync.Soon());
        Assert.Equal(ConnectivityState.TransientFailure, lease.ConnectivityState);

        await using var again = await UserServer.StartAsync("again", server.Address.Port);
        lease.Dispose();
        GrpcChannel? next = null;
        await Waiting.Until(() =>
        {
            // What is replaced on its return, or when it would be picked, is so after a pause where servers cannot be reached.
            using var taken = pool.TryAcquire(out var found) ? found : null;
            next = taken?.ConnectivityState is ConnectivityState.Ready ? taken.Channel : null;
            return next is not null && pool.GetChannels().All(static one => one.ConnectivityState != ConnectivityState.TransientFailure);
        });
        Assert.NotSame(channel, next);
        Assert.Equal("again", (await new User.UserClient(next!).GetNameAsync(new GetNameRequest()).ResponseAsync.Soon()).Origin.Server);
    }

    [Fact]
    public async Task ACallThatWaitsForReady_WaitsForItsDeadline()
    {
        await using var invoker = PoolingCallInvoker.ForAddress(await FreeAddressAsync());
        var options = new CallOptions(deadline: DateTime.UtcNow.AddMilliseconds(300)).WithWaitForReady();
        var exception = await Assert.ThrowsAsync<RpcException>(() => new User.UserClient(invoker).GetNameAsync(new GetNameRequest(), options).ResponseAsync.Soon());
        Assert.Equal(StatusCode.DeadlineExceeded, exception.StatusCode);
    }

    [Fact]
    public async Task DisposeAsync_LetsCallsEnd_AndDispose_CancelsThem()
    {
        await using var server = await UserServer.StartAsync("one");
        var drained = PoolingCallInvoker.ForAddress(server.Address);
        var ends = new User.UserClient(drained).GetNameAsync(new GetNameRequest { Id = 1, DelayMs = 200 }).ResponseAsync;
        await Waiting.Until(() => server.Journal.Calls == 1);
        await drained.DisposeAsync();
        await ends.Soon();
        Assert.True(ends.IsCompletedSuccessfully);

        var cut = PoolingCallInvoker.ForAddress(server.Address);
        var cancelled = new User.UserClient(cut).GetNameAsync(new GetNameRequest { DelayMs = 20_000 }).ResponseAsync;
        await Waiting.Until(() => server.Journal.Calls == 2);
        cut.Dispose();
        Assert.Equal(StatusCode.Cancelled, (await Assert.ThrowsAsync<RpcException>(() => cancelled.Soon())).StatusCode);
        Assert.Equal(0, cut.Pool.GetStatistics().CallsInFlight);
    }

    // A loopback port at which nothing listens any more.
    private static async Task<Uri> FreeAddressAsync()
    {
        await using var server = await UserServer.StartAsync("gone");
        return server.Address;
    }
}

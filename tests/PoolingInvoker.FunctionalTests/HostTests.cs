using Grpc.Core;
using Microsoft.Extensions.DependencyInjection;
using PoolingInvoker.Demo.Servers;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.FunctionalTests;

/// <summary>An invoker as a singleton of an application: it goes with the container.</summary>
public sealed class HostTests
{
    [Fact]
    public async Task TheContainersDisposeAsync_LetsCallsEnd()
    {
        await using var server = await UserServer.StartAsync("one");
        var provider = NewProvider(server);
        var pool = provider.GetRequiredService<PoolingCallInvoker>().Pool;
        var client = provider.GetRequiredService<User.UserClient>();
        var call = client.GetNameAsync(new GetNameRequest { Id = 7, DelayMs = 300 }).ResponseAsync;
        await Waiting.Until(() => server.Journal.Calls == 1);

        var disposing = provider.DisposeAsync().AsTask();
        Assert.Throws<ObjectDisposedException>(() => client.GetNameAsync(new GetNameRequest()));
        await disposing.Soon();
        Assert.Equal(7, (await call.Soon()).Id);
        Assert.Equal((0, 0), (pool.GetStatistics().Channels, pool.GetStatistics().CallsInFlight));
        await Waiting.Until(() => server.Journal.Connections == 0);
    }

    [Fact]
    public async Task TheContainersDispose_CutsThem()
    {
        await using var server = await UserServer.StartAsync("one");
        var provider = NewProvider(server);
        var call = provider.GetRequiredService<User.UserClient>().GetNameAsync(new GetNameRequest { DelayMs = 20_000 }).ResponseAsync;
        await Waiting.Until(() => server.Journal.Calls == 1);
        provider.Dispose();
        Assert.Equal(StatusCode.Cancelled, (await Assert.ThrowsAsync<RpcException>(() => call.Soon())).StatusCode);
        await Waiting.Until(() => server.Journal.Connections == 0);
    }

    private static ServiceProvider NewProvider(UserServer server)
    {
        var services = new ServiceCollection();
        services.AddSingleton(_ => PoolingCallInvoker.ForAddress(server.Address));
        services.AddTransient(static provider => new User.UserClient(provider.GetRequiredService<PoolingCallInvoker>()));
        return services.BuildServiceProvider();
    }
}

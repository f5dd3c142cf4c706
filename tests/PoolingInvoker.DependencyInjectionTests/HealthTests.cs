using System.Net;
using System.Net.Sockets;
using Grpc.Core;
using Microsoft.Extensions.DependencyInjection;
using Microsoft.Extensions.Diagnostics.HealthChecks;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.DependencyInjectionTests;

/// <summary>What the health checks of an app say of its pools, over real servers that go and come back.</summary>
public sealed class HealthTests
{
    [Fact]
    public async Task APoolWhoseServerIsThere_IsHealthy_WithFigures()
    {
        await using var server = await UserServer.StartAsync();
        await using var app = NewApp(server.Address, static options => options.Pool.MinPoolSize = 2);
        var entry = await CheckAsync(app); // nobody has called yet
        Assert.Equal((HealthStatus.Healthy, "2 channels to UserClient, 0 calls in flight."), (entry.Status, entry.Description));
        Assert.Equal(2, server.Connections);
        var call = app.Client.RenameAsync(new RenameRequest()).ResponseAsync;
        await Waiting.Until(() => server.Calls.Count == 1);
        var data = (await CheckAsync(app)).Data;
        Assert.Equal((2, 2, 2, 100, 1), (data["Channels"], data["ConnectedChannels"], data["MinPoolSize"], data["MaxPoolSize"], data["CallsInFlight"]));
        var figures = typeof(ChannelPoolStatistics).GetProperties().Select(static property => property.Name);
        Assert.Empty(figures.Except(data.Keys));
        Assert.Equal(2, server.Connections); // it is seen, and nothing is made
        server.Gate.SetResult();
        await call.Soon();
    }

    [Fact]
    public async Task AServerThatGoesAndComesBack_IsToldWithoutCalls()
    {
        var server = await UserServer.StartAsync();
        var address = server.Address;
        await using var app = NewApp(address, static options => options.Retry.MaxRetryAttempts = 0);
        await app.CallAsync(overPool: true);
        Assert.Equal(HealthStatus.Healthy, (await CheckAsync(app)).Status);

        await server.DisposeAsync();
        var gone = await UntilAsync(app, HealthStatus.Unhealthy);
        Assert.StartsWith("No channel to UserClient can connect: ", gone.Description, StringComparison.Ordinal);
        Assert.NotNull(gone.Exception);
        Assert.Equal(0, gone.Data["ConnectedChannels"]);
        await Assert.ThrowsAsync<RpcException>(() => app.Client.GetNameAsync(new GetNameRequest()).ResponseAsync.Soon());
        Assert.Equal(HealthStatus.Unhealthy, (await CheckAsync(app)).Status);

        await using var back = await UserServer.StartAsync(port: address.Port);
        await UntilAsync(app, HealthStatus.Healthy); // nobody calls
        Assert.True(back.Connections > 0);
        await app.Client.GetNameAsync(new GetNameRequest()).ResponseAsync.Soon();
    }

    [Fact]
    public async Task AServerThatWasNeverThere_IsUnhealthy_OrWhatTheAppSays()
    {
        await using var app = NewApp(NobodysAddress(), failureStatus: HealthStatus.Degraded);
        var entry = await CheckAsync(app);
        Assert.Equal(HealthStatus.Degraded, entry.Status);
        Assert.StartsWith("No channel to UserClient can connect: ", entry.Description, StringComparison.Ordinal);
        var created = app.Pool.GetStatistics().ChannelsCreated;
        await CheckAsync(app);
        Assert.InRange(app.Pool.GetStatistics().ChannelsCreated, created, created + 2); // under the backoff of the pool
    }

    [Fact]
    public async Task CallsThatWait_AreDegraded()
    {
        await using var server = await UserServer.StartAsync();
        await using var app = NewApp(server.Address, static options => (options.Pool.MaxPoolSize, options.Pool.MaxConcurrentCallsPerChannel) = (1, 1));
        var calls = Enumerable.Range(0, 3).Select(_ => app.Client.RenameAsync(new RenameRequest()).ResponseAsync).ToList();
        await Waiting.Until(() => server.Calls.Count == 1 && app.Pool.GetStatistics().CallsWaiting == 2);
        var entry = await CheckAsync(app);
        Assert.Equal((HealthStatus.Degraded, "The pool to UserClient: 2 calls wait for room on 1 channels (MaxPoolSize 1)."), (entry.Status, entry.Description));
        server.Gate.SetResult();
        await Task.WhenAll(calls).Soon();
        Assert.Equal(HealthStatus.Healthy, (await CheckAsync(app)).Status);
    }

    /// <summary>A pool replaces what is broken, so that this passes.</summary>
    [Fact]
    public void ChannelsThatCannotConnect_AndOnesThatAreMissing_AreDegraded()
    {
        var error = new IOException("reset");
        List<PooledChannelSnapshot> channels =
        [
            new() { Id = 1, State = PooledChannelState.Active, ConnectivityState = ConnectivityState.Ready, Endpoint = "blue:1" },
            new() { Id = 2, State = PooledChannelState.Active, ConnectivityState = ConnectivityState.TransientFailure, Endpoint = "green:1", LastError = error },
        ];
        var result = PoolHealth.Judge("users", new ChannelPoolStatistics { Channels = 2, ChannelsCreated = 2, MinPoolSize = 3, MaxPoolSize = 5 }, channels, error: null, HealthStatus.Unhealthy);
        Assert.Equal(HealthStatus.Degraded, result.Status);
        Assert.Equal("The pool to users: 1 of 2 channels cannot connect (green:1); there are 2 channels, and MinPoolSize is 3.", result.Description);
        Assert.Same(error, result.Exception);
        Assert.Equal(1, result.Data["ConnectedChannels"]);
    }

    [Fact]
    public async Task APoolThatWasMadeByHand_HasTheSameCheck()
    {
        await using var server = await UserServer.StartAsync();
        await using var invoker = PoolingCallInvoker.ForAddress(server.Address);
        await using var app = new ClientApp(services => services.AddSingleton(invoker.Pool)
            .AddHealthChecks().AddChannelPool(static provider => provider.GetRequiredService<ChannelPool>(), "own"));
        Assert.Equal(HealthStatus.Healthy, (await CheckAsync(app)).Status);
        Assert.Equal(1, server.Connections);
    }

    [Fact]
    public async Task Readiness_WaitsForMinPoolSize_AndStays()
    {
        var address = NobodysAddress();
        await using var app = new ClientApp(services =>
        {
            services.AddGrpcClient<User.UserClient>(options => options.Address = address).AddChannelPool(static options => options.Pool.MinPoolSize = 3);
            services.AddHealthChecks().AddGrpcChannelPoolReadiness("UserClient");
        });
        var first = await CheckAsync(app);
        Assert.Equal(HealthStatus.Unhealthy, first.Status);
        Assert.StartsWith("The pool to UserClient connects: 0 of 3 channels", first.Description, StringComparison.Ordinal);
        Assert.Equal(["ready"], first.Tags);
        await WaitUntilAsync(async () => (await CheckAsync(app)).Exception is not null); // it has failed, and is tried again

        var server = await UserServer.StartAsync(port: address.Port);
        var ready = await UntilAsync(app, HealthStatus.Healthy);
        Assert.Equal(3, ready.Data["ConnectedChannels"]);
        await server.DisposeAsync();
        Assert.Equal(HealthStatus.Healthy, (await CheckAsync(app)).Status);
    }

    [Fact]
    public async Task AClientThatHasNoPool_IsNamed()
    {
        await using var app = new ClientApp(static services =>
        {
            services.AddPooledGrpcClient<User.UserClient>("http://localhost");
            services.AddHealthChecks().AddGrpcChannelPool("users");
        });
        var entry = await CheckAsync(app);
        Assert.Equal("No gRPC client 'users' has a channel pool. Those that have one are 'UserClient': a client has the name of its type, unless AddGrpcClient was given another.", entry.Exception!.Message);
    }

    private static ClientApp NewApp(Uri address, Action<PoolingCallInvokerOptions>? configure = null, HealthStatus? failureStatus = null) => new(services =>
    {
        services.AddGrpcClient<User.UserClient>(options => options.Address = address).AddChannelPool(configure ?? (static _ => { }));
        services.AddHealthChecks().AddGrpcChannelPool("UserClient", failureStatus: failureStatus);
    });

    private static async Task<HealthReportEntry> CheckAsync(ClientApp app) =>
        (await app.Services.GetRequiredService<HealthCheckService>().CheckHealthAsync().Soon()).Entries.Values.Single();

    private static async Task<HealthReportEntry> UntilAsync(ClientApp app, HealthStatus status)
    {
        HealthReportEntry entry = default;
        await WaitUntilAsync(async () => (entry = await CheckAsync(app)).Status == status);
        return entry;
    }

    private static async Task WaitUntilAsync(Func<Task<bool>> isSo)
    {
        var since = TimeProvider.System.GetTimestamp();
        while (!await isSo())
        {
            Assert.True(TimeProvider.System.GetElapsedTime(since) < Waiting.Long, "It did not become so.");
            await Task.Yield();
        }
    }

    // A port that was free a moment ago.
    private static Uri NobodysAddress()
    {
        using var listener = new TcpListener(IPAddress.Loopback, 0);
        listener.Start();
        return new Uri($"http://localhost:{((IPEndPoint)listener.LocalEndpoint).Port}");
    }
}

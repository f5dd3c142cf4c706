using Grpc.Core;
using Grpc.Net.Client;
using Grpc.Net.Client.Configuration;
using Microsoft.Extensions.DependencyInjection;
using Microsoft.Extensions.Logging;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.DependencyInjectionTests;

/// <summary>The mistakes of a first hour: each is told when it is made, or with the first call, in words that say what to do.</summary>
public sealed class FirstHourTests
{
    [Theory]
    [InlineData("localhost:5000", "http://localhost:5000")]
    [InlineData("users", "http://users")]
    [InlineData("", "http://users:5000")]
    [InlineData("tcp://users:5000", "http://users:5000")]
    public async Task AnAddress_ThatNobodyCanDial(string address, string advised)
    {
        var exception = Assert.Throws<ArgumentException>(() => new ServiceCollection().AddPooledGrpcClient<User.UserClient>(address));
        var complaint = $"its address is '{address}'. It must begin with 'http://' or 'https://', as in '{advised}', with 'dns:///', or, with service discovery, with 'https+http://'.";
        Assert.Equal($"The gRPC client UserClient cannot be added: {complaint} (Parameter 'address')", exception.Message);
        if (Uri.TryCreate(address, UriKind.Absolute, out var uri))
        {
            await using var app = new ClientApp(services => services.AddGrpcClient<User.UserClient>(options => options.Address = uri).AddChannelPool());
            Assert.Equal($"The channel pool of the gRPC client 'UserClient' cannot be made: {complaint}", Assert.Throws<InvalidOperationException>(() => app.Client).Message);
        }
    }

    [Fact]
    public async Task ServiceDiscoveryThatIsNotThere()
    {
        await using var app = new ClientApp(static services => services.AddPooledGrpcClient<User.UserClient>("https+http://users"));
        var message = Assert.Throws<InvalidOperationException>(() => app.Client).Message;
        Assert.Contains("its address is 'https+http://users', which only service discovery understands. Add it with AddServiceDiscovery()", message, StringComparison.Ordinal);
    }

    /// <summary>It is told when the pool is made, and no call is tried.</summary>
    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public async Task CredentialsOverPlainText(bool isClient)
    {
        await using var server = await UserServer.StartAsync();
        static void Compose(GrpcChannelOptions channel) =>
            channel.Credentials = ChannelCredentials.Create(ChannelCredentials.Insecure, CallCredentials.FromInterceptor(static (_, _) => Task.CompletedTask));
        await using var app = new ClientApp(services => services.AddGrpcClient<User.UserClient>(options => options.Address = server.Address).ConfigureChannel(Compose).AddChannelPool());
        var exception = Assert.Throws<InvalidOperationException>(() => isClient
            ? (object)app.Client
            : PoolingCallInvoker.ForAddress(server.Address, new PoolingCallInvokerOptions { Pool = { ConfigureChannel = Compose } }));
        Assert.StartsWith("CallCredentials can't be composed with InsecureCredentials.", exception.Message, StringComparison.Ordinal);
        Assert.Contains("UnsafeUseInsecureChannelCallCredentials", exception.Message, StringComparison.Ordinal);
        Assert.Equal(0, server.Connections);
    }

    [Fact]
    public async Task AFullExclusivePool_ThatIsStillCold()
    {
        await using var invoker = PoolingCallInvoker.ForAddress("http://localhost", new PoolingCallInvokerOptions
        {
            Pool =
            {
                MinPoolSize = 2,
                MaxPoolSize = 2,
                MaxConcurrentCallsPerChannel = 1,
                AcquireTimeout = TimeSpan.FromMilliseconds(20),
                DrainTimeout = TimeSpan.Zero,
                ConfigureHandler = static handler => handler.ConnectCallback = static async (_, token) =>
                {
                    await new TaskCompletionSource().Task.WaitAsync(token);
                    throw new IOException("nobody");
                },
            },
        });
        var exception = await Assert.ThrowsAsync<RpcException>(() => new User.UserClient(invoker).GetNameAsync(new GetNameRequest()).ResponseAsync.Soon());
        Assert.Equal(StatusCode.ResourceExhausted, exception.StatusCode);
        Assert.Contains("No channel has been connected yet: 2 are being made. Raise Pool.AcquireTimeout, or connect the pool before the first call, with ConnectAsync.", exception.Status.Detail, StringComparison.Ordinal);
    }

    [Fact]
    public async Task AMethodConfig_WithAMistypedMethod()
    {
        await using var server = await UserServer.StartAsync();
        await using var app = new ClientApp(services => services.AddPooledGrpcClient<User.UserClient>($"{server.Address}", static options => options.MethodConfigs.Add(new PooledMethodConfig
        {
            Names =
            {
                new MethodName { Service = "user.v1.User", Method = "GetNam" },
                new MethodName { Service = "user.v1.User", Method = "GetProfile" },
                new MethodName { Service = "user.v1.Other", Method = "GetName" },
            },
        })));
        await app.CallAsync(overPool: true);
        await app.CallAsync(overPool: true);
        await app.Client.GetProfileAsync(new GetProfileRequest()).ResponseAsync.Soon();
        var log = Assert.Single(app.Logs.GetSnapshot(), static record => record.Id.Name == "MethodUnknown");
        Assert.Contains("MethodConfigs names user.v1.User/GetNam, which its service does not have", log.Message, StringComparison.Ordinal);
        Assert.Contains("The service has GetName, GetProfile, Rename, ListNames, ImportNames, Chat.", log.Message, StringComparison.Ordinal);
    }

    /// <summary>It may be one that is called later, or through another client with the same configuration. So it is told as what it is, and once.</summary>
    [Fact]
    public async Task AMethodConfig_WithAMistypedService()
    {
        await using var server = await UserServer.StartAsync();
        await using var app = new ClientApp(services => services.AddPooledGrpcClient<User.UserClient>($"{server.Address}", static options => options.MethodConfigs.Add(new PooledMethodConfig
        {
            Names = { new MethodName { Service = "user.Usr", Method = "GetName" }, new MethodName { Service = "User" }, new MethodName { Service = "User", Method = "GetProfile" } },
            Idempotent = true,
        })));
        await app.CallAsync(overPool: true);
        await app.CallAsync(overPool: true);
        await app.Client.GetProfileAsync(new GetProfileRequest()).ResponseAsync.Soon();
        var log = Assert.Single(app.Logs.GetSnapshot(), static record => record.Id.Name == "ServiceNotNamed");
        Assert.Equal((33, LogLevel.Information), (log.Id.Id, log.Level));
        Assert.Equal(
            "UserClient: MethodConfigs names user.Usr, User, of which no call has come so far, and not user.v1.User, of which this is the first. A service is named with its package, as in user.v1.User.",
            log.Message);
    }

    [Fact]
    public async Task AMethodConfig_OfAServiceThatIsCalled_IsNotToldBesideOneThatIsNot()
    {
        await using var server = await UserServer.StartAsync();
        await using var app = new ClientApp(services => services.AddPooledGrpcClient<User.UserClient>($"{server.Address}", static options => options.MethodConfigs.Add(new PooledMethodConfig
        {
            Names = { MethodName.Default, new MethodName { Service = "user.v1.User", Method = "ListNames" }, new MethodName { Service = "orders.v1.Orders" } },
        })));
        await app.CallAsync(overPool: true);
        Assert.DoesNotContain(app.Logs.GetSnapshot(), static record => record.Id.Name == "ServiceNotNamed");
    }
}

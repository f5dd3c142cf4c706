using Grpc.Core;
using Microsoft.Extensions.DependencyInjection;
using Microsoft.Extensions.Logging;
using Microsoft.Extensions.Logging.Testing;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.DependencyInjectionTests;

/// <summary>The services of an app with gRPC clients. A test of a configuration is the same with the pool and without it.</summary>
internal sealed class ClientApp : IAsyncDisposable
{
    private readonly ServiceProvider _services;

    public ClientApp(Action<IServiceCollection> configure)
    {
        var services = new ServiceCollection();
        services.AddLogging(logging => logging.SetMinimumLevel(LogLevel.Trace).AddProvider(new FakeLoggerProvider(Logs)));
        configure(services);
        _services = services.BuildServiceProvider(new ServiceProviderOptions { ValidateScopes = true, ValidateOnBuild = true });
    }

    public static TheoryData<bool> WithAndWithout => [false, true];
    public IServiceProvider Services => _services;
    public FakeLogCollector Logs { get; } = new();
    public User.UserClient Client => Services.GetRequiredService<User.UserClient>();
    public ChannelPool Pool => PoolOf(nameof(User.UserClient))!;

    public ChannelPool? PoolOf(string name) => Services.GetKeyedService<PoolingCallInvoker>(name)?.Pool;

    /// <summary>Makes a call of the client, and looks whether it went where the test says that it goes.</summary>
    public Task CallAsync(bool overPool) => CallAsync(overPool, Client, nameof(User.UserClient));

    public async Task CallAsync(bool overPool, User.UserClient client, string name)
    {
        await client.GetNameAsync(new GetNameRequest()).ResponseAsync.Soon();
        AssertWent(overPool, name);
    }

    public void AssertWent(bool overPool, string name = nameof(User.UserClient)) =>
        Assert.Equal(overPool, PoolOf(name) is { } pool && pool.GetStatistics().ChannelsCreated > 0);

    public ValueTask DisposeAsync() => _services.DisposeAsync();

    /// <summary>One call of each kind.</summary>
    public static IEnumerable<(string Method, Func<User.UserClient, Task> CallAsync)> OfEachKind() =>
    [
        ("GetName", static client => client.GetNameAsync(new GetNameRequest()).ResponseAsync.Soon()),
        ("GetName", static client => Task.Run(() => client.GetName(new GetNameRequest())).Soon()),
        ("ListNames", ListAsync),
        ("ImportNames", ImportAsync),
        ("Chat", ChatAsync),
    ];

    private static async Task ListAsync(User.UserClient client)
    {
        using var call = client.ListNames(new ListNamesRequest { Count = 2 });
        Assert.Equal(2, await call.ResponseStream.ReadAllAsync().CountAsync().Soon());
    }

    private static async Task ImportAsync(User.UserClient client)
    {
        using var call = client.ImportNames();
        await call.RequestStream.WriteAsync(new ImportNameRequest()).Soon();
        await call.RequestStream.CompleteAsync().Soon();
        Assert.Equal(1, (await call.ResponseAsync.Soon()).Imported);
    }

    private static async Task ChatAsync(User.UserClient client)
    {
        using var call = client.Chat();
        await call.RequestStream.WriteAsync(new ChatMessage { Text = "hello" }).Soon();
        Assert.True(await call.ResponseStream.MoveNext().Soon());
        await call.RequestStream.CompleteAsync().Soon();
        Assert.False(await call.ResponseStream.MoveNext().Soon());
    }
}

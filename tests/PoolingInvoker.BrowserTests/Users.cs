using Grpc.Core;
using PoolingInvoker.AspNetCoreTests;
using PoolingInvoker.Demo.Servers;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.BrowserTests;

/// <summary>Servers, a pool over them that is named users, and a web app that shows it.</summary>
internal sealed class Users : IAsyncDisposable
{
    private readonly List<UserServer> _servers;
    private readonly List<ChannelPool> _others;
    private PageApp _app = null!;

    private Users(List<UserServer> servers, PoolingCallInvoker invoker, List<ChannelPool> others) =>
        (_servers, Invoker, _others, Client) = (servers, invoker, others, new User.UserClient(invoker));

    public PoolingCallInvoker Invoker { get; }

    public User.UserClient Client { get; }

    public Uri Page => _app.Address;

    public long Looks => _app.Sampler.Looks;

    public static async Task<Users> StartAsync(
        int servers = 1, Func<CallInvoker, CancellationToken, Task>? prime = null, string[]? others = null, int? channels = null)
    {
        var started = new List<UserServer>();
        while (started.Count < servers)
        {
            started.Add(await UserServer.StartAsync($"server-{started.Count + 1}"));
        }

        var options = new PoolingCallInvokerOptions { Pool = { MinPoolSize = channels ?? servers, MaxConcurrentCallsPerChannel = channels is null ? null : 1, PrimeCallback = prime, DrainTimeout = TimeSpan.Zero } };
        var users = new Users(
            started,
            PoolingCallInvoker.ForAddresses(started.Select(static server => server.Address.OriginalString), options),
            [.. (others ?? []).Select(static _ => ChannelPool.ForAddress("http://localhost:1"))]);
        users._app = await PageApp.StartAsync(pools =>
        {
            pools.Add(users.Invoker.Pool, "users");
            for (var i = 0; i < users._others.Count; i++)
            {
                pools.Add(users._others[i], others![i]);
            }
        });
        return users;
    }

    /// <summary>Makes a call that stays until it is disposed.</summary>
    public async Task<IDisposable> HoldCallAsync()
    {
        var chat = Client.Chat();
        await chat.RequestStream.WriteAsync(new ChatMessage { Text = "hello" }).Soon();
        Assert.True(await chat.ResponseStream.MoveNext().Soon());
        return chat;
    }

    public async Task KillServerOfAsync(int channel)
    {
        await Invoker.ConnectAsync().Soon();
        var endpoint = Invoker.Pool.GetChannels().Single(one => one.Id == channel).Endpoint;
        await _servers.Single(server => server.Address.Authority == endpoint).DisposeAsync();
    }

    /// <summary>Calls until something has happened. The calls may fail.</summary>
    public Task CallUntilAsync(Func<bool> happened) => Task.Run(async () =>
    {
        while (!happened())
        {
            await ((Task)Client.GetNameAsync(new GetNameRequest { Id = 1 }).ResponseAsync).ConfigureAwait(ConfigureAwaitOptions.SuppressThrowing);
        }
    }).Soon();

    public async Task StopPageAsync()
    {
        await _app.Application.StopAsync();
        await _app.DisposeAsync();
    }

    public async Task StartPageAgainAsync() =>
        _app = await PageApp.StartAsync(pools => pools.Add(Invoker.Pool, "users"), port: _app.Address.Port);

    public async ValueTask DisposeAsync()
    {
        await _app.DisposeAsync();
        await Invoker.DisposeAsync();
        foreach (var pool in _others)
        {
            await pool.DisposeAsync();
        }

        foreach (var server in _servers)
        {
            await server.DisposeAsync();
        }
    }
}

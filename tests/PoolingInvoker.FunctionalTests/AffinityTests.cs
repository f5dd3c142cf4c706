using System.Collections.Concurrent;
using PoolingInvoker.Demo.Servers;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.FunctionalTests;

/// <summary>The same key, the same server: behind a balancer, over several endpoints, and as servers die and channels grow old.</summary>
public sealed class AffinityTests(ITestOutputHelper output)
{
    private const int Channels = 6;

    private static readonly string[] Keys = [.. Enumerable.Range(0, 60).Select(static number => $"cart-{number}")];

    [Fact]
    public async Task BehindABalancer_AKeyHasOneConnection_AndSoOneServer()
    {
        UserServer[] servers = [await UserServer.StartAsync("one"), await UserServer.StartAsync("two"), await UserServer.StartAsync("three")];
        await using var balancer = new L4Balancer(servers.Select(static server => server.Address));
        await using var invoker = await ConnectAsync(balancer.Address);
        var found = new ConcurrentBag<(string Key, Origin Origin)>();
        await Task.WhenAll(Keys.Select(key => Task.Run(async () =>
        {
            var client = new User.UserClient(invoker.WithAffinity(key));
            for (var i = 0; i < 5; i++)
            {
                found.Add((key, (await client.GetNameAsync(new GetNameRequest())).Origin));
                using var listing = client.ListNames(new ListNamesRequest { Count = 1 });
                Assert.True(await listing.ResponseStream.MoveNext(CancellationToken.None));
                found.Add((key, listing.ResponseStream.Current.Origin));
            }
        }))).Soon();

        var moves = invoker.Pool.GetStatistics().AffinityMoves;
        output.WriteLine($"{found.Count} calls, {moves} moved; {string.Join(", ", found.CountBy(static call => call.Origin.Server).Select(static pair => $"{pair.Key} {pair.Value}"))}");
        Assert.Equal(3, found.Select(static call => call.Origin.Server).Distinct().Count());
        Assert.Equal(Channels, found.Select(static call => call.Origin.Connection).Distinct().Count());

        // Sixty at a time may be too many for one channel: those calls go to the next, and are counted.
        var away = found.GroupBy(static call => call.Key).Sum(static calls => calls.Count() - calls.CountBy(static call => call.Origin).Max(static pair => pair.Value));
        Assert.InRange(away, 0, moves);

        // One at a time are where they belong.
        foreach (var key in Keys)
        {
            var client = new User.UserClient(invoker.WithAffinity(key));
            var first = (await client.GetNameAsync(new GetNameRequest()).ResponseAsync.Soon()).Origin;
            for (var i = 0; i < 3; i++)
            {
                Assert.Equal(first, (await client.GetNameAsync(new GetNameRequest()).ResponseAsync.Soon()).Origin);
            }
        }

        Assert.Equal(moves, invoker.Pool.GetStatistics().AffinityMoves);
        await invoker.DisposeAsync();
        foreach (var server in servers)
        {
            await server.DisposeAsync();
        }
    }

    [Fact]
    [Trait("Tier", "all")]
    public async Task AServerIsKilled_OnlyItsKeysMove_AndNoCallIsLost()
    {
        await using var one = await ServerProcess.StartAsync("one");
        await using var two = await ServerProcess.StartAsync("two");
        await using var three = await ServerProcess.StartAsync("three");
        await using var balancer = new L4Balancer(one.Address, two.Address, three.Address);
        await using var invoker = await ConnectAsync(balancer.Address);
        var home = await HomesAsync(invoker);
        var keys = Keys.GroupBy(key => home[key]).SelectMany(static keys => keys.Take(2)).ToList(); // so many calls at a time make no channel busy
        var calling = new KeyedLoad(invoker, keys);
        await calling.EachAsync(atLeast: 5);
        await two.KillAsync();
        await calling.EachAsync(atLeast: 200);
        var found = await calling.StopAsync();
        await two.RestartAsync();

        output.WriteLine($"{found.Sum(static pair => pair.Value.Count)} calls; {invoker.Pool.GetStatistics()}");
        Assert.Empty(calling.Lost);
        foreach (var key in keys)
        {
            // Where nothing broke nothing moved, not even to another connection; what had to move stays where it went, as long as nothing comes back.
            if (home[key].Server != "two")
            {
                Assert.Equal(home[key], Assert.Single(found[key].Distinct()));
            }
            else
            {
                Assert.DoesNotContain("two", found[key].TakeLast(100).Select(static origin => origin.Server));
                Assert.Single(found[key].TakeLast(100).Distinct());
            }
        }

        Assert.Contains("two", keys.Select(key => home[key].Server));
        Assert.True(invoker.Pool.GetStatistics().ChannelsReplaced > 0);
    }

    [Fact]
    [Trait("Tier", "all")]
    public async Task AsChannelsGrowOld_AKeyGoesFromOneToTheNext_AndNeverBack()
    {
        UserServer[] servers = [await UserServer.StartAsync("one"), await UserServer.StartAsync("two"), await UserServer.StartAsync("three")];
        await using var balancer = new L4Balancer(servers.Select(static server => server.Address));
        await using var invoker = await ConnectAsync(balancer.Address, static options => options.Pool.PooledChannelLifetime = TimeSpan.FromSeconds(1));
        var calling = new KeyedLoad(invoker, Keys[..12]); // twelve calls at a time make no channel busy
        await Waiting.Until(() => invoker.Pool.GetStatistics().ChannelsReplaced >= 3 * Channels);
        var found = await calling.StopAsync();
        var statistics = invoker.Pool.GetStatistics();
        output.WriteLine($"{found.Sum(static pair => pair.Value.Count)} calls; {statistics}");
        Assert.Empty(calling.Lost);
        var changes = found.Values.Sum(static origins => origins.Zip(origins.Skip(1)).Count(static pair => !pair.First.Equals(pair.Second)));
        var connections = found.Values.Sum(static origins => origins.Distinct().Count() - 1);
        Assert.True(changes > 0, "No key ever moved: the test does not test.");
        Assert.InRange(changes - connections, 0, statistics.AffinityMoves); // back only where it gave way for a moment
        await invoker.DisposeAsync();
        foreach (var server in servers)
        {
            await server.DisposeAsync();
        }
    }

    [Fact]
    [Trait("Tier", "all")]
    public async Task TwoClientsOfThreeEndpoints_AgreeOnTheServerOfAKey_AlsoWhenOneIsLost_AndBack()
    {
        ServerProcess[] servers = [await ServerProcess.StartAsync("one"), await ServerProcess.StartAsync("two"), await ServerProcess.StartAsync("three")];
        await using var one = servers[0];
        await using var two = servers[1];
        await using var three = servers[2];
        await using var first = PoolingCallInvoker.ForAddresses(servers.Select(static server => $"{server.Address}"));
        await using var second = PoolingCallInvoker.ForAddresses(servers.Reverse().Select(static server => $"{server.Address}"), new() { Pool = { MinPoolSize = 8 } });
        await first.ConnectAsync().Soon();
        await second.ConnectAsync().Soon();
        var home = await ServersAsync(first);
        Assert.Equal(home, await ServersAsync(second));
        Assert.Equal(["one", "three", "two"], home.Values.Distinct().Order());

        await two.KillAsync();
        var during = await ServersAsync(first);
        Assert.Equal(during, await ServersAsync(second));
        Assert.DoesNotContain("two", during.Values);
        Assert.All(Keys, key => Assert.True(home[key] == "two" || home[key] == during[key]));

        await two.RestartAsync();
        foreach (var invoker in (PoolingCallInvoker[])[first, second])
        {
            while (!(await ServersAsync(invoker)).SequenceEqual(home))
            {
                await Task.Yield();
                TestContext.Current.CancellationToken.ThrowIfCancellationRequested();
            }
        }
    }

    private static async Task<PoolingCallInvoker> ConnectAsync(Uri address, Action<PoolingCallInvokerOptions>? configure = null)
    {
        var options = new PoolingCallInvokerOptions { Pool = { MinPoolSize = Channels, MaxPoolSize = Channels }, Retry = { MaxRetryAttempts = 20 } };
        configure?.Invoke(options);
        var invoker = PoolingCallInvoker.ForAddress(address, options);
        await invoker.ConnectAsync().Soon();
        return invoker;
    }

    private static async Task<Dictionary<string, string>> ServersAsync(PoolingCallInvoker invoker) =>
        (await HomesAsync(invoker)).ToDictionary(static pair => pair.Key, static pair => pair.Value.Server);

    private static async Task<Dictionary<string, Origin>> HomesAsync(PoolingCallInvoker invoker)
    {
        Dictionary<string, Origin> homes = [];
        foreach (var key in Keys)
        {
            homes[key] = (await new User.UserClient(invoker.WithAffinity(key)).GetNameAsync(new GetNameRequest()).ResponseAsync.Soon()).Origin;
        }

        return homes;
    }

    /// <summary>A caller for each key, each of which makes one call after the other, and writes down who answers.</summary>
    private sealed class KeyedLoad
    {
        private readonly ConcurrentDictionary<string, ConcurrentQueue<Origin>> _found = new();
        private readonly Task _calling;
        private volatile bool _stop;

        public KeyedLoad(PoolingCallInvoker invoker, IReadOnlyList<string> keys)
        {
            foreach (var key in keys)
            {
                _found[key] = new ConcurrentQueue<Origin>();
            }

            _calling = Task.WhenAll(keys.Select(key => Task.Run(() => CallAsync(new User.UserClient(invoker.WithAffinity(key)), _found[key]))));
        }

        public ConcurrentQueue<Exception> Lost { get; } = new();

        /// <summary>Waits until each key has had so many answers more.</summary>
        public Task EachAsync(int atLeast)
        {
            var before = _found.ToDictionary(static pair => pair.Key, static pair => pair.Value.Count);
            return Waiting.Until(() => _found.All(pair => pair.Value.Count >= before[pair.Key] + atLeast));
        }

        public async Task<IReadOnlyDictionary<string, List<Origin>>> StopAsync()
        {
            _stop = true;
            await _calling.Soon();
            return _found.ToDictionary(static pair => pair.Key, static pair => pair.Value.ToList());
        }

        private async Task CallAsync(User.UserClient client, ConcurrentQueue<Origin> found)
        {
            while (!_stop)
            {
                try
                {
                    found.Enqueue((await client.GetNameAsync(new GetNameRequest { DelayMs = 1 })).Origin);
                }
                catch (Exception exception) // What is lost is told by the test.
                {
                    Lost.Enqueue(exception);
                }
            }
        }
    }
}

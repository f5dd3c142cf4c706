using System.Collections.Concurrent;
using System.Globalization;
using Grpc.Core;
using Grpc.Net.Client;
using Grpc.Net.Client.Balancer;
using Grpc.Net.Client.Configuration;
using Microsoft.Extensions.DependencyInjection;
using PoolingInvoker.FunctionalTests;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.RotationTests;

/// <summary>
/// Three servers on hosts of their own, and no balancer before them. One of them is cut off, as when a cable is pulled: nobody is told. Or it
/// is killed, and its host refuses connections. After a while it is back. COMPARE=1 measures, and shows beside the pool what a bare channel with round_robin makes of it.
/// </summary>
[Collection(nameof(LoadTests))]
[Trait("Tier", "all")]
public sealed class NamespaceTests(ITestOutputHelper output)
{
    private const int Callers = 48;
    private const int DelayMs = 20;
    private const int CallsWhileOneIsLost = 20; // of each caller
    private const string Pool = "a pool over three addresses, with the default options";
    private const string RoundRobin = "a bare channel with round_robin";

    private static readonly string[] Names = ["one", "two", "three"];
    private static readonly bool Measures = Environment.GetEnvironmentVariable("COMPARE") == "1";

    // No call that waits for it ends within the test.
    private static readonly TimeSpan Deadline = Measures ? TimeSpan.FromSeconds(15) : 2 * Waiting.Long;
    private static readonly TimeSpan WarmUp = TimeSpan.FromSeconds(1.5);
    private static readonly TimeSpan Measured = TimeSpan.FromSeconds(3);
    private static readonly TimeSpan Cut = TimeSpan.FromSeconds(8);

    private readonly CallRate _rate = new();
    private readonly ConcurrentDictionary<string, int> _answers = new();
    private readonly ConcurrentQueue<string> _lost = new();
    private readonly ConcurrentQueue<(StatusCode Status, TimeSpan Began, TimeSpan Lasted)> _renamesFailed = new();
    private readonly int[] _ended = new int[Callers];
    private int _begun;
    private volatile bool _stop;

    public static TheoryData<string> Clients => Measures ? [Pool, RoundRobin] : [Pool];

    [Theory]
    [MemberData(nameof(Clients))]
    public Task AServerIsCutOff_AndComesBack(string kind) => LoseOneAsync(kind, "cut off", static (hosts, _) => hosts.CutAsync(1), static (hosts, _) => hosts.HealAsync(1));

    [Theory]
    [MemberData(nameof(Clients))]
    public Task AServerIsKilled_AndComesBack(string kind) => LoseOneAsync(kind, "killed", static (_, server) => server.KillAsync(), static (_, server) => server.RestartAsync());

    private async Task LoseOneAsync(string kind, string how, Func<NetworkNamespaces, ServerProcess, Task> lose, Func<NetworkNamespaces, ServerProcess, Task> heal)
    {
        if (NetworkNamespaces.WhyNot() is { } reason)
        {
            Assert.Skip(reason);
        }

        await using var hosts = await NetworkNamespaces.StartAsync(Names.Length);
        await using var servers = new Servers();
        for (var i = 0; i < Names.Length; i++)
        {
            servers.Add(await ServerProcess.StartAsync(Names[i], hosts.Addresses[i], hosts.On(i)));
        }

        await using var client = Client.Make(kind, servers.Addresses);
        var user = new User.UserClient(client.Invoker);
        var start = _rate.Elapsed;
        var calling = Enumerable.Range(0, Callers).Select(caller => Task.Run(() => CallManyAsync(user, caller))).ToArray();
        TimeSpan cut, healed, called;
        Share even, level;
        try
        {
            await _rate.RunUntilAsync(start + WarmUp);
            var warm = _answers.ToDictionary();
            await _rate.RunUntilAsync(start + WarmUp + Measured);
            await CalledAsync(Names);
            even = new Share(Names, warm, _answers.ToDictionary());

            cut = _rate.Elapsed;
            await lose(hosts, servers[1]);
            await (Measures ? _rate.RunUntilAsync(cut + Cut) : AllGoOnAsync()); // it is lost until nobody waits for it any more
            var before = _answers.ToDictionary();
            healed = _rate.Elapsed;
            await heal(hosts, servers[1]);
            await UntilAsync(() => _answers.GetValueOrDefault(Names[1]) > before.GetValueOrDefault(Names[1]), "the server is called again");
            called = _rate.Elapsed;
            var back = _answers.ToDictionary();
            await _rate.RunUntilAsync(called + Measured);
            await CalledAsync(Names);
            level = new Share(Names, back, _answers.ToDictionary());
        }
        finally
        {
            _stop = true;
            await Task.WhenAll(calling).Soon();
        }

        var perSecond = _rate.PerSecond(start + WarmUp, cut);
        var left = _rate.TimeTo(0.9 * perSecond, cut, healed);
        var renames = _renamesFailed.ToArray();
        output.WriteLine($"{kind}: {_begun} calls; {even}");
        output.WriteLine(string.Create(CultureInfo.InvariantCulture,
            $"{how}: {perSecond:0} calls/s before, 90 % of that after {left?.TotalSeconds.ToString("0.0", CultureInfo.InvariantCulture) ?? $"more than {Cut.TotalSeconds}"} s; "
            + $"{_lost.Count} idempotent calls failed, and {renames.Length} renames: ")
            + string.Join(", ", renames.CountBy(static rename => rename.Status).Select(static status => $"{status.Value} {status.Key}"))
            + (renames.Length == 0 ? "" : string.Create(CultureInfo.InvariantCulture, $" after {renames.Min(Lasted):0.0} to {renames.Max(Lasted):0.0} s")));
        output.WriteLine($"by tenths of a second from then: {_rate.Show(cut, healed)}");
        output.WriteLine(string.Create(CultureInfo.InvariantCulture, $"back: called again after {(called - healed).TotalSeconds:0.0} s; in the {Measured.TotalSeconds} s from then: {level}"));
        output.WriteLine($"{client.Pool?.GetStatistics()}");
        if (client.Pool is not { } pool)
        {
            return;
        }

        Assert.Multiple(
            () => Assert.True(_lost.IsEmpty, $"{_lost.Count} idempotent calls failed:\n{string.Join('\n', _lost.Take(3))}"),
            () => Assert.InRange(renames.Length, 0, Callers),
            () => Assert.All(renames, rename => Assert.Equal(StatusCode.Unavailable, rename.Status)),
            () => Assert.All(renames, rename => Assert.True(rename.Began <= healed && rename.Began + rename.Lasted >= cut)),
            () => Assert.DoesNotContain(servers.Journal.CountBy(static id => id), static rename => rename.Value > 1));
        await Waiting.Until(() => pool.GetStatistics().CallsInFlight == 0);

        static double Lasted((StatusCode Status, TimeSpan Began, TimeSpan Lasted) rename) => rename.Lasted.TotalSeconds;
    }

    // Each of these servers is called so often from now on.
    private async Task CalledAsync(IEnumerable<string> servers, int calls = 100)
    {
        var before = _answers.ToDictionary();
        await UntilAsync(() => servers.All(server => _answers.GetValueOrDefault(server) >= before.GetValueOrDefault(server) + calls), $"{string.Join(", ", servers)} are called");
    }

    private async Task AllGoOnAsync()
    {
        var before = _ended.ToArray();
        await UntilAsync(() => Enumerable.Range(0, Callers).All(caller => Volatile.Read(ref _ended[caller]) >= before[caller] + CallsWhileOneIsLost), "all callers go on");
    }

    // The processor is the servers' and the callers'.
    private static async Task UntilAsync(Func<bool> condition, string what)
    {
        var since = TimeProvider.System.GetTimestamp();
        while (!condition())
        {
            if (TimeProvider.System.GetElapsedTime(since) > Waiting.Long)
            {
                Assert.True(Measures, $"It did not become true that {what}.");
                return;
            }

            await Task.Delay(10);
        }
    }

    private async Task CallManyAsync(User.UserClient user, int caller)
    {
        while (!_stop)
        {
            var number = Interlocked.Increment(ref _begun);
            var began = _rate.Elapsed;
            try
            {
                var origin = number % 10 == 0
                    ? (await user.RenameAsync(new RenameRequest { RequestId = $"rename-{number}", DelayMs = DelayMs }, deadline: DateTime.UtcNow + Deadline)).Origin
                    : (await user.GetNameAsync(new GetNameRequest { Id = number, DelayMs = DelayMs }, deadline: DateTime.UtcNow + Deadline)).Origin;
                _rate.Count();
                _answers.AddOrUpdate(origin.Server, 1, static (_, count) => count + 1);
            }
            catch (RpcException exception) when (number % 10 == 0)
            {
                _renamesFailed.Enqueue((exception.StatusCode, began, _rate.Elapsed - began)); // it may have reached the server that was cut off
            }
            catch (RpcException exception)
            {
                _lost.Enqueue(string.Create(CultureInfo.InvariantCulture, $"at {began.TotalSeconds:0.00} s, for {(_rate.Elapsed - began).TotalSeconds:0.00} s: {exception}"));
            }

            Interlocked.Increment(ref _ended[caller]);
        }
    }

    private sealed class Servers : IAsyncDisposable
    {
        private readonly List<ServerProcess> _servers = [];

        public ServerProcess this[int index] => _servers[index];

        public IReadOnlyList<Uri> Addresses => [.. _servers.Select(static server => server.Address)];

        /// <summary>The renames that were run, on any of them.</summary>
        public IEnumerable<string> Journal => _servers.SelectMany(static server => server.ReadJournal());

        public void Add(ServerProcess server) => _servers.Add(server);

        public async ValueTask DisposeAsync()
        {
            foreach (var server in _servers)
            {
                await server.DisposeAsync();
            }
        }
    }

    /// <summary>What the calls go through.</summary>
    private sealed class Client(PoolingCallInvoker? pooled, GrpcChannel? bare) : IAsyncDisposable
    {
        public CallInvoker Invoker => pooled ?? bare!.CreateCallInvoker();

        public ChannelPool? Pool => pooled?.Pool;

        public static Client Make(string kind, IReadOnlyList<Uri> servers) => kind == RoundRobin
            ? new Client(pooled: null, GrpcChannel.ForAddress("static:///users", new GrpcChannelOptions
            {
                Credentials = ChannelCredentials.Insecure,
                ServiceProvider = new ServiceCollection()
                    .AddSingleton<ResolverFactory>(new StaticResolverFactory(_ => [.. servers.Select(static server => new BalancerAddress(server.Host, server.Port))]))
                    .BuildServiceProvider(),
                ServiceConfig = new ServiceConfig { LoadBalancingConfigs = { new RoundRobinConfig() } },
            }))
            : new Client(PoolingCallInvoker.ForAddresses(servers.Select(static server => server.OriginalString)), bare: null);

        public async ValueTask DisposeAsync()
        {
            if (pooled is not null)
            {
                await pooled.DisposeAsync();
            }

            bare?.Dispose();
        }
    }
}

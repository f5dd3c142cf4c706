using System.Collections.Concurrent;
using System.Globalization;
using Grpc.Core;
using Grpc.Net.Client;
using PoolingInvoker.Demo.Servers;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.FunctionalTests;

/// <summary>
/// Three servers behind a balancer that checks nothing, of which two stop (SIGSTOP): their connections stay open, new ones are taken,
/// and nothing is answered. HUNG_COMPARE=1 measures how fast the calls go on, and shows beside the pool what bare channels make of it.
/// </summary>
[Collection(nameof(LoadTests))]
[Trait("Tier", "all")]
public sealed class HungServersTests(ITestOutputHelper output)
{
    private const int Callers = 64;
    private const string SixChannels = "a pool of at least 6 channels";
    private const string DefaultPool = "a pool with the default options";
    private const string BareChannel = "a bare channel";
    private const string BareArray = "6 bare channels in turn";

    private const int CallsWhileHung = 20; // of each caller

    private static readonly bool Measures = Environment.GetEnvironmentVariable("HUNG_COMPARE") == "1";

    // No call that waits for it ends within the test.
    private static readonly TimeSpan Deadline = Measures ? TimeSpan.FromSeconds(15) : 2 * Waiting.Long;
    private static readonly TimeSpan WarmUp = TimeSpan.FromSeconds(1);
    private static readonly TimeSpan Hang = TimeSpan.FromSeconds(8);

    private readonly CallRate _rate = new();
    private readonly ConcurrentQueue<string> _lost = new();
    private readonly ConcurrentQueue<(StatusCode Status, TimeSpan Lasted)> _renamesFailed = new();
    private readonly long[] _lastEnded = new long[Callers];
    private readonly int[] _succeeded = new int[Callers];
    private volatile bool _stop;
    private int _calls;
    private int _renames;

    public static TheoryData<string> Clients => Measures
        ? [SixChannels, DefaultPool, BareChannel, BareArray]
        : [SixChannels, DefaultPool];

    [Theory]
    [MemberData(nameof(Clients))]
    public async Task TwoOfThreeServersHang_NoIdempotentCallFails_AndNoOtherWaitsForItsDeadline(string kind)
    {
        ServerProcess[] servers = [await ServerProcess.StartAsync("one"), await ServerProcess.StartAsync("two"), await ServerProcess.StartAsync("three")];
        await using var first = servers[0];
        await using var second = servers[1];
        await using var third = servers[2];
        await using var balancer = new L4Balancer(servers.Select(static server => server.Address));
        await using var invokers = Invokers.Make(kind, balancer.Address);

        var start = _rate.Elapsed;
        var calling = Enumerable.Range(0, Callers).Select(caller => Task.Run(() => GetNamesAsync(invokers, caller)))
            .Concat(Enumerable.Range(0, 2).Select(caller => Task.Run(() => RenameManyAsync(invokers, caller))))
            .ToArray();
        await _rate.RunUntilAsync(start + WarmUp + WarmUp);

        // Whoever runs this call is one of those that stop, so that there is one in flight.
        var held = RenameAsync(invokers.Next(), "held", delayMs: 3_000);
        await Waiting.Until(() => servers.Any(static server => server.ReadJournal().Contains("held")));
        var hung = Array.FindIndex(servers, static server => server.ReadJournal().Contains("held"));
        var stopped = _rate.Elapsed;
        await Task.WhenAll(servers[hung].StopAsync(), servers[(hung + 1) % servers.Length].StopAsync());

        var atStop = _succeeded.ToArray();
        var stuck = 0;
        if (Measures)
        {
            await _rate.RunUntilAsync(stopped + TimeSpan.FromSeconds(5));
            stuck = _lastEnded.Count(ended => TimeSpan.FromTicks(Volatile.Read(ref ended)) < stopped + TimeSpan.FromSeconds(1));
            await _rate.RunUntilAsync(stopped + Hang);
        }
        else
        {
            // Both servers stand still until all callers have gone on, and the call that one of them holds has been ended.
            await Waiting.Until(() => held.IsCompleted);
            await Waiting.Until(() => Enumerable.Range(0, Callers).All(caller => Volatile.Read(ref _succeeded[caller]) >= atStop[caller] + CallsWhileHung));
        }

        var continued = _rate.Elapsed;
        await Task.WhenAll(servers[hung].ContinueAsync(), servers[(hung + 1) % servers.Length].ContinueAsync());
        await _rate.RunUntilAsync(continued + WarmUp);
        _stop = true;
        await Task.WhenAll(calling).Soon();
        await held.Soon();

        output.WriteLine($"{kind}: {_calls} idempotent calls, {_lost.Count} lost; {_renames} renames, {_renamesFailed.Count} failed: "
            + string.Join(", ", _renamesFailed.Select(static failed => string.Create(CultureInfo.InvariantCulture, $"{failed.Status} after {failed.Lasted.TotalSeconds:0.00} s"))));
        output.WriteLine($"{invokers.Pool?.GetStatistics()}");
        if (Measures)
        {
            var before = _rate.PerSecond(start + WarmUp, stopped);
            output.WriteLine(string.Create(CultureInfo.InvariantCulture,
                $"{before:0} calls/s before; from 3 to 5 s after the stop {Part(before, 3, 5):0.0} % of that, from 5 to 8 s {Part(before, 5, 8):0.0} %; "
                + $"90 % after {_rate.TimeTo(0.9 * before, stopped, continued)?.TotalSeconds.ToString("0.0", CultureInfo.InvariantCulture) ?? "more than 8"} s; callers stuck after 5 s: {stuck} of {Callers}"));
            output.WriteLine($"by tenths of a second from the stop: {_rate.Show(stopped, continued)}");
        }

        if (invokers.Pool is null)
        {
            return;
        }

        var executedTwice = servers.SelectMany(static server => server.ReadJournal()).GroupBy(static id => id).Where(static run => run.Count() > 1).Select(static run => run.Key);
        Assert.Multiple(
            () => Assert.True(_lost.IsEmpty, $"{_lost.Count} idempotent calls failed:\n{string.Join('\n', _lost.Take(3))}"),
            () => Assert.NotEmpty(_renamesFailed),
            () => Assert.All(_renamesFailed, static failed => Assert.Equal(StatusCode.Unavailable, failed.Status)),
            () => Assert.Empty(executedTwice));
        await Waiting.Until(() => invokers.Pool.GetStatistics().CallsInFlight == 0);

        double Part(double before, int from, int to) => 100 * _rate.PerSecond(stopped + TimeSpan.FromSeconds(from), stopped + TimeSpan.FromSeconds(to)) / before;
    }

    private async Task GetNamesAsync(Invokers invokers, int caller)
    {
        for (var id = 0; !_stop; id++)
        {
            Interlocked.Increment(ref _calls);
            var began = _rate.Elapsed;
            try
            {
                await invokers.Next().GetNameAsync(new GetNameRequest { Id = id, DelayMs = 20 }, deadline: DateTime.UtcNow + Deadline);
                _rate.Count();
                Interlocked.Increment(ref _succeeded[caller]);
            }
            catch (RpcException exception)
            {
                _lost.Enqueue($"after {(_rate.Elapsed - began).TotalSeconds:0.00} s: {exception}");
            }

            Volatile.Write(ref _lastEnded[caller], _rate.Elapsed.Ticks);
        }
    }

    private async Task RenameManyAsync(Invokers invokers, int caller)
    {
        for (var i = 0; !_stop; i++)
        {
            await RenameAsync(invokers.Next(), $"{caller}-{i}", delayMs: 20);
        }
    }

    private async Task RenameAsync(User.UserClient client, string requestId, int delayMs)
    {
        Interlocked.Increment(ref _renames);
        var began = _rate.Elapsed;
        try
        {
            await client.RenameAsync(new RenameRequest { RequestId = requestId, DelayMs = delayMs }, deadline: DateTime.UtcNow + Deadline);
        }
        catch (RpcException exception)
        {
            _renamesFailed.Enqueue((exception.StatusCode, _rate.Elapsed - began));
        }
    }

    /// <summary>What the calls go through: a pool, or bare channels in turn.</summary>
    private sealed class Invokers(PoolingCallInvoker? pooled, params GrpcChannel[] channels) : IAsyncDisposable
    {
        private readonly User.UserClient[] _clients = pooled is null
            ? [.. channels.Select(static channel => new User.UserClient(channel))]
            : [new User.UserClient(pooled)];
        private int _next;

        public ChannelPool? Pool => pooled?.Pool;

        public static Invokers Make(string kind, Uri address) => kind switch
        {
            SixChannels => new Invokers(PoolingCallInvoker.ForAddress(address, new PoolingCallInvokerOptions { Pool = { MinPoolSize = 6 } })),
            DefaultPool => new Invokers(PoolingCallInvoker.ForAddress(address)),
            BareChannel => new Invokers(pooled: null, GrpcChannel.ForAddress(address)),
            _ => new Invokers(pooled: null, [.. Enumerable.Range(0, 6).Select(_ => GrpcChannel.ForAddress(address))]),
        };

        public User.UserClient Next() => _clients[(uint)Interlocked.Increment(ref _next) % _clients.Length];

        public async ValueTask DisposeAsync()
        {
            pooled?.Dispose();
            await Task.WhenAll(channels.Select(static channel => channel.ShutdownAsync()));
        }
    }
}

using System.Collections.Concurrent;
using System.Globalization;
using System.Net;
using System.Net.Sockets;
using Grpc.Core;
using PoolingInvoker.Demo.Servers;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.FunctionalTests;

/// <summary>No server is there, and many go on calling. OUTAGE_DELAY_MS=20 makes more calls, which fill a small machine.</summary>
[Collection(nameof(LoadTests))]
[Trait("Tier", "all")]
public sealed class OutageTests(ITestOutputHelper output)
{
    private static readonly int DelayMs = int.Parse(Environment.GetEnvironmentVariable("OUTAGE_DELAY_MS") ?? "100", CultureInfo.InvariantCulture);

    private readonly CallRate _rate = new();
    private readonly ConcurrentDictionary<StatusCode, int> _statuses = new();
    private readonly ConcurrentQueue<string> _wrong = new();
    private volatile bool _stop;
    private int _failed;
    private long _longest;
    private int[] _ended = [];
    private int[] _succeeded = [];

    [Fact]
    public async Task AThousandCallers_FailSoonWithTheConnectError_AndDialLittle()
    {
        const int Callers = 1_000;
        const int Channels = 10; // what 1,000 calls in flight need
        const int Seconds = 5;

        // A port that is taken and closed: nobody listens on it.
        using var taken = new Socket(SocketType.Stream, ProtocolType.Tcp);
        taken.Bind(new IPEndPoint(IPAddress.Loopback, 0));
        var address = (IPEndPoint)taken.LocalEndPoint!;
        await using var invoker = PoolingCallInvoker.ForAddress($"http://{address}", new PoolingCallInvokerOptions { Pool = { MinPoolSize = Channels } });
        using var connects = new ConnectCounter(address);

        var client = new User.UserClient(invoker);
        var calling = Start(Callers, client, delayMs: 0, pauseMs: 0, IsRefused);
        await _rate.RunUntilAsync(TimeSpan.FromSeconds(Seconds)); // in which there may be few dials
        await Waiting.Until(() => _ended.All(static ended => ended >= 3));
        await Waiting.Until(() => connects.Count >= Channels + 2, "the pool goes on dialling");
        var dialled = connects.Count;
        var elapsed = _rate.Elapsed;
        _stop = true;
        await Task.WhenAll(calling).Soon();

        var dials = connects.InSeconds(Seconds);
        var longest = TimeSpan.FromTicks(_longest);
        var statistics = invoker.Pool.GetStatistics();
        output.WriteLine($"{_failed} calls failed, {_wrong.Count} of them wrongly; the longest lasted {longest.TotalSeconds:0.00} s");
        output.WriteLine($"dials by seconds: {string.Join(' ', dials)}; {connects.Count} in all; {statistics}");
        Assert.True(_wrong.IsEmpty, string.Join("\n\n", _wrong.Take(3)));

        // The first ones dial at once, and all but one are given up. That one dials again after 0.8 s at the least, later more rarely. The
        // pool makes another one, or puts one in its place, after pauses of 0.1, 0.16, 0.26, 0.41, 0.66, 1, 1 … s, each up to a fifth longer
        // or shorter: up to five in the first second, and up to two in each later one, for each of the two reasons. A machine that is slow
        // makes them fewer.
        Assert.InRange(statistics.Channels, 1, Channels);
        Assert.InRange(dialled, Channels + 2, Channels + 5 + 5 + 2 + (int)(6 * elapsed.TotalSeconds));
    }

    [Fact]
    public async Task WhenTheServersAreBack_SoIsTheThroughput()
    {
        ServerProcess[] servers = [await ServerProcess.StartAsync("one"), await ServerProcess.StartAsync("two"), await ServerProcess.StartAsync("three")];
        await using var first = servers[0];
        await using var second = servers[1];
        await using var third = servers[2];
        await using var balancer = new L4Balancer(servers.Select(static server => server.Address));
        await using var invoker = PoolingCallInvoker.ForAddress(balancer.Address, new PoolingCallInvokerOptions { Pool = { MinPoolSize = 6 } });

        var client = new User.UserClient(invoker);
        var start = _rate.Elapsed;
        var calling = Start(200, client, DelayMs, pauseMs: 20, IsOutage);
        await _rate.RunUntilAsync(start + TimeSpan.FromSeconds(3));
        await Waiting.Until(() => _succeeded.All(static succeeded => succeeded > 0));
        var gone = _rate.Elapsed;
        await Task.WhenAll(servers.Select(static server => server.KillAsync()));
        await _rate.RunUntilAsync(gone + TimeSpan.FromSeconds(4));
        await Waiting.Until(() => Volatile.Read(ref _failed) > 200);
        await Task.WhenAll(servers.Select(static server => server.RestartAsync()));
        var back = _rate.Elapsed;
        var end = back + TimeSpan.FromSeconds(4);
        await _rate.RunUntilAsync(end);

        // All callers are served again, and none is turned away any more.
        var atEnd = _succeeded.ToArray();
        var failed = Volatile.Read(ref _failed);
        await Waiting.Until(() => _succeeded.Zip(atEnd).All(static caller => caller.First >= caller.Second + 5));
        var failedLater = Volatile.Read(ref _failed) - failed;
        _stop = true;
        await Task.WhenAll(calling).Soon();

        var before = _rate.PerSecond(start + TimeSpan.FromSeconds(1.5), gone);
        var after = _rate.PerSecond(back + TimeSpan.FromSeconds(2), end);
        output.WriteLine($"{before:0} calls/s before; from 2 to 4 s after the return {100 * after / before:0.0} % of that; 95 % after {_rate.TimeTo(0.95 * before, back, end)?.TotalSeconds:0.0} s; {_failed} calls failed: {string.Join(", ", _statuses)}");
        output.WriteLine($"by tenths of a second from 1 s before the return: {_rate.Show(back - TimeSpan.FromSeconds(1), end)}");
        output.WriteLine($"{invoker.Pool.GetStatistics()}");
        Assert.True(_wrong.IsEmpty, $"{_wrong.Count}:\n{string.Join("\n\n", _wrong.Take(3))}");
        Assert.Equal(0, failedLater);
    }

    private Task[] Start(int callers, User.UserClient client, int delayMs, int pauseMs, Func<RpcException, bool> isRight)
    {
        (_ended, _succeeded) = (new int[callers], new int[callers]);
        return [.. Enumerable.Range(0, callers).Select(caller => Task.Run(() => CallAsync(caller, client, delayMs, pauseMs, isRight)))];
    }

    private async Task CallAsync(int caller, User.UserClient client, int delayMs, int pauseMs, Func<RpcException, bool> isRight)
    {
        while (!_stop)
        {
            var began = _rate.Elapsed;
            try
            {
                await client.GetNameAsync(new GetNameRequest { DelayMs = delayMs });
                _rate.Count();
                _succeeded[caller]++;
            }
            catch (RpcException exception)
            {
                Interlocked.Increment(ref _failed);
                _statuses.AddOrUpdate(exception.StatusCode, 1, static (_, count) => count + 1);
                if (!isRight(exception))
                {
                    _wrong.Enqueue($"{exception}");
                }

                await Task.Delay(pauseMs);
            }

            _ended[caller]++;
            var lasted = (_rate.Elapsed - began).Ticks;
            for (var longest = Volatile.Read(ref _longest); lasted > longest;)
            {
                longest = Interlocked.CompareExchange(ref _longest, lasted, longest);
            }
        }
    }

    private static bool IsRefused(RpcException exception)
    {
        for (var inner = exception.StatusCode == StatusCode.Unavailable ? exception.Status.DebugException : null; inner is not null; inner = inner.InnerException)
        {
            if (inner is SocketException { SocketErrorCode: SocketError.ConnectionRefused })
            {
                return true;
            }
        }

        return false;
    }

    // A balancer without a server takes the connection and resets it. If that comes in the midst of the handshake, Internal is what a
    // bare channel says of it.
    private static bool IsOutage(RpcException exception) =>
        exception.StatusCode == StatusCode.Unavailable
        || exception is { StatusCode: StatusCode.Internal, Status.DebugException: HttpRequestException { StatusCode: null } };
}

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
public sealed class OutageTests(ITestOutputHelper output)
{
    private static readonly int DelayMs = int.Parse(Environment.GetEnvironmentVariable("OUTAGE_DELAY_MS") ?? "100", CultureInfo.InvariantCulture);

    private readonly CallRate _rate = new();
    private readonly ConcurrentDictionary<StatusCode, int> _statuses = new();
    private readonly ConcurrentQueue<string> _wrong = new();
    private volatile bool _stop;
    private int _failed;
    private long _longest;

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
        var calling = Enumerable.Range(0, Callers).Select(_ => Task.Run(() => CallAsync(client, delayMs: 0, pauseMs: 0, IsRefused))).ToArray();
        await _rate.RunUntilAsync(TimeSpan.FromSeconds(Seconds));
        _stop = true;
        await Task.WhenAll(calling).Soon();

        var dials = connects.InSeconds(Seconds);
        var longest = TimeSpan.FromTicks(_longest);
        var statistics = invoker.Pool.GetStatistics();
        output.WriteLine($"{_failed} calls failed, {_wrong.Count} of them wrongly; the longest lasted {longest.TotalSeconds:0.00} s");
        output.WriteLine($"dials by seconds: {string.Join(' ', dials)}; {connects.Count} in all; {statistics}");
        Assert.True(_wrong.IsEmpty, string.Join("\n\n", _wrong.Take(3)));
        Assert.True(longest < TimeSpan.FromSeconds(10), $"A call lasted {longest}.");

        // The first ones dial at once, and all but one are given up. That one dials again after 0.8 s at the least, later more rarely. The
        // pool makes another one, or puts one in its place, after pauses of 0.1, 0.16, 0.26, 0.41, 0.66, 1, 1 … s, each up to a fifth longer
        // or shorter: up to five in the first second, and up to two in each later one, for each of the two reasons. A later second may pass
        // without a dial, for pauses last up to 1.2 s, but four of them see two at the least.
        Assert.InRange(statistics.Channels, 1, Channels);
        Assert.InRange(dials[0], Channels, Channels + 5 + 5 + 2);
        Assert.All(dials.Skip(1), static inASecond => Assert.InRange(inASecond, 0, 2 + 2 + 2));
        Assert.True(dials.Skip(1).Sum() >= 2, "The pool has stopped dialling.");
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
        var calling = Enumerable.Range(0, 200).Select(_ => Task.Run(() => CallAsync(client, DelayMs, pauseMs: 20, IsOutage))).ToArray();
        await _rate.RunUntilAsync(start + TimeSpan.FromSeconds(3));
        var gone = _rate.Elapsed;
        await Task.WhenAll(servers.Select(static server => server.KillAsync()));
        await _rate.RunUntilAsync(gone + TimeSpan.FromSeconds(4));
        await Task.WhenAll(servers.Select(static server => server.RestartAsync()));
        var back = _rate.Elapsed;
        var end = back + TimeSpan.FromSeconds(4);
        await _rate.RunUntilAsync(end);
        _stop = true;
        await Task.WhenAll(calling).Soon();

        var before = _rate.PerSecond(start + TimeSpan.FromSeconds(1.5), gone);
        var after = _rate.PerSecond(back + TimeSpan.FromSeconds(2), end);
        output.WriteLine($"{before:0} calls/s before; from 2 to 4 s after the return {100 * after / before:0.0} % of that; 95 % after {_rate.TimeTo(0.95 * before, back, end)?.TotalSeconds:0.0} s; {_failed} calls failed: {string.Join(", ", _statuses)}");
        output.WriteLine($"by tenths of a second from 1 s before the return: {_rate.Show(back - TimeSpan.FromSeconds(1), end)}");
        output.WriteLine($"{invoker.Pool.GetStatistics()}");
        Assert.True(_wrong.IsEmpty, $"{_wrong.Count}:\n{string.Join("\n\n", _wrong.Take(3))}");
        Assert.True(_failed > 0, "No call failed: there was no outage.");
        Assert.True(after >= 0.75 * before, $"From 2 to 4 s after the return there are {after:0} calls/s, and {before:0} before.");
    }

    private async Task CallAsync(User.UserClient client, int delayMs, int pauseMs, Func<RpcException, bool> isRight)
    {
        while (!_stop)
        {
            var began = _rate.Elapsed;
            try
            {
                await client.GetNameAsync(new GetNameRequest { DelayMs = delayMs });
                _rate.Count();
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

using System.Globalization;
using System.Net;
using System.Net.Sockets;
using Grpc.Core;
using Grpc.Net.Client;
using PoolingInvoker.FunctionalTests;
using PoolingInvoker.Testing;

namespace PoolingInvoker.RotationTests;

/// <summary>
/// Real servers and proxies that close each connection after some time or some requests, under load. ROTATION_CALLS=100000 makes the runs
/// longer, and ROTATION_COMPARE=1 shows beside the pool what a bare channel makes of it. On a busy machine grpc-js violates HTTP/2 when it closes
/// a connection, over a bare channel, too: the streams that it breaks with that are not counted as lost.
/// </summary>
[Collection(nameof(LoadTests))]
[Trait("Tier", "all")]
public sealed class ClosedConnectionTests(ITestOutputHelper output)
{
    private const int ConnectsAtLeast = 5;

    private static readonly int CallsAtLeast = int.Parse(Environment.GetEnvironmentVariable("ROTATION_CALLS") ?? "5000", CultureInfo.InvariantCulture);
    private static readonly bool Compares = Environment.GetEnvironmentVariable("ROTATION_COMPARE") == "1";

    // As the runtime reports it: channels connect by sockets for both versions of IP, where there are two.
    private static readonly IPAddress Loopback = Socket.OSSupportsIPv6 ? IPAddress.Loopback.MapToIPv6() : IPAddress.Loopback;

    [Theory]
    [InlineData(RotatingServer.NginxRequests)]
    [InlineData(RotatingServer.NginxAge)]
    [InlineData(RotatingServer.Kestrel)]
    [InlineData(RotatingServer.GrpcJs)]
    [InlineData(RotatingServer.Python)]
    [InlineData(RotatingServer.Cpp)]
    public async Task NoIdempotentCallFails_AndNoOtherRunsTwice(string kind)
    {
        if (Compares)
        {
            await using var other = await RotatingServer.StartAsync(kind);
            using var bare = GrpcChannel.ForAddress(other.Address);
            await RunAsync("a bare channel", bare.CreateCallInvoker(), other);
        }

        await using var server = await RotatingServer.StartAsync(kind);
        await using var invoker = PoolingCallInvoker.ForAddress(server.Address);
        var (load, connects) = await RunAsync("the pool", invoker, server);
        output.WriteLine($"{invoker.Pool.GetStatistics()}");

        var renames = server.CountRenames();
        Assert.Multiple(
            () => Assert.True(connects >= ConnectsAtLeast, $"There were {connects} connections: the test does not test."),
            () => Assert.True(kind == RotatingServer.GrpcJs || load.Violated.Count == 0, string.Join('\n', load.Violated.Take(3))),
            () => Assert.True(load.Lost.Count == 0, $"{load.Lost.Count} of {load.Calls} calls are lost, as in:\n{string.Join("\n\n", load.Lost.Take(3))}"),
            () => Assert.NotEmpty(load.Renamed),
            () => Assert.All(load.Renamed, id => Assert.Equal(1, renames.GetValueOrDefault(id))),
            () => Assert.DoesNotContain(renames, static rename => rename.Value > 1));
        await Waiting.Until(() => invoker.Pool.GetStatistics().CallsInFlight == 0);
    }

    // Until there were calls enough, and connections enough.
    private async Task<(UserLoad Load, int Connects)> RunAsync(string client, CallInvoker invoker, RotatingServer server)
    {
        using var connects = new ConnectCounter(new IPEndPoint(Loopback, server.Address.Port));
        var load = new UserLoad(invoker);
        var since = TimeProvider.System.GetTimestamp();
        await load.RunAsync(number => number <= CallsAtLeast || (connects.Count < ConnectsAtLeast && TimeProvider.System.GetElapsedTime(since) < Waiting.Long));

        var seconds = TimeProvider.System.GetElapsedTime(since).TotalSeconds;
        var failed = load.RenamesFailed;
        var run = server.CountRenames();
        output.WriteLine(string.Create(CultureInfo.InvariantCulture,
            $"{client}: {load.Calls} calls in {seconds:0.0} s, {load.Calls / seconds:0} calls/s; {connects.Count} connects; {load.Lost.Count} calls lost, {load.Violated.Count} more as the server violated HTTP/2; "
            + $"{failed.Count} of {failed.Count + load.Renamed.Count()} renames failed, {run.Values.Count(static times => times > 1)} ran twice"));
        if (failed.Count > 0)
        {
            output.WriteLine($"  renames that failed: {Count(failed)}; {failed.Count(rename => run.ContainsKey(rename.Id))} of them ran");
        }

        return (load, connects.Count);
    }

    private static string Count(IEnumerable<(string Id, RpcException Failure)> failed) =>
        string.Join(", ", failed
            .CountBy(static rename => $"{rename.Failure.StatusCode} ({rename.Failure.Status.Detail})")
            .Select(static kind => $"{kind.Value} {kind.Key}"));
}

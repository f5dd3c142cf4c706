using System.Net.Sockets;
using Grpc.Core;
using PoolingInvoker.Protos;

namespace PoolingInvoker.FunctionalTests;

/// <summary>Servers that say, or do, something unexpected while a connection is opened.</summary>
public sealed class OpeningTests
{
    private static readonly byte[] Settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    private static readonly byte[] GoAway = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    private static readonly byte[] Ping = [0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
    private static readonly byte[] WindowUpdate = [0, 0, 4, 8, 0, 0, 0, 0, 0, 0, 1, 0, 0];
    private static readonly byte[] Ack = [0, 0, 0, 4, 1, 0, 0, 0, 0];

    private static Dictionary<string, byte[]> Beginnings { get; } = new()
    {
        ["nothing"] = [],
        ["GOAWAY"] = GoAway,
        ["PING"] = Ping,
        ["an acknowledgement"] = Ack,
        ["half of SETTINGS"] = Settings[..5],
        ["SETTINGS"] = Settings,
        ["SETTINGS and GOAWAY"] = [.. Settings, .. GoAway],
        ["SETTINGS, PING and WINDOW_UPDATE"] = [.. Settings, .. Ping, .. WindowUpdate],
        ["SETTINGS and half a frame"] = [.. Settings, .. Ping[..3]],
        ["SETTINGS of a wrong length"] = [0, 0, 5, 4, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5],
        ["SETTINGS, and two acknowledgements too many"] = [.. Settings, .. Ack, .. Ack, .. Ack],
    };

    public static TheoryData<string, string> Cases
    {
        get
        {
            var cases = new TheoryData<string, string>();
            foreach (var beginning in Beginnings.Keys)
            {
                cases.Add(beginning, "closes");
                cases.Add(beginning, "resets");
                cases.Add(beginning, "waits for the preface, and closes");
                cases.Add(beginning, "waits for the preface, and resets");
            }

            return cases;
        }
    }

    [Theory]
    [MemberData(nameof(Cases))]
    public async Task AServerThatEndsThere_FailsACall(string beginning, string end)
    {
        await using var server = new SocketServer(async socket =>
        {
            await socket.SendAsync(Beginnings[beginning]);
            if (end.StartsWith("waits", StringComparison.Ordinal))
            {
                await socket.ReceiveAsync(new byte[33]);
            }

            if (end.EndsWith("resets", StringComparison.Ordinal))
            {
                socket.LingerState = new LingerOption(enable: true, seconds: 0);
            }
            else
            {
                socket.Shutdown(SocketShutdown.Send);
            }

            socket.Dispose();
        });
        await using var client = TestClient.Create(overPool: true, server.Address);
        var outcome = await Outcome.OfAsync(() => client.User.GetNameAsync(new GetNameRequest()).ResponseAsync);
        Assert.True(outcome.Status is StatusCode.Unavailable or StatusCode.Internal, $"{outcome}");
        Assert.InRange(client.Retries, 0, 3);
    }
}

using System.Collections.Concurrent;
using System.Net.Sockets;
using Microsoft.Extensions.Time.Testing;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;
using static PoolingInvoker.FunctionalTests.ServerFrames;

namespace PoolingInvoker.FunctionalTests;

/// <summary>
/// A server that wants its SETTINGS and its PINGs acknowledged, each once, and closes the connection otherwise, as strict servers do: of a
/// connection that no call has used yet, too.
/// </summary>
public sealed class StrictServerTests
{
    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public async Task AConnection_AcknowledgesEachSettingsAndEachPing_Once(bool overPool)
    {
        var frames = new ConcurrentQueue<byte[]>();
        await using var server = new SocketServer(async socket =>
        {
            await using var stream = new NetworkStream(socket);
            await stream.ReadExactlyAsync(new byte[24]);
            await stream.WriteAsync((byte[])[.. Settings, .. Ping(1), .. Settings, .. Ping(2)]);
            while (true)
            {
                var frame = await ReadFrameAsync(stream);
                frames.Enqueue(frame);
                if (frame is [_, _, _, 4, 0, ..]) // SETTINGS of the client
                {
                    await stream.WriteAsync(SettingsAck);
                }
                else if (frame is [_, _, _, 0, 1, ..]) // the end of the request
                {
                    await stream.WriteAsync((byte[])[.. Reply(stream: 1), .. Settings, .. Ping(3)]);
                }
            }
        });
        await using var client = TestClient.Create(overPool, server.Address);
        if (overPool)
        {
            // A bare channel has no connection before a call: its handler makes it.
            await client.Pooled!.ConnectAsync().Soon();
            await Waiting.Until(() => Acks(4) == 2 && Acks(6) == 2);
            Assert.Equal(["1", "2"], Payloads());
        }

        await client.User.GetNameAsync(new GetNameRequest()).ResponseAsync.Soon();
        await Waiting.Until(() => Payloads().Contains("3")); // the last thing that was asked for
        Assert.Equal(3, Acks(4));
        Assert.Equal(["1", "2", "3"], Payloads());
        Assert.Equal(1, server.Accepted);

        int Acks(byte type) => frames.Count(frame => frame[3] == type && (frame[4] & 1) != 0);

        IEnumerable<string> Payloads() => frames.Where(static frame => frame[3] == 6 && frame[4] == 1).Select(static frame => $"{frame[^1]}");
    }

    [Fact]
    public async Task WhileAPingIsNotAnswered_NoOtherIsSent()
    {
        // The first connection opens, and says no more; those that are made to see whether a server is there do not open.
        var pings = 0;
        var connections = 0;
        var called = new TaskCompletionSource();
        await using var server = new SocketServer(async socket =>
        {
            await using var stream = new NetworkStream(socket);
            if (Interlocked.Increment(ref connections) > 1)
            {
                await stream.CopyToAsync(Stream.Null);
                return;
            }

            await stream.ReadExactlyAsync(new byte[24]);
            await stream.WriteAsync((byte[])[.. Settings, .. SettingsAck, .. SettingsAck]);
            while (true)
            {
                var frame = await ReadFrameAsync(stream);
                pings += frame is [_, _, _, 6, 0, ..] ? 1 : 0;
                if (frame is [_, _, _, 0, 1, ..])
                {
                    called.TrySetResult();
                }
            }
        });
        var time = new FakeTimeProvider(TimeProvider.System.GetUtcNow());
        using var log = new RecordingLoggerFactory();
        await using var client = TestClient.Create(overPool: true, server.Address, pool: options => (options.Pool.TimeProvider, options.Pool.LoggerFactory) = (time, log));
        using var cancellation = new CancellationTokenSource();
        var call = Outcome.OfAsync(() => client.User.GetNameAsync(new GetNameRequest(), cancellationToken: cancellation.Token).ResponseAsync);
        await called.Task.Soon();
        await Waiting.Until(() =>
        {
            time.Advance(TimeSpan.FromSeconds(0.1));
            return log.Entries.Count(static entry => entry.Event == "ChannelSuspected") >= 10;
        });
        await cancellation.CancelAsync();
        await call.Soon();
        Assert.Equal(1, pings);
    }

    private static byte[] Ping(byte number) => Frame(6, 0, 0, [0, 0, 0, 0, 0, 0, 0, number]);
}

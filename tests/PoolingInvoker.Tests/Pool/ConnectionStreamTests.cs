using PoolingInvoker.Testing;

namespace PoolingInvoker.Tests.Pool;

/// <summary>What passes between a handler and its transport, with pings of the pool's own between.</summary>
public sealed class ConnectionStreamTests
{
    private const long Payload = FrameScannerTests.Payload;
    private static readonly byte[] Settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];

    private readonly ChannelTransport _transport = new(TimeProvider.System);

    [Fact]
    public async Task HoweverItComes_AndIsRead_OnlyTheAcknowledgementIsMissing()
    {
        var random = new Random(1);
        for (var round = 0; round < 1_000; round++)
        {
            var (before, after) = (FrameScannerTests.RandomFrames(random), FrameScannerTests.RandomFrames(random));
            byte[] bytes = [.. Settings, .. before, .. FrameScannerTests.Ping(Payload, ack: true), .. after];
            await using var inner = new Wire();
            await using var stream = new ConnectionStream(inner, _transport);
            await stream.PingAsync(CancellationToken.None).Soon();
            FrameScannerTests.Cut(bytes, random, longest: 1 + (round % 40)).ForEach(inner.Comes);
            inner.Ends();
            var read = await ReadToEndAsync(stream, () => random.Next(1, 2 + (round % 30)), round % 2 == 0);
            Assert.Equal([.. Settings, .. before, .. after], read);
            Assert.True(stream.Frames.IsHttp2);
        }
    }

    [Theory]
    [InlineData(1)]
    [InlineData(5)]
    [InlineData(100)]
    public async Task WhatOnlyBeginsLikeIt_IsPassedOn(int buffer)
    {
        var almost = FrameScannerTests.Ping(Payload + 1, ack: true);
        byte[] bytes = [.. Settings, .. almost, .. FrameScannerTests.Ping(Payload, ack: true), .. almost];
        for (var cut = 1; cut < bytes.Length; cut++)
        {
            await using var inner = new Wire();
            await using var stream = new ConnectionStream(inner, _transport);
            await stream.PingAsync(CancellationToken.None).Soon();
            inner.Comes(bytes[..cut]);
            inner.Comes(bytes[cut..]);
            inner.Ends();
            var read = await ReadToEndAsync(stream, () => buffer, zeroByteReads: false);
            Assert.Equal([.. Settings, .. almost, .. almost], read);
        }
    }

    [Fact]
    public async Task TheEndInTheMiddleOfAnAcknowledgement_LosesNothing()
    {
        var ack = FrameScannerTests.Ping(Payload, ack: true);
        for (var length = 1; length < ack.Length; length++)
        {
            await using var inner = new Wire();
            await using var stream = new ConnectionStream(inner, _transport);
            await stream.PingAsync(CancellationToken.None).Soon();
            inner.Comes([.. Settings, .. ack[..length]]);
            inner.Ends();
            var read = await ReadToEndAsync(stream, static () => 4, zeroByteReads: false);
            Assert.Equal([.. Settings, .. ack[..length]], read);
        }
    }

    [Fact]
    public async Task AnAcknowledgement_IsWaitedFor_ThroughReadsThatGiveNothing()
    {
        var ack = FrameScannerTests.Ping(Payload, ack: true);
        await using var inner = new Wire();
        await using var stream = new ConnectionStream(inner, _transport);
        await stream.PingAsync(CancellationToken.None).Soon();
        var buffer = new byte[64];
        var reading = stream.ReadAsync(buffer).AsTask();
        inner.Comes(ack[..8]);
        inner.Comes(ack[8..16]);
        inner.Comes(ack[16..]);
        await Waiting.Until(() => inner.IsEmpty);
        Assert.False(reading.IsCompleted);
        inner.Comes(Settings);
        Assert.Equal(Settings.Length, await reading.Soon());
        Assert.Equal(Settings, buffer[..Settings.Length]);
    }

    [Fact]
    public async Task AZeroByteRead_WaitsForWhatComes()
    {
        await using var inner = new Wire();
        await using var stream = new ConnectionStream(inner, _transport);
        var waiting = stream.ReadAsync(Memory<byte>.Empty).AsTask();
        Assert.False(waiting.IsCompleted);
        inner.Comes(Settings);
        Assert.Equal(0, await waiting.Soon());
        Assert.Equal(0, _transport.SignsOfLife);
        Assert.Equal(9, await stream.ReadAsync(new byte[20]).Soon());
        Assert.Equal(1, _transport.SignsOfLife);
    }

    [Fact]
    public async Task AZeroByteRead_SeesWhatIsHeldAndIsNoAcknowledgement()
    {
        var almost = FrameScannerTests.Ping(Payload + 1, ack: true);
        await using var inner = new Wire();
        await using var stream = new ConnectionStream(inner, _transport);
        await stream.PingAsync(CancellationToken.None).Soon();
        inner.Comes([.. Settings, .. almost[..16]]);
        inner.Comes(almost[16..]);
        var buffer = new byte[64];
        Assert.Equal(Settings.Length, await stream.ReadAsync(buffer).Soon());
        Assert.Equal(4, await stream.ReadAsync(buffer.AsMemory(0, 4)).Soon());
        Assert.Equal(0, await stream.ReadAsync(Memory<byte>.Empty).Soon()); // 13 bytes are there
        Assert.Equal(13, await stream.ReadAsync(buffer).Soon());
    }

    [Fact]
    public async Task NoPingIsSent_WhileOneIsOut()
    {
        // The network stands still through two probes, and comes back.
        await using var inner = new Wire();
        await using var stream = new ConnectionStream(inner, _transport);
        await stream.PingAsync(CancellationToken.None).Soon();
        await stream.PingAsync(CancellationToken.None).Soon();
        Assert.Equal(FrameScannerTests.Ping(Payload, ack: false), inner.Written);

        inner.Comes([.. FrameScannerTests.Ping(Payload, ack: true), .. Settings]);
        Assert.Equal(Settings.Length, await stream.ReadAsync(new byte[64]).Soon());
        await stream.PingAsync(CancellationToken.None).Soon();
        Assert.Equal(2 * FrameScanner.PingLength, inner.Written.Length);
    }

    [Fact]
    public async Task APing_NeverComesBetweenTheBytesOfAWrite()
    {
        await using var inner = new Wire { WritesInPieces = true };
        await using var stream = new ConnectionStream(inner, _transport);
        var expected = 0;
        var pinging = Task.Run(async () =>
        {
            for (var i = 1; i <= 200; i++)
            {
                await stream.PingAsync(CancellationToken.None);
                inner.Comes(FrameScannerTests.Ping(Payload, ack: true));
                inner.Comes(Settings);
                Assert.Equal(Settings.Length, await stream.ReadAsync(new byte[64]));
            }
        });
        while (!pinging.IsCompleted || expected < 50)
        {
            await stream.WriteAsync(new byte[] { 0, 0, 3, 0, 0, 0, 0, 0, 7, 1, 2, 3 });
            expected++;
        }

        await pinging.Soon();
        var frames = ParseFrames(inner.Written);
        Assert.Equal(200, frames.Count(static frame => frame.AsSpan().SequenceEqual(FrameScannerTests.Ping(Payload, ack: false))));
        Assert.Equal(expected, frames.Count(static frame => frame.AsSpan().SequenceEqual((byte[])[0, 0, 3, 0, 0, 0, 0, 0, 7, 1, 2, 3])));
    }

    [Fact]
    public async Task APingThatIsGivenUpInTheMiddleOfItsFrame_DoesNotGarbleTheWrites()
    {
        byte[] data = [0, 0, 3, 0, 0, 0, 0, 0, 7, 1, 2, 3];
        var clogged = new TaskCompletionSource();
        await using var inner = new Wire { HalfWay = clogged.Task };
        await using var stream = new ConnectionStream(inner, _transport);
        using var cancellation = new CancellationTokenSource();
        var pinging = stream.PingAsync(cancellation.Token);
        var writing = stream.WriteAsync(data).AsTask();
        await cancellation.CancelAsync();
        clogged.SetResult();
        await Task.WhenAny(writing).Soon();
        await pinging.ContinueWith(static _ => { }, TaskScheduler.Default).Soon();
        Assert.Contains(data, ParseFrames(inner.Written));
    }

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public async Task AWriteThatFails_LetsTheNextOneThrough(bool atOnce)
    {
        await using var inner = new Wire { WriteFailure = new IOException("broken"), FailsAtOnce = atOnce };
        await using var stream = new ConnectionStream(inner, _transport);
        await Assert.ThrowsAsync<IOException>(() => stream.WriteAsync(Settings).AsTask().Soon());
        await Assert.ThrowsAsync<IOException>(() => stream.PingAsync(CancellationToken.None).Soon());
        inner.WriteFailure = null;
        await stream.WriteAsync(Settings).AsTask().Soon();
        await stream.PingAsync(CancellationToken.None).Soon();
        Assert.Equal([.. Settings, .. FrameScannerTests.Ping(Payload, ack: false)], inner.Written);
    }

    [Fact]
    public async Task AReadThatFails_InTheMiddleOfAnAcknowledgementToo_IsTheHandlers()
    {
        await using var inner = new Wire();
        await using var stream = new ConnectionStream(inner, _transport);
        await stream.PingAsync(CancellationToken.None).Soon();
        inner.Comes(FrameScannerTests.Ping(Payload, ack: true)[..5]);
        var reading = stream.ReadAsync(new byte[64]).AsTask();
        inner.Ends(new IOException("reset"));
        Assert.Equal("reset", (await Assert.ThrowsAsync<IOException>(() => reading.Soon())).Message);
    }

    [Fact]
    public async Task AReadAndAWrite_AllocateNothing()
    {
        await using var stream = new ConnectionStream(new EndlessFrames(), _transport);
        var buffer = new byte[100];
        await AllocatedAsync();
        Assert.Equal(0, await AllocatedAsync());

        async Task<long> AllocatedAsync()
        {
            var before = GC.GetAllocatedBytesForCurrentThread();
            for (var i = 0; i < 1_000; i++)
            {
                if (await stream.ReadAsync(buffer) > 0)
                {
                    await stream.WriteAsync(buffer);
                }
            }

            return GC.GetAllocatedBytesForCurrentThread() - before;
        }
    }

    [Theory]
    [InlineData(1)]
    [InlineData(3)]
    [InlineData(1000)]
    public async Task WhatTheServerSays_IsTold(int lengthOfReads)
    {
        var told = Told();
        await using var inner = new Wire();
        await using var stream = new ConnectionStream(inner, _transport);
        inner.Comes([0, 0, 18, 4, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 9, 0, 3, 0, 0, 0, 7, 0, 4, 0, 1, 0, 0]); // 7 streams, between others
        inner.Comes([0, 0, 0, 4, 1, 0, 0, 0, 0]); // an acknowledgement
        inner.Comes([0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 4, 0, 2, 0, 0]); // of something else
        inner.Comes([0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 3, 255, 255, 255, 255]); // as many as there are
        inner.Comes([0, 0, 8, 7, 0, 0, 0, 0, 0, 127, 255, 255, 255, 0, 0, 0, 0]); // GOAWAY, and another one
        inner.Comes([0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0]);
        inner.Ends();
        await ReadToEndAsync(stream, () => lengthOfReads, zeroByteReads: true);
        Assert.Equal(["takes 7", "takes 7", $"takes {int.MaxValue}", "goes", "lost"], told);
    }

    [Fact]
    public async Task AServerThatSetsNoLimit_TakesAsManyAsThereAre()
    {
        var told = Told();
        await using var inner = new Wire();
        await using var stream = new ConnectionStream(inner, _transport);
        inner.Comes([0, 0, 0, 4, 0, 0, 0, 0, 0]);
        inner.Ends();
        await ReadToEndAsync(stream, static () => 4, zeroByteReads: true);
        Assert.Equal([$"takes {int.MaxValue}", "lost"], told);
    }

    // Empty DATA frames, as many as are read.
    private sealed class EndlessFrames : MemoryStream
    {
        public override ValueTask<int> ReadAsync(Memory<byte> buffer, CancellationToken cancellationToken = default)
        {
            buffer.Span.Clear();
            return ValueTask.FromResult(90);
        }

        public override ValueTask WriteAsync(ReadOnlyMemory<byte> buffer, CancellationToken cancellationToken = default) => ValueTask.CompletedTask;
    }

    private List<string> Told()
    {
        List<string> told = [];
        _transport.SettingsCame += maxStreams => told.Add($"takes {maxStreams}");
        _transport.GoAwayCame += () => told.Add("goes");
        _transport.ConnectionLost += () => told.Add("lost");
        return told;
    }

    internal static async Task<byte[]> ReadToEndAsync(Stream stream, Func<int> length, bool zeroByteReads)
    {
        var bytes = new List<byte>();
        while (true)
        {
            if (zeroByteReads)
            {
                Assert.Equal(0, await stream.ReadAsync(Memory<byte>.Empty).Soon());
            }

            var buffer = new byte[length()];
            var read = await stream.ReadAsync(buffer).Soon();
            if (read == 0)
            {
                return [.. bytes];
            }

            bytes.AddRange(buffer[..read]);
        }
    }

    internal static List<byte[]> ParseFrames(byte[] bytes)
    {
        var frames = new List<byte[]>();
        for (var at = 0; at + FrameScanner.HeaderLength <= bytes.Length;)
        {
            var end = at + FrameScanner.HeaderLength + ((bytes[at] << 16) | (bytes[at + 1] << 8) | bytes[at + 2]);
            frames.Add(bytes[at..Math.Min(end, bytes.Length)]);
            at = end;
        }

        return frames;
    }
}

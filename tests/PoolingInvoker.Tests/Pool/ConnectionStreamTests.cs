using System.Threading.Channels;
using PoolingInvoker.Testing;

namespace PoolingInvoker.Tests.Pool;

/// <summary>What passes between a handler and its transport, with pings of the pool's own between.</summary>
public sealed class ConnectionStreamTests
{
    private const long Payload = FrameScanner.Payload;
    private static readonly byte[] Settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];

    private readonly ChannelTransport _transport = new();

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
            Assert.True(stream.IsHttp2);
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
    public async Task APing_WaitsForWhateverComes()
    {
        await using var inner = new Wire();
        await using var stream = await WatchedAsync(inner);
        inner.Comes(Settings);
        Assert.Equal(Settings.Length, await stream.ReadAsync(new byte[64]).Soon());

        using var cancellation = new CancellationTokenSource();
        var pinging = _transport.PingAsync(cancellation.Token);
        Assert.False(pinging.IsCompleted);
        Assert.Equal(6, inner.Written[3]);
        inner.Comes([0, 0, 0, 4, 1, 0, 0, 0, 0]);
        Assert.Equal(9, await stream.ReadAsync(new byte[64]).Soon());
        await pinging.Soon();

        pinging = _transport.PingAsync(cancellation.Token);
        await cancellation.CancelAsync();
        await Assert.ThrowsAnyAsync<OperationCanceledException>(() => pinging.Soon());
    }

    [Fact]
    public async Task WhatSpeaksNoHttp2_IsNotPinged()
    {
        await using var inner = new Wire();
        await using var stream = await WatchedAsync(inner);
        inner.Comes("HTTP/1.1 400 Bad Request\r\n"u8.ToArray());
        Assert.True(await stream.ReadAsync(new byte[64]).Soon() > 0);
        using var cancellation = new CancellationTokenSource();
        var pinging = _transport.PingAsync(cancellation.Token);
        await cancellation.CancelAsync();
        await Assert.ThrowsAnyAsync<OperationCanceledException>(() => pinging.Soon());
        Assert.Empty(inner.Written);
    }

    [Theory]
    [InlineData(1)]
    [InlineData(3)]
    [InlineData(1000)]
    public async Task WhatTheServerSays_IsTold(int lengthOfReads)
    {
        var told = new ToldEvents();
        _transport.Tell(told);
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
        Assert.Equal(["takes 7", "takes 7", $"takes {int.MaxValue}", "goes"], told.Events);
    }

    [Fact]
    public async Task AServerThatSetsNoLimit_TakesAsManyAsThereAre()
    {
        var told = new ToldEvents();
        _transport.Tell(told);
        await using var inner = new Wire();
        await using var stream = new ConnectionStream(inner, _transport);
        inner.Comes([0, 0, 0, 4, 0, 0, 0, 0, 0]);
        inner.Ends();
        await ReadToEndAsync(stream, static () => 4, zeroByteReads: true);
        Assert.Equal([$"takes {int.MaxValue}"], told.Events);
    }

    [Fact]
    public async Task ToConnect_ACallIsBegunAndCancelled_AndTheSettingsAreWaitedFor()
    {
        await using var inner = new Wire();
        using var handler = new SocketsHttpHandler();
        handler.PlaintextStreamFilter = (_, _) => ValueTask.FromResult<Stream>(inner);
        _transport.Watch(handler);
        Stream? stream = null;
        var connecting = _transport.ConnectAsync(
            async token =>
            {
                stream = await handler.PlaintextStreamFilter(null!, CancellationToken.None);
                token.ThrowIfCancellationRequested();
                Assert.Fail("The call went on.");
            },
            CancellationToken.None);
        Assert.False(connecting.IsCompleted);
        inner.Comes(Settings);
        inner.Ends();
        await ReadToEndAsync(stream!, static () => 100, zeroByteReads: false);
        await connecting.Soon();
        await stream!.DisposeAsync();
    }

    [Fact]
    public async Task AConnectionThatEndsBeforeItsSettings_DidNotConnect()
    {
        await using var inner = new Wire();
        using var handler = new SocketsHttpHandler();
        handler.PlaintextStreamFilter = (_, _) => ValueTask.FromResult<Stream>(inner);
        _transport.Watch(handler);
        var connecting = _transport.ConnectAsync(
            async token =>
            {
                await (await handler.PlaintextStreamFilter(null!, CancellationToken.None)).DisposeAsync();
                token.ThrowIfCancellationRequested();
            },
            CancellationToken.None);
        await Assert.ThrowsAsync<IOException>(() => connecting.Soon());
    }

    [Fact]
    public async Task WhatTheCallFailsWith_BeforeItIsConnected_IsThrown()
    {
        var refused = new InvalidOperationException("refused");
        Assert.Same(refused, await Assert.ThrowsAsync<InvalidOperationException>(() => _transport.ConnectAsync(_ => Task.FromException(refused), CancellationToken.None).Soon()));
    }

    private sealed class ToldEvents : IConnectionEvents
    {
        public List<string> Events { get; } = [];

        public void ServerTakes(int maxStreams) => Events.Add($"takes {maxStreams}");

        public void ServerGoes() => Events.Add("goes");
    }

    // A connection as the transport knows it: through a handler that makes one.
    private async Task<Stream> WatchedAsync(Wire inner)
    {
        using var handler = new SocketsHttpHandler();
        handler.PlaintextStreamFilter = (_, _) => ValueTask.FromResult<Stream>(inner);
        _transport.Watch(handler);
        return await handler.PlaintextStreamFilter(null!, CancellationToken.None);
    }

    private static async Task<byte[]> ReadToEndAsync(Stream stream, Func<int> length, bool zeroByteReads)
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

    private static List<byte[]> ParseFrames(byte[] bytes)
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

    /// <summary>The other side: gives what the test says, piece by piece, and keeps what is written.</summary>
    private sealed class Wire : Stream
    {
        private readonly Channel<byte[]> _pieces = System.Threading.Channels.Channel.CreateUnbounded<byte[]>();
        private readonly List<byte> _written = [];
        private byte[] _current = [];

        public bool WritesInPieces { get; init; }

        /// <summary>When given, the first write waits for it in the middle.</summary>
        public Task? HalfWay { get; init; }

        public Exception? WriteFailure { get; set; }

        public bool FailsAtOnce { get; init; }

        public byte[] Written
        {
            get
            {
                lock (_written)
                {
                    return [.. _written];
                }
            }
        }

        public bool IsEmpty => _pieces.Reader.Count == 0 && _current.Length == 0;

        public override bool CanRead => true;

        public override bool CanSeek => false;

        public override bool CanWrite => true;

        public override long Length => throw new NotSupportedException();

        public override long Position { get; set; }

        public void Comes(byte[] bytes) => _pieces.Writer.TryWrite(bytes);

        public void Ends(Exception? failure = null) => _pieces.Writer.Complete(failure);

        public override async ValueTask<int> ReadAsync(Memory<byte> buffer, CancellationToken cancellationToken = default)
        {
            if (_current.Length == 0)
            {
                try
                {
                    _current = await _pieces.Reader.ReadAsync(cancellationToken);
                }
                catch (ChannelClosedException closed)
                {
                    return closed.InnerException is { } failure ? throw failure : 0;
                }
            }

            var length = Math.Min(buffer.Length, _current.Length);
            _current.AsMemory(0, length).CopyTo(buffer);
            _current = _current[length..];
            return length;
        }

        public override ValueTask WriteAsync(ReadOnlyMemory<byte> buffer, CancellationToken cancellationToken = default) =>
            WriteFailure is { } failure && FailsAtOnce ? throw failure : WriteSlowlyAsync(buffer, cancellationToken);

        public override Task FlushAsync(CancellationToken cancellationToken) => Task.CompletedTask;

        public override void Flush() => throw new NotSupportedException();

        public override int Read(byte[] buffer, int offset, int count) => throw new NotSupportedException();

        public override void Write(byte[] buffer, int offset, int count) => throw new NotSupportedException();

        public override long Seek(long offset, SeekOrigin origin) => throw new NotSupportedException();

        public override void SetLength(long value) => throw new NotSupportedException();

        private async ValueTask WriteSlowlyAsync(ReadOnlyMemory<byte> buffer, CancellationToken cancellationToken)
        {
            if (WriteFailure is { } failure)
            {
                await Task.Yield();
                throw failure;
            }

            var half = buffer.Length / 2;
            Add(buffer[..half]);
            if (WritesInPieces)
            {
                await Task.Yield();
            }

            if (HalfWay is { IsCompleted: false } halfWay)
            {
                await halfWay.WaitAsync(cancellationToken);
            }

            Add(buffer[half..]);
        }

        private void Add(ReadOnlyMemory<byte> bytes)
        {
            lock (_written)
            {
                _written.AddRange(bytes.Span);
            }
        }
    }
}

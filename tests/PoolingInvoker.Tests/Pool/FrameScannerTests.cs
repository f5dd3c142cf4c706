using System.Buffers.Binary;

namespace PoolingInvoker.Tests.Pool;

/// <summary>Frames in pieces: wherever they are cut, all comes out but the acknowledgement of the pool's own ping.</summary>
public sealed class FrameScannerTests
{
    internal const long Payload = 0x506F_6F6C_0000_0000;

    [Fact]
    public void CutAtAnyPosition_OnlyTheAcknowledgementIsTakenOut()
    {
        var random = new Random(1);
        for (var round = 0; round < 30; round++)
        {
            var (before, after) = (RandomFrames(random), RandomFrames(random));
            byte[] bytes = [.. before, .. Ping(Payload, ack: true), .. after];
            for (var cut = 0; cut <= bytes.Length; cut++)
            {
                Assert.Equal([.. before, .. after], Scan([bytes[..cut], bytes[cut..]], isPingOut: true, out var isAcknowledged));
                Assert.True(isAcknowledged);
            }
        }
    }

    [Fact]
    public void CutIntoPiecesOfAnyLength_OnlyTheAcknowledgementIsTakenOut()
    {
        var random = new Random(2);
        for (var round = 0; round < 2_000; round++)
        {
            var (before, after) = (RandomFrames(random), RandomFrames(random));
            byte[] bytes = [.. before, .. Ping(Payload, ack: true), .. after];
            Assert.Equal([.. before, .. after], Scan(Cut(bytes, random, longest: 1 + (round % 40)), isPingOut: true, out var isAcknowledged));
            Assert.True(isAcknowledged);
        }
    }

    [Fact]
    public async Task APingThatGoesOut_WhileOtherSettingsAreAcknowledged_IsOut()
    {
        var scanner = new FrameScanner();
        using var stop = new CancellationTokenSource();
        var scanning = Task.Run(() =>
        {
            while (!stop.IsCancellationRequested)
            {
                scanner.AwaitsSettingsAck = true;
                Assert.Equal(0, scanner.Scan([.. FrameScanner.SettingsAck], out _));
            }
        });
        var lost = 0;
        for (var round = 0; round < 200_000; round++)
        {
            scanner.IsPingOut = false;
            Thread.SpinWait(round % 10);
            scanner.IsPingOut = true;
            Thread.SpinWait(20);
            lost += scanner.IsPingOut ? 0 : 1;
        }

        await stop.CancelAsync();
        await scanning;
        Assert.Equal(0, lost);
    }

    [Fact]
    public void WithoutAPing_AllStays()
    {
        var random = new Random(3);
        for (var round = 0; round < 500; round++)
        {
            byte[] bytes = [.. RandomFrames(random), .. Ping(Payload, ack: true), .. RandomFrames(random)];
            Assert.Equal(bytes, Scan(Cut(bytes, random, longest: 20), isPingOut: false, out _));
        }
    }

    [Fact]
    public void ASecondAcknowledgement_IsNotOurs()
    {
        var ack = Ping(Payload, ack: true);
        Assert.Equal(ack, Scan([[.. ack, .. ack]], isPingOut: true, out var isAcknowledged));
        Assert.True(isAcknowledged);
    }

    [Fact]
    public void WhatOnlyLooksLikeIt_Stays()
    {
        var ack = Ping(Payload, ack: true);
        for (var at = 0; at < FrameScanner.PingLength; at++)
        {
            var other = ack.ToArray();
            other[at] ^= 2;
            for (var cut = 0; cut <= FrameScanner.PingLength; cut++)
            {
                Assert.Equal(other, Scan([other[..cut], other[cut..]], isPingOut: true, out var isAcknowledged));
                Assert.False(isAcknowledged);
            }
        }
    }

    [Fact]
    public void AnAcknowledgementInThePayloadOfAFrame_Stays()
    {
        byte[] bytes = [0, 0, 2 * FrameScanner.PingLength, 0, 0, 0, 0, 0, 1, .. Ping(Payload, ack: true), .. Ping(Payload, ack: true)];
        for (var cut = 0; cut <= bytes.Length; cut++)
        {
            Assert.Equal(bytes, Scan([bytes[..cut], bytes[cut..]], isPingOut: true, out var isAcknowledged));
            Assert.False(isAcknowledged);
        }
    }

    [Fact]
    public void WhatMayBecomeTheAcknowledgement_IsHeldBack()
    {
        var ack = Ping(Payload, ack: true);
        for (var length = 1; length < FrameScanner.PingLength; length++)
        {
            var scanner = new FrameScanner { IsPingOut = true };
            Assert.Equal(0, scanner.Scan(ack.AsSpan(0, length).ToArray(), out var held));
            Assert.Equal((length, true), (held, scanner.IsPingOut));
        }
    }

    [Theory]
    [InlineData(4, true)]
    [InlineData(0, false)]
    [InlineData(0x48, false)] // as in HTTP/1.1
    public void AConnectionThatBeginsWithSettings_IsHttp2(byte type, bool isHttp2)
    {
        var scanner = new FrameScanner();
        foreach (var value in (byte[])[0, 0, 1, type, 0, 0, 0, 0, 0, 99, 0, 0, 0, 4, 0, 0, 0, 0, 0])
        {
            Assert.False(scanner.IsHttp2 && !isHttp2);
            scanner.Scan([value], out _);
        }

        Assert.Equal(isHttp2, scanner.IsHttp2);
    }

    [Fact]
    public void APing_IsAFrameOfTheProtocol() => Assert.Equal([0, 0, 8, 6, 0, 0, 0, 0, 0, .. "Pool"u8, 0, 0, 0, 0], FrameScanner.Ping);

    internal static byte[] Ping(long payload, bool ack)
    {
        var frame = new byte[FrameScanner.PingLength];
        (frame[2], frame[3], frame[4]) = (8, 6, ack ? (byte)1 : (byte)0);
        BinaryPrimitives.WriteInt64BigEndian(frame.AsSpan(9), payload);
        return frame;
    }

    /// <summary>A few frames, among them pings of others and acknowledgements of theirs.</summary>
    internal static byte[] RandomFrames(Random random)
    {
        var bytes = new List<byte>();
        for (var count = random.Next(4); count > 0; count--)
        {
            if (random.Next(3) == 0)
            {
                bytes.AddRange(Ping(random.Next(2) == 0 ? random.Next() : Payload + 1, ack: random.Next(2) == 0));
                continue;
            }

            var payload = new byte[random.Next(3) == 0 ? 0 : random.Next(40)];
            random.NextBytes(payload);
            bytes.AddRange([0, 0, (byte)payload.Length, (byte)random.Next(10), (byte)random.Next(256), 0, 0, 0, (byte)random.Next(3), .. payload]);
        }

        return [.. bytes];
    }

    internal static List<byte[]> Cut(byte[] bytes, Random random, int longest)
    {
        var pieces = new List<byte[]>();
        for (var at = 0; at < bytes.Length;)
        {
            var length = Math.Min(bytes.Length - at, random.Next(1, longest + 1));
            pieces.Add(bytes[at..(at + length)]);
            at += length;
        }

        return pieces;
    }

    // What is held back is looked at again with what follows, and what is left in the end stays.
    private static byte[] Scan(List<byte[]> pieces, bool isPingOut, out bool isAcknowledged)
    {
        var scanner = new FrameScanner { IsPingOut = isPingOut };
        var kept = new List<byte>();
        byte[] held = [];
        foreach (var piece in pieces)
        {
            byte[] bytes = [.. held, .. piece];
            var stays = scanner.Scan(bytes, out var heldLength);
            kept.AddRange(bytes[..stays]);
            held = bytes[stays..(stays + heldLength)];
        }

        isAcknowledged = scanner.IsPingOut != isPingOut;
        return [.. kept, .. held];
    }
}

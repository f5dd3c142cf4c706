using System.Buffers.Binary;

namespace PoolingInvoker;

/// <summary>
/// Follows the frames of an HTTP/2 connection through the bytes that are read from it, wherever a read begins and ends (RFC 9113, section
/// 4.1): what the server allows (SETTINGS), and that it is going (GOAWAY). It takes out the acknowledgements of what the pool has sent and the
/// handler knows nothing of: a ping, and the SETTINGS that open a connection.
/// </summary>
internal struct FrameScanner
{
    public const int HeaderLength = 9;
    public const int PingLength = HeaderLength + 8;

    /// <summary>What a client opens a connection with (RFC 9113, section 3.4), before its SETTINGS.</summary>
    public static readonly byte[] Preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"u8.ToArray();

    /// <summary>A SETTINGS frame that changes nothing.</summary>
    public static readonly byte[] EmptySettings = [0, 0, 0, SettingsType, 0, 0, 0, 0, 0];

    /// <summary>That of the pool's pings, far from those of the handler's own, which count from 0, up and down.</summary>
    public const long Payload = 0x506F_6F6C_0000_0000;

    private const byte DataType = 0;
    private const byte HeadersType = 1;
    private const byte SettingsType = 4;
    private const byte PingType = 6;
    private const byte GoAwayType = 7;
    private const byte AckFlag = 1;
    private const int SettingLength = 6; // an identifier of 16 bits, a value of 32
    private const int MaxConcurrentStreams = 3;

    private readonly byte[] _header;
    private int _headerLength; // how much of the next header is there
    private int _payloadLeft; // how much of the current frame is still to come
    private bool _isInSettings;
    private ulong _setting; // as much of it as is there
    private int _settingLength;

    public FrameScanner() => _header = new byte[HeaderLength];

    /// <summary>Whether the acknowledgement of the pool's SETTINGS has yet to come, to be taken out.</summary>
    public bool AwaitsSettingsAck { get; set; }

    /// <summary>Whether the first frame header, or what stands in its place, has come.</summary>
    public bool HasBegun { get; private set; }

    /// <summary>Whether the connection began as one of HTTP/2 does: with a SETTINGS frame.</summary>
    public bool IsHttp2 { get; private set; }

    /// <summary>How many frames have begun that belong to calls: HEADERS and DATA.</summary>
    public int CallFrames { get; private set; }

    /// <summary>How many SETTINGS frames of the server's own have come to their end.</summary>
    public int SettingsFrames { get; private set; }

    /// <summary>
    /// How many streams the server takes at a time, as it last said (SETTINGS_MAX_CONCURRENT_STREAMS). There is no limit unless it says so
    /// (RFC 9113, section 6.5.2).
    /// </summary>
    public uint MaxStreams { get; private set; } = uint.MaxValue;

    /// <summary>Whether the server takes no new streams on this connection.</summary>
    public bool HasGoneAway { get; private set; }

    /// <summary>
    /// Looks at what was read. It stays as it is, but for acknowledgements of the pool's own, which are taken out. If the end may become one
    /// that is held back, and not looked at yet.
    /// </summary>
    /// <param name="bytes">What was read. Changed if something is taken out of it.</param>
    /// <param name="isPingOut">Whether a ping is out; set to false when its acknowledgement has been taken out.</param>
    /// <param name="held">How many bytes are held back, behind those that stay.</param>
    /// <returns>How many bytes stay.</returns>
    public int Scan(Span<byte> bytes, ref bool isPingOut, out int held)
    {
        held = 0;
        var length = bytes.Length;
        var position = 0;
        while (position < length)
        {
            if (_payloadLeft > 0)
            {
                var passed = Math.Min(_payloadLeft, length - position);
                if (_isInSettings)
                {
                    ReadSettings(bytes.Slice(position, passed));
                }

                _payloadLeft -= passed;
                position += passed;
                EndSettings();
                continue;
            }

            if (_headerLength == 0 && AckLength(bytes[position..length], isPingOut) is > 0 and var ack)
            {
                if (length - position < ack)
                {
                    held = length - position;
                    return position;
                }

                bytes[(position + ack)..length].CopyTo(bytes[position..]);
                length -= ack;
                TakeOut(ack, ref isPingOut);
                continue;
            }

            var taken = Math.Min(HeaderLength - _headerLength, length - position);
            bytes.Slice(position, taken).CopyTo(_header.AsSpan(_headerLength));
            _headerLength += taken;
            position += taken;
            if (_headerLength == HeaderLength)
            {
                _headerLength = 0;
                _payloadLeft = (_header[0] << 16) | (_header[1] << 8) | _header[2];
                var type = _header[3];
                IsHttp2 |= !HasBegun && type == SettingsType;
                CallFrames += type is DataType or HeadersType ? 1 : 0;
                HasGoneAway |= type == GoAwayType && IsHttp2;
                _isInSettings = type == SettingsType && (_header[4] & AckFlag) == 0;
                _settingLength = 0;
                HasBegun = true;
                EndSettings();
            }
        }

        return length;
    }

    public static void WritePing(Span<byte> frame)
    {
        frame.Clear();
        frame[2] = PingLength - HeaderLength;
        frame[3] = PingType;
        BinaryPrimitives.WriteInt64BigEndian(frame[HeaderLength..], Payload);
    }

    /// <summary>The length of the acknowledgement that these bytes are, or may become; 0 if they are none that is waited for.</summary>
    public readonly int AckLength(ReadOnlySpan<byte> bytes, bool isPingOut)
    {
        if (!isPingOut && !AwaitsSettingsAck)
        {
            return 0;
        }

        Span<byte> ping = stackalloc byte[PingLength];
        WritePing(ping);
        ping[4] = AckFlag;
        ReadOnlySpan<byte> settings = [0, 0, 0, SettingsType, AckFlag, 0, 0, 0, 0];
        return isPingOut && BeginsLike(bytes, ping) ? PingLength
            : AwaitsSettingsAck && BeginsLike(bytes, settings) ? HeaderLength
            : 0;

        static bool BeginsLike(ReadOnlySpan<byte> bytes, ReadOnlySpan<byte> frame)
        {
            var length = Math.Min(bytes.Length, frame.Length);
            return bytes[..length].SequenceEqual(frame[..length]);
        }
    }

    /// <summary>An acknowledgement of this length is not waited for any more.</summary>
    public void TakeOut(int ackLength, ref bool isPingOut)
    {
        isPingOut &= ackLength != PingLength;
        AwaitsSettingsAck &= ackLength != HeaderLength;
    }

    private void ReadSettings(ReadOnlySpan<byte> bytes)
    {
        foreach (var next in bytes)
        {
            _setting = (_setting << 8) | next;
            if (++_settingLength == SettingLength)
            {
                _settingLength = 0;
                MaxStreams = (ushort)(_setting >> 32) == MaxConcurrentStreams ? (uint)_setting : MaxStreams;
            }
        }
    }

    private void EndSettings()
    {
        if (_isInSettings && _payloadLeft == 0)
        {
            _isInSettings = false;
            SettingsFrames++;
        }
    }
}

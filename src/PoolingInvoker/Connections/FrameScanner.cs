namespace PoolingInvoker;

/// <summary>
/// Follows the frames of an HTTP/2 connection through the bytes that are read from it, wherever a read begins and ends (RFC 9113, section
/// 4.1): what the server allows (SETTINGS), and that it is going (GOAWAY). It takes out the acknowledgements of what the pool has sent and the
/// handler knows nothing of: a ping, and the SETTINGS that open a connection.
/// </summary>
internal sealed class FrameScanner
{
    public const int HeaderLength = 9;
    public const int PingLength = HeaderLength + 8;

    /// <summary>What a client opens a connection with (RFC 9113, section 3.4), before its SETTINGS.</summary>
    public static readonly byte[] Preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"u8.ToArray();

    public static readonly byte[] EmptySettings = [0, 0, 0, SettingsType, 0, 0, 0, 0, 0];
    public static readonly byte[] SettingsAck = [0, 0, 0, SettingsType, AckFlag, 0, 0, 0, 0];

    /// <summary>A ping of the pool's own. Its payload is far from those of the handler's pings, which count from 0, up and down.</summary>
    public static readonly byte[] Ping = [0, 0, PingLength - HeaderLength, PingType, 0, 0, 0, 0, 0, .. "Pool\0\0\0\0"u8];

    private const byte DataType = 0;
    private const byte HeadersType = 1;
    private const byte SettingsType = 4;
    private const byte PingType = 6;
    private const byte GoAwayType = 7;
    private const byte AckFlag = 1;
    private const int SettingLength = 6; // an identifier of 16 bits, a value of 32
    private const int MaxConcurrentStreams = 3;

    private static readonly byte[] PingAck = AckOf(Ping);

    private readonly byte[] _header = new byte[HeaderLength];
    private int _headerLength; // how much of the next header is there
    private int _payloadLeft; // how much of the current frame is still to come
    private bool _isInSettings;
    private uint _maxStreams = uint.MaxValue; // SETTINGS_MAX_CONCURRENT_STREAMS; no limit by default (RFC 9113, section 6.5.2)
    private ulong _setting; // as much of it as is there
    private int _settingLength;
    private volatile bool _isPingOut;

    public bool AwaitsSettingsAck { get; set; } // that of the pool's own SETTINGS, to be taken out

    /// <summary>Whether a ping has yet to be acknowledged. There is never more than one, so that a server that wakes up is not flooded.</summary>
    public bool IsPingOut { get => _isPingOut; set => _isPingOut = value; }

    public Action<int>? SettingsCame { get; init; } // the server takes so many streams at a time
    public Action? GoAwayCame { get; init; } // is told once
    public bool HasBegun { get; private set; } // the first frame header, or what stands in its place, has come
    public bool IsHttp2 { get; private set; } // the first frame was one of SETTINGS
    public int CallFrames { get; private set; } // the frames that have begun of HEADERS and DATA
    public bool HasSettings { get; private set; } // of the server's own
    public bool HasGoneAway { get; private set; }

    /// <summary>
    /// Looks at what was read, takes out acknowledgements of the pool's own, and says how many bytes stay. What may become one is held back
    /// behind those, and not looked at yet.
    /// </summary>
    public int Scan(Span<byte> bytes, out int held)
    {
        held = 0;
        var length = bytes.Length;
        var position = 0;
        while (position < length)
        {
            if (_payloadLeft > 0)
            {
                var passed = Math.Min(_payloadLeft, length - position);
                ReadSettings(_isInSettings ? bytes.Slice(position, passed) : []);
                _payloadLeft -= passed;
                position += passed;
            }
            else if (_headerLength == 0 && AckLength(bytes[position..length]) is > 0 and var ack)
            {
                if (length - position < ack)
                {
                    held = length - position;
                    return position;
                }

                bytes[(position + ack)..length].CopyTo(bytes[position..]);
                length -= ack;
                if (ack == PingLength)
                {
                    IsPingOut = false;
                }
                else
                {
                    AwaitsSettingsAck = false; // and the other stays as it is: a ping may be going out
                }
            }
            else
            {
                var taken = Math.Min(HeaderLength - _headerLength, length - position);
                bytes.Slice(position, taken).CopyTo(_header.AsSpan(_headerLength));
                _headerLength += taken;
                position += taken;
                if (_headerLength == HeaderLength)
                {
                    BeginFrame();
                }
            }

            if (_isInSettings && _payloadLeft == 0)
            {
                (_isInSettings, HasSettings) = (false, true);
                SettingsCame?.Invoke((int)Math.Min(_maxStreams, int.MaxValue));
            }
        }

        return length;
    }

    /// <summary>The length of the frame that these bytes begin with; 0 if it is not all there.</summary>
    public static int LengthOf(ReadOnlySpan<byte> bytes) =>
        bytes is [var high, var middle, var low, ..] && HeaderLength + ((high << 16) | (middle << 8) | low) is var length && length <= bytes.Length ? length : 0;

    public static bool IsPing(ReadOnlySpan<byte> frame) => frame is [0, 0, 8, PingType, var flags, 0, 0, 0, 0, ..] && (flags & AckFlag) == 0;

    public static bool IsSettings(ReadOnlySpan<byte> frame) =>
        frame is [_, _, _, SettingsType, var flags, 0, 0, 0, 0, ..] && (flags & AckFlag) == 0 && (frame.Length - HeaderLength) % SettingLength == 0;

    public static byte[] AckOf(ReadOnlySpan<byte> ping)
    {
        var ack = ping.ToArray();
        ack[4] |= AckFlag;
        return ack;
    }

    // The length of the acknowledgement that these bytes are, or may become; 0 if they are none that is waited for.
    private int AckLength(ReadOnlySpan<byte> bytes) =>
        IsPingOut && bytes.CommonPrefixLength(PingAck) == Math.Min(bytes.Length, PingLength) ? PingLength
        : AwaitsSettingsAck && bytes.CommonPrefixLength(SettingsAck) == Math.Min(bytes.Length, HeaderLength) ? HeaderLength
        : 0;

    private void BeginFrame()
    {
        var type = _header[3];
        _payloadLeft = (_header[0] << 16) | (_header[1] << 8) | _header[2];
        IsHttp2 |= !HasBegun && type == SettingsType;
        CallFrames += type is DataType or HeadersType ? 1 : 0;
        _isInSettings = type == SettingsType && (_header[4] & AckFlag) == 0;
        _headerLength = _settingLength = 0;
        HasBegun = true;
        if (type == GoAwayType && IsHttp2 && !HasGoneAway)
        {
            HasGoneAway = true;
            GoAwayCame?.Invoke();
        }
    }

    private void ReadSettings(ReadOnlySpan<byte> bytes)
    {
        foreach (var next in bytes)
        {
            _setting = (_setting << 8) | next;
            if (++_settingLength == SettingLength)
            {
                _settingLength = 0;
                _maxStreams = (ushort)(_setting >> 32) == MaxConcurrentStreams ? (uint)_setting : _maxStreams;
            }
        }
    }
}

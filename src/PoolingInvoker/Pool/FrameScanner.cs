using System.Buffers.Binary;

namespace PoolingInvoker;

/// <summary>
/// Follows the frames of an HTTP/2 connection through the bytes that are read from it, wherever a read begins and ends (RFC 9113, section
/// 4.1): what the server allows (SETTINGS), and that it is going (GOAWAY). It takes out the acknowledgement of a ping that the handler
/// knows nothing of.
/// </summary>
internal struct FrameScanner
{
    public const int HeaderLength = 9;
    public const int PingLength = HeaderLength + 8;

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
    private bool _hasBegun;
    private bool _isInSettings;
    private ulong _setting; // as much of it as is there
    private int _settingLength;

    public FrameScanner() => _header = new byte[HeaderLength];

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
    /// Looks at what was read. Without a ping out it stays as it is. Otherwise the acknowledgement of the ping is taken out, and if the end
    /// may become it, that is held back, and not looked at yet.
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

            if (isPingOut && _headerLength == 0 && IsPingAck(bytes[position..length]))
            {
                if (length - position < PingLength)
                {
                    held = length - position;
                    return position;
                }

                bytes[(position + PingLength)..length].CopyTo(bytes[position..]);
                length -= PingLength;
                isPingOut = false;
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
                IsHttp2 |= !_hasBegun && type == SettingsType;
                CallFrames += type is DataType or HeadersType ? 1 : 0;
                HasGoneAway |= type == GoAwayType && IsHttp2;
                _isInSettings = type == SettingsType && (_header[4] & AckFlag) == 0;
                _settingLength = 0;
                _hasBegun = true;
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

    /// <summary>Whether these bytes are the acknowledgement of the ping, or the beginning of it.</summary>
    public static bool IsPingAck(ReadOnlySpan<byte> bytes)
    {
        Span<byte> frame = stackalloc byte[PingLength];
        WritePing(frame);
        frame[4] = AckFlag;
        var length = Math.Min(bytes.Length, PingLength);
        return bytes[..length].SequenceEqual(frame[..length]);
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

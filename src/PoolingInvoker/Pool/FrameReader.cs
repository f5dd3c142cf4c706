using System.Runtime.CompilerServices;

namespace PoolingInvoker;

/// <summary>
/// Reads one connection, and tells its transport what comes. Acknowledgements of what the pool has sent are left out: the handler knows nothing
/// of that, and would break the connection. Used by one read at a time.
/// </summary>
internal sealed class FrameReader(Stream inner, ConnectionStream connection, ChannelTransport transport)
{
    private readonly byte[] _held = new byte[FrameScanner.PingLength];
    private int _heldLength; // what may be an acknowledgement, or has turned out to be none
    private bool _isDecided;

    public FrameScanner Frames { get; } = new();

    [AsyncMethodBuilder(typeof(PoolingAsyncValueTaskMethodBuilder<>))]
    public async ValueTask<int> ReadAsync(Memory<byte> buffer, CancellationToken cancellationToken)
    {
        try
        {
            while (true)
            {
                if (_heldLength > 0 && (_isDecided || !buffer.IsEmpty))
                {
                    if (buffer.IsEmpty || await IsHeldForGoodAsync(cancellationToken).ConfigureAwait(false))
                    {
                        return GiveHeld(buffer.Span);
                    }

                    continue;
                }

                var read = await inner.ReadAsync(buffer, cancellationToken).ConfigureAwait(false);
                if (read == 0)
                {
                    if (!buffer.IsEmpty)
                    {
                        connection.SawEnd();
                    }

                    return 0;
                }

                if (Look(buffer.Span[..read]) is > 0 and var kept)
                {
                    return kept;
                }
            }
        }
        catch
        {
            connection.SawEnd();
            throw;
        }
    }

    private int Look(Span<byte> bytes)
    {
        var (callFrames, settingsFrames, hadGoneAway) = (Frames.CallFrames, Frames.SettingsFrames, Frames.HasGoneAway);
        var kept = Frames.Scan(bytes, out _heldLength);
        bytes.Slice(kept, _heldLength).CopyTo(_held);
        _isDecided = false;
        transport.Signs.Saw(Frames.CallFrames - callFrames);
        if (Frames.SettingsFrames != settingsFrames)
        {
            transport.SawSettings((int)Math.Min(Frames.MaxStreams, int.MaxValue));
        }

        if (Frames.HasGoneAway && !hadGoneAway)
        {
            transport.SawGoAway();
        }

        return kept;
    }

    // Reads byte by byte until it shows whether what is held is an acknowledgement, which is left out.
    private async ValueTask<bool> IsHeldForGoodAsync(CancellationToken cancellationToken)
    {
        while (!_isDecided)
        {
            if (Frames.AckLength(_held.AsSpan(0, _heldLength)) == _heldLength)
            {
                Frames.TakeOut(_heldLength);
                _heldLength = 0;
                return false;
            }

            var read = await inner.ReadAsync(_held.AsMemory(_heldLength, 1), cancellationToken).ConfigureAwait(false);
            _heldLength += read;
            _isDecided = read == 0 || Frames.AckLength(_held.AsSpan(0, _heldLength)) == 0;
        }

        return true;
    }

    private int GiveHeld(Span<byte> buffer)
    {
        var given = Math.Min(buffer.Length, _heldLength);
        _held.AsSpan(0, given).CopyTo(buffer);
        Frames.Scan(buffer[..given], out _, isNoAck: true); // nor does it end SETTINGS or GOAWAY
        _held.AsSpan(given, _heldLength - given).CopyTo(_held);
        _heldLength -= given;
        return given;
    }
}

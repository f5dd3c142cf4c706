using System.Runtime.CompilerServices;

namespace PoolingInvoker;

/// <summary>
/// Reads one connection, and tells its transport what comes. Acknowledgements of what the pool has sent are left out: the handler knows nothing
/// of that, and would break the connection. Used by one read at a time.
/// </summary>
internal sealed class FrameReader(Stream inner, ConnectionStream connection, ChannelTransport transport)
{
    private readonly byte[] _own = new byte[FrameScanner.PingLength];
    private int _kept; // how much of it is for the handler
    private int _held; // how much behind that may be an acknowledgement

    public FrameScanner Frames { get; } = new();

    [AsyncMethodBuilder(typeof(PoolingAsyncValueTaskMethodBuilder<>))]
    public async ValueTask<int> ReadAsync(Memory<byte> buffer, CancellationToken cancellationToken)
    {
        while (_kept == 0)
        {
            var isHeld = _held > 0 && !buffer.IsEmpty;
            int read;
            try
            {
                read = await inner.ReadAsync(isHeld ? _own.AsMemory(_held) : buffer, cancellationToken).ConfigureAwait(false);
            }
            catch
            {
                connection.SawEnd();
                throw;
            }

            if (read > 0 && isHeld)
            {
                _kept = Look(_own.AsSpan(0, _held + read));
            }
            else if (read > 0)
            {
                var kept = Look(buffer.Span[..read]);
                buffer.Span.Slice(kept, _held).CopyTo(_own);
                if (kept > 0)
                {
                    return kept;
                }
            }
            else if (isHeld)
            {
                (_kept, _held) = (_held, 0); // the rest of an acknowledgement will not come
            }
            else
            {
                if (!buffer.IsEmpty)
                {
                    connection.SawEnd();
                }

                return 0;
            }
        }

        return GiveKept(buffer.Span);
    }

    private int Look(Span<byte> bytes)
    {
        var (callFrames, settingsFrames, hadGoneAway) = (Frames.CallFrames, Frames.SettingsFrames, Frames.HasGoneAway);
        var kept = Frames.Scan(bytes, out _held);
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

    private int GiveKept(Span<byte> buffer)
    {
        var given = Math.Min(buffer.Length, _kept);
        _own.AsSpan(0, given).CopyTo(buffer);
        _own.AsSpan(given, _kept - given + _held).CopyTo(_own);
        _kept -= given;
        return given;
    }
}

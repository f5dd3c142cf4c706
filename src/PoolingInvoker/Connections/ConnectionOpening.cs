using System.Runtime.InteropServices;

namespace PoolingInvoker;

/// <summary>
/// The beginning of a connection, until its handler has taken it and read what came before that. The pool sends what a client begins with,
/// acknowledges SETTINGS and answers pings, and reads on, so that the end of the connection, and GOAWAY, show. The handler gets all frames but
/// the pings, and what it says that has been said already is left out.
/// </summary>
internal sealed class ConnectionOpening(ConnectionStream connection)
{
    private const int ProtocolError = 1; // RFC 9113, section 7
    private const int MostEarly = 1 << 16;

    private readonly object _lock = new();
    private byte[] _buffer = new byte[1024];
    private readonly List<byte> _early = []; // what the handler has yet to read
    private int _seen; // how much of it are whole frames that the pool has seen to
    private int _acksLeft; // how often the handler will acknowledge SETTINGS that have been acknowledged
    private volatile bool _isTaken;
    private volatile bool _isOver;
    private Task _watching = Task.CompletedTask;

    public long OpenedAt { get; private set; } // when the SETTINGS of the server came
    public bool IsTaken => _isTaken; // by the handler
    public bool IsRead => _watching.IsCompleted && _early.Count == 0; // the handler has read all that came before it
    public bool IsWritten => IsRead && _acksLeft == 0; // the handler has written all that had been written already

    /// <summary>Sends the preface and an empty SETTINGS frame (RFC 9113, section 3.4), and waits for the SETTINGS of the server.</summary>
    public async Task OpenAsync(TimeProvider time, CancellationToken cancellationToken)
    {
        connection.Frames.AwaitsSettingsAck = true;
        await connection.WriteOwnAsync([.. FrameScanner.Preface, .. FrameScanner.EmptySettings], cancellationToken).ConfigureAwait(false);
        while (!connection.Frames.HasSettings)
        {
            if (!await ReadEarlyAsync(cancellationToken).ConfigureAwait(false))
            {
                throw new HttpIOException(HttpRequestError.InvalidResponse, "The connection was closed before the server had sent its SETTINGS.");
            }

            if (connection.Frames is { HasBegun: true, IsHttp2: false })
            {
                throw new HttpProtocolException(ProtocolError, "The server does not speak HTTP/2: the first it sent is no SETTINGS frame.", innerException: null);
            }
        }

        OpenedAt = time.GetTimestamp();
    }

    /// <summary>Reads on until the handler does.</summary>
    public void Watch() => _watching = WatchAsync();

    /// <summary>Whether the connection is there for who takes it, or discards it so that nobody does.</summary>
    public bool Take(bool discards = false)
    {
        lock (_lock)
        {
            if (!discards && !connection.IsOpen)
            {
                return false; // it has ended, and is about to be discarded
            }

            (var wasOver, _isOver) = (_isOver, true);
            _isTaken |= !wasOver && !discards;
            return !wasOver;
        }
    }

    /// <summary>Closes the connection, unless the handler has taken it.</summary>
    public void Discard()
    {
        if (Take(discards: true))
        {
            connection.Dispose();
        }
    }

    public async ValueTask<int> ReadAsync(Memory<byte> buffer, CancellationToken cancellationToken)
    {
        if (GiveEarly(buffer.Span) is { } early)
        {
            return early;
        }

        await _watching.WaitAsync(cancellationToken).ConfigureAwait(false);
        return GiveEarly(buffer.Span) ?? await connection.ReadFramesAsync(buffer, cancellationToken).ConfigureAwait(false);
    }

    /// <summary>Leaves out of a write of the handler, which is of whole frames, what has been written already.</summary>
    public ReadOnlyMemory<byte> LeaveOut(ReadOnlyMemory<byte> written)
    {
        var rest = written.Span.StartsWith(FrameScanner.Preface) ? written[FrameScanner.Preface.Length..] : written;
        List<byte> kept = [];
        while (FrameScanner.LengthOf(rest.Span) is > 0 and var length && _acksLeft > 0)
        {
            if (rest.Span[..length].SequenceEqual(FrameScanner.SettingsAck))
            {
                _acksLeft--;
            }
            else
            {
                kept.AddRange(rest.Span[..length]);
            }

            rest = rest[length..];
        }

        return kept.Count == 0 ? rest : (byte[])[.. kept, .. rest.Span];
    }

    private async Task WatchAsync()
    {
        var isOpen = true;
        while (isOpen && !_isOver && _early.Count < MostEarly)
        {
            var reading = ReadEarlyAsync(CancellationToken.None);
            await ((Task)reading).ConfigureAwait(ConfigureAwaitOptions.SuppressThrowing); // the handler meets it with its next read
            isOpen = reading.IsCompletedSuccessfully && await reading.ConfigureAwait(false);
        }

        _buffer = []; // a connection may last long
        if (!isOpen)
        {
            Discard();
        }
    }

    // False if it is the end.
    private async Task<bool> ReadEarlyAsync(CancellationToken cancellationToken)
    {
        var read = await connection.ReadFramesAsync(_buffer, cancellationToken).ConfigureAwait(false);
        if (Keep(_buffer.AsSpan(0, read)) is { Length: > 0 } answers)
        {
            await connection.WriteOwnAsync(answers, cancellationToken).ConfigureAwait(false);
        }

        return read > 0;
    }

    // Gives what is to be answered. Statement order is important: what the handler may read is counted, and a frame of which it may have read a
    // part is its own.
    private byte[] Keep(ReadOnlySpan<byte> bytes)
    {
        List<byte> answers = [];
        lock (_lock)
        {
            _early.AddRange(bytes);
            while (!_isOver && FrameScanner.LengthOf(CollectionsMarshal.AsSpan(_early)[_seen..]) is > 0 and var length)
            {
                var frame = CollectionsMarshal.AsSpan(_early).Slice(_seen, length);
                if (FrameScanner.IsPing(frame))
                {
                    answers.AddRange(FrameScanner.AckOf(frame));
                    _early.RemoveRange(_seen, length);
                    continue;
                }

                if (FrameScanner.IsSettings(frame))
                {
                    answers.AddRange(FrameScanner.SettingsAck);
                    _acksLeft++;
                }

                _seen += length;
            }
        }

        return [.. answers];
    }

    private int? GiveEarly(Span<byte> buffer)
    {
        lock (_lock)
        {
            if (_early.Count == 0)
            {
                return null;
            }

            var given = Math.Min(_early.Count, buffer.Length);
            CollectionsMarshal.AsSpan(_early)[..given].CopyTo(buffer);
            _early.RemoveRange(0, given);
            return given;
        }
    }
}

using System.Buffers;
using System.Runtime.CompilerServices;

namespace PoolingInvoker;

/// <summary>
/// One connection of a channel, between its handler and the transport. The pool opens it, so that the SETTINGS of the server are there before
/// the handler needs it. Then it passes everything through, notices what comes, and can ask the other side for a sign of life.
/// </summary>
/// <param name="inner">The transport, or what the user's filter has made of it.</param>
/// <param name="transport">Who is told what comes.</param>
/// <param name="wire">The transport itself, by which the handler knows it.</param>
internal sealed class ConnectionStream(Stream inner, ChannelTransport transport, Stream? wire = null) : Stream
{
    private const int ProtocolError = 1; // RFC 9113, section 7
    private const int MostEarly = 1 << 16;

#pragma warning disable CA2213 // A ping may be on its way, and it has nothing to give back.
    private readonly SemaphoreSlim _writing = new(1, 1);
#pragma warning restore CA2213

    // Used by one read at a time.
    private readonly byte[] _held = new byte[FrameScanner.PingLength];
    private FrameScanner _scanner = new();
    private int _heldLength; // what may be the acknowledgement of a ping, or has turned out not to be
    private bool _isDecided;

    private bool _isPingOut; // never more than one, so that a server that wakes up is not flooded
    private bool _isClosed;

    // From the opening until the handler has caught up.
    private readonly object _earlyLock = new();
    private ArrayBufferWriter<byte>? _early; // what has come that the handler has not read
    private int _earlyRead;
    private Task? _watching; // the reads that go on until the handler takes the connection
    private int _isTaken; // 1 when the handler has, or nobody will: it has ended
    private int _prefaceLeft; // how much the handler will write that has been written already

    public override bool CanRead => inner.CanRead;

    public override bool CanSeek => false;

    public override bool CanWrite => inner.CanWrite;

    public override bool CanTimeout => inner.CanTimeout;

    public override long Length => throw new NotSupportedException();

    public override long Position
    {
        get => throw new NotSupportedException();
        set => throw new NotSupportedException();
    }

    /// <summary>Whether the other side speaks HTTP/2: it has sent its first frame.</summary>
    public bool IsHttp2 { get; private set; }

    /// <summary>The transport itself.</summary>
    public Stream Wire => wire ?? inner;

    /// <summary>When the SETTINGS of the server came.</summary>
    public long OpenedAt { get; private set; }

    /// <summary>Whether neither side has closed it, as far as has been seen.</summary>
    public bool IsOpen => !Volatile.Read(ref _isClosed);

    /// <summary>
    /// Sends what a client begins a connection with (RFC 9113, section 3.4), and waits for the SETTINGS of the server. The handler begins with
    /// the same words, which are left out then.
    /// </summary>
    public async Task OpenAsync(TimeProvider time, CancellationToken cancellationToken)
    {
        _early = new ArrayBufferWriter<byte>();
        _scanner.AwaitsSettingsAck = true;
        _prefaceLeft = FrameScanner.Preface.Length;
        await inner.WriteAsync(new byte[][] { FrameScanner.Preface, FrameScanner.EmptySettings }.SelectMany(static bytes => bytes).ToArray(), cancellationToken).ConfigureAwait(false);
        await inner.FlushAsync(cancellationToken).ConfigureAwait(false);
        while (_scanner.SettingsFrames == 0)
        {
            if (!await ReadEarlyAsync(cancellationToken).ConfigureAwait(false))
            {
                throw new HttpIOException(HttpRequestError.InvalidResponse, "The connection was closed before the server had sent its SETTINGS.");
            }

            if (_scanner.HasBegun && !IsHttp2)
            {
                throw new HttpProtocolException(ProtocolError, "The server does not speak HTTP/2: the first it sent is no SETTINGS frame.", innerException: null);
            }
        }

        OpenedAt = time.GetTimestamp();
    }

    /// <summary>Reads on until the handler does, so that the end of the connection, and GOAWAY, show before that.</summary>
    public void Watch() => _watching = WatchAsync();

    /// <summary>The handler takes the connection. Null if it has ended.</summary>
    public Stream? Take() => Interlocked.Exchange(ref _isTaken, 1) == 0 ? Wire : null;

    /// <summary>
    /// Sends a PING (RFC 9113, section 6.7), between two writes of the handler, if none is out. Its acknowledgement shows as a read.
    /// </summary>
    public async Task PingAsync(CancellationToken cancellationToken)
    {
        var frame = new byte[FrameScanner.PingLength];
        FrameScanner.WritePing(frame);
        await _writing.WaitAsync(cancellationToken).ConfigureAwait(false);
        try
        {
            if (!Volatile.Read(ref _isPingOut))
            {
                // Statement order is important: the acknowledgement must not come before it is expected. And once begun a frame is
                // written to its end.
                Volatile.Write(ref _isPingOut, true);
                await inner.WriteAsync(frame, CancellationToken.None).ConfigureAwait(false);
                await inner.FlushAsync(CancellationToken.None).ConfigureAwait(false);
            }
        }
        catch
        {
            Volatile.Write(ref _isPingOut, false);
            throw;
        }
        finally
        {
            _writing.Release();
        }
    }

    /// <summary>Breaks the connection: the calls on it end as if the other side had.</summary>
    public void Abort() => inner.Dispose();

    public override ValueTask<int> ReadAsync(Memory<byte> buffer, CancellationToken cancellationToken = default) =>
        _watching is null ? ReadOnAsync(buffer, cancellationToken) : CatchUpAsync(buffer, cancellationToken);

    [AsyncMethodBuilder(typeof(PoolingAsyncValueTaskMethodBuilder))]
    public override async ValueTask WriteAsync(ReadOnlyMemory<byte> buffer, CancellationToken cancellationToken = default)
    {
        if (_prefaceLeft > 0)
        {
            var written = Math.Min(_prefaceLeft, buffer.Length);
            _prefaceLeft -= written;
            buffer = buffer[written..];
        }

        if (!_writing.Wait(0, CancellationToken.None))
        {
            await _writing.WaitAsync(cancellationToken).ConfigureAwait(false);
        }

        try
        {
            var writing = inner.WriteAsync(buffer, cancellationToken);
            var isTakenAtOnce = writing.IsCompleted;
            await writing.ConfigureAwait(false);
            if (!isTakenAtOnce)
            {
                transport.SawProgress(); // the other side takes what it is sent
            }
        }
        catch (Exception exception) when (exception is not OperationCanceledException)
        {
            SawEnd();
            throw;
        }
        finally
        {
            _writing.Release();
        }
    }

    public override Task FlushAsync(CancellationToken cancellationToken) => inner.FlushAsync(cancellationToken);

    public override Task<int> ReadAsync(byte[] buffer, int offset, int count, CancellationToken cancellationToken) =>
        ReadAsync(buffer.AsMemory(offset, count), cancellationToken).AsTask();

    public override Task WriteAsync(byte[] buffer, int offset, int count, CancellationToken cancellationToken) =>
        WriteAsync(buffer.AsMemory(offset, count), cancellationToken).AsTask();

    // Not used by HTTP/2.
    public override int Read(byte[] buffer, int offset, int count) => inner.Read(buffer, offset, count);

    public override int Read(Span<byte> buffer) => inner.Read(buffer);

    public override void Write(byte[] buffer, int offset, int count) => inner.Write(buffer, offset, count);

    public override void Write(ReadOnlySpan<byte> buffer) => inner.Write(buffer);

    public override void Flush() => inner.Flush();

    public override long Seek(long offset, SeekOrigin origin) => throw new NotSupportedException();

    public override void SetLength(long value) => throw new NotSupportedException();

    public override async ValueTask DisposeAsync()
    {
        SawClose();
        await inner.DisposeAsync().ConfigureAwait(false);
        await base.DisposeAsync().ConfigureAwait(false);
    }

    protected override void Dispose(bool disposing)
    {
        if (disposing)
        {
            SawClose();
            inner.Dispose();
        }

        base.Dispose(disposing);
    }

    [AsyncMethodBuilder(typeof(PoolingAsyncValueTaskMethodBuilder<>))]
    private async ValueTask<int> ReadOnAsync(Memory<byte> buffer, CancellationToken cancellationToken)
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
                var kept = Look(buffer.Span[..read], isEnd: read == 0 && !buffer.IsEmpty);
                if (kept > 0 || read == 0)
                {
                    return kept;
                }
            }
        }
        catch
        {
            SawEnd();
            throw;
        }
    }

    // What has come, without the acknowledgement of a ping: the handler has not sent it, and would break the connection.
    private int Look(Span<byte> bytes, bool isEnd = false)
    {
        if (bytes.IsEmpty)
        {
            if (isEnd)
            {
                SawEnd();
            }

            return 0;
        }

        var wasPingOut = Volatile.Read(ref _isPingOut);
        var isPingOut = wasPingOut;
        var callFrames = _scanner.CallFrames;
        var settingsFrames = _scanner.SettingsFrames;
        var hadGoneAway = _scanner.HasGoneAway;
        var kept = _scanner.Scan(bytes, ref isPingOut, out _heldLength);
        bytes.Slice(kept, _heldLength).CopyTo(_held);
        _isDecided = false;
        if (isPingOut != wasPingOut)
        {
            Volatile.Write(ref _isPingOut, false);
        }

        IsHttp2 = _scanner.IsHttp2;
        transport.SawRead(_scanner.CallFrames - callFrames);
        Tell(settingsFrames, hadGoneAway);
        return kept;
    }

    private void Tell(int settingsFrames, bool hadGoneAway)
    {
        if (_scanner.SettingsFrames != settingsFrames)
        {
            transport.SawSettings((int)Math.Min(_scanner.MaxStreams, int.MaxValue));
        }

        if (_scanner.HasGoneAway && !hadGoneAway)
        {
            transport.SawGoAway();
        }
    }

    // Reads byte by byte until it shows whether what is held is an acknowledgement, which is taken out.
    private async ValueTask<bool> IsHeldForGoodAsync(CancellationToken cancellationToken)
    {
        while (!_isDecided)
        {
            var isPingOut = Volatile.Read(ref _isPingOut);
            if (_scanner.AckLength(_held.AsSpan(0, _heldLength), isPingOut) == _heldLength)
            {
                var wasPingOut = isPingOut;
                _scanner.TakeOut(_heldLength, ref isPingOut);
                _heldLength = 0;
                if (isPingOut != wasPingOut)
                {
                    Volatile.Write(ref _isPingOut, false);
                }

                return false;
            }

            var read = await inner.ReadAsync(_held.AsMemory(_heldLength, 1), cancellationToken).ConfigureAwait(false);
            _heldLength += read;
            _isDecided = read == 0 || _scanner.AckLength(_held.AsSpan(0, _heldLength), Volatile.Read(ref _isPingOut)) == 0;
        }

        return true;
    }

    private int GiveHeld(Span<byte> buffer)
    {
        var none = false;
        var given = Math.Min(buffer.Length, _heldLength);
        _held.AsSpan(0, given).CopyTo(buffer);
        _scanner.Scan(buffer[..given], ref none, out _); // it ends no SETTINGS, and no GOAWAY
        _held.AsSpan(given, _heldLength - given).CopyTo(_held);
        _heldLength -= given;
        return given;
    }

    // Adds what comes to what the handler will read first. False if it is the end.
    private async Task<bool> ReadEarlyAsync(CancellationToken cancellationToken)
    {
        var buffer = new byte[1024];
        var read = await ReadOnAsync(buffer, cancellationToken).ConfigureAwait(false);
        lock (_earlyLock)
        {
            _early!.Write(buffer.AsSpan(0, read));
        }

        return read > 0;
    }

    private async Task WatchAsync()
    {
        var isOpen = true;
        try
        {
            while (isOpen && Volatile.Read(ref _isTaken) == 0 && _early!.WrittenCount < MostEarly)
            {
                isOpen = await ReadEarlyAsync(CancellationToken.None).ConfigureAwait(false);
            }
        }
#pragma warning disable CA1031 // The handler meets it with its next read.
        catch (Exception)
#pragma warning restore CA1031
        {
            isOpen = false;
        }

        if (!isOpen && Take() is not null)
        {
            await DisposeAsync().ConfigureAwait(false);
        }
    }

    // What came before the handler did, and then what comes.
    private async ValueTask<int> CatchUpAsync(Memory<byte> buffer, CancellationToken cancellationToken)
    {
        var watching = _watching!;
        var (isThere, given) = Give();
        if (!isThere)
        {
            await watching.WaitAsync(cancellationToken).ConfigureAwait(false);
            (isThere, given) = Give();
        }

        if (isThere)
        {
            return given;
        }

        (_watching, _early) = (null, null);
        return await ReadOnAsync(buffer, cancellationToken).ConfigureAwait(false);

        (bool IsThere, int Given) Give()
        {
            lock (_earlyLock)
            {
                var rest = _early!.WrittenSpan[_earlyRead..];
                var given = Math.Min(rest.Length, buffer.Length);
                rest[..given].CopyTo(buffer.Span);
                _earlyRead += given;
                return (!rest.IsEmpty, given);
            }
        }
    }

    private void SawEnd()
    {
        if (IsOpen)
        {
            transport.SawEnd(isInVain: Volatile.Read(ref _isTaken) == 1 && _scanner.CallFrames == 0);
        }
    }

    private void SawClose()
    {
        Volatile.Write(ref _isClosed, true);
        transport.Closed(this);
    }
}

using System.Runtime.CompilerServices;

namespace PoolingInvoker;

/// <summary>
/// One connection of a channel, between its handler and the transport. It passes everything through, notices that something comes, and can
/// ask the other side for a sign of life.
/// </summary>
internal sealed class ConnectionStream(Stream inner, ChannelTransport transport) : Stream
{
#pragma warning disable CA2213 // A ping may be on its way, and it has nothing to give back.
    private readonly SemaphoreSlim _writing = new(1, 1);
#pragma warning restore CA2213

    // Used by one read at a time.
    private readonly byte[] _held = new byte[FrameScanner.PingLength];
    private FrameScanner _scanner = new();
    private int _heldLength; // what may be the acknowledgement of a ping, or has turned out not to be
    private bool _isDecided;

    private bool _isPingOut; // never more than one, so that a server that wakes up is not flooded

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

    public override ValueTask<int> ReadAsync(Memory<byte> buffer, CancellationToken cancellationToken = default)
    {
        if (_heldLength > 0 && (_isDecided || !buffer.IsEmpty))
        {
            return buffer.IsEmpty ? new ValueTask<int>(0) : ReadHeldAsync(buffer, cancellationToken);
        }

        var reading = inner.ReadAsync(buffer, cancellationToken);
        if (!reading.IsCompletedSuccessfully)
        {
            return FinishReadAsync(reading, buffer, cancellationToken);
        }

        var read = reading.Result;
        var kept = Look(buffer.Span[..read]);
        return kept > 0 || read == 0 ? new ValueTask<int>(kept) : ReadAsync(buffer, cancellationToken);
    }

    public override ValueTask WriteAsync(ReadOnlyMemory<byte> buffer, CancellationToken cancellationToken = default)
    {
        if (!_writing.Wait(0, CancellationToken.None))
        {
            return WriteAfterPingAsync(buffer, cancellationToken);
        }

        ValueTask writing;
        try
        {
            writing = inner.WriteAsync(buffer, cancellationToken);
        }
        catch
        {
            _writing.Release();
            throw;
        }

        if (!writing.IsCompletedSuccessfully)
        {
            return FinishWriteAsync(writing);
        }

        _writing.Release();
        return writing;
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
        transport.Closed(this);
        await inner.DisposeAsync().ConfigureAwait(false);
        await base.DisposeAsync().ConfigureAwait(false);
    }

    protected override void Dispose(bool disposing)
    {
        if (disposing)
        {
            transport.Closed(this);
            inner.Dispose();
        }

        base.Dispose(disposing);
    }

    [AsyncMethodBuilder(typeof(PoolingAsyncValueTaskMethodBuilder<>))]
    private async ValueTask<int> FinishReadAsync(ValueTask<int> reading, Memory<byte> buffer, CancellationToken cancellationToken)
    {
        var read = await reading.ConfigureAwait(false);
        var kept = Look(buffer.Span[..read]);
        return kept > 0 || read == 0 ? kept : await ReadAsync(buffer, cancellationToken).ConfigureAwait(false);
    }

    [AsyncMethodBuilder(typeof(PoolingAsyncValueTaskMethodBuilder))]
    private async ValueTask FinishWriteAsync(ValueTask writing)
    {
        try
        {
            await writing.ConfigureAwait(false);
            transport.SawProgress(); // the other side takes what it is sent
        }
        finally
        {
            _writing.Release();
        }
    }

    private async ValueTask WriteAfterPingAsync(ReadOnlyMemory<byte> buffer, CancellationToken cancellationToken)
    {
        await _writing.WaitAsync(cancellationToken).ConfigureAwait(false);
        try
        {
            await inner.WriteAsync(buffer, cancellationToken).ConfigureAwait(false);
        }
        finally
        {
            _writing.Release();
        }
    }

    // What has come, without the acknowledgement of a ping: the handler has not sent it, and would break the connection.
    private int Look(Span<byte> bytes)
    {
        if (bytes.IsEmpty)
        {
            return 0; // the end, or a read that only waits
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

    // Byte by byte until it shows whether what is held is the acknowledgement of a ping.
    private async ValueTask<int> ReadHeldAsync(Memory<byte> buffer, CancellationToken cancellationToken)
    {
        while (!_isDecided)
        {
            if (_heldLength == FrameScanner.PingLength)
            {
                _heldLength = 0;
                Volatile.Write(ref _isPingOut, false);
                return await ReadAsync(buffer, cancellationToken).ConfigureAwait(false);
            }

            var read = await inner.ReadAsync(_held.AsMemory(_heldLength, 1), cancellationToken).ConfigureAwait(false);
            _heldLength += read;
            _isDecided = read == 0 || !FrameScanner.IsPingAck(_held.AsSpan(0, _heldLength));
        }

        var none = false;
        var given = Math.Min(buffer.Length, _heldLength);
        _held.AsSpan(0, given).CopyTo(buffer.Span);
        _scanner.Scan(buffer.Span[..given], ref none, out _); // it ends no SETTINGS, and no GOAWAY
        _held.AsSpan(given, _heldLength - given).CopyTo(_held);
        _heldLength -= given;
        return given;
    }
}

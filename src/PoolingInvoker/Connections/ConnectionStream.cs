using System.Net.Sockets;
using System.Runtime.CompilerServices;

namespace PoolingInvoker;

/// <summary>
/// One connection of a channel, between its handler and the transport. It tells what comes, and can ask the other side for a sign of life.
/// Acknowledgements of what the pool has sent are left out: the handler knows nothing of that, and would break the connection.
/// </summary>
internal sealed class ConnectionStream(Stream inner, ChannelTransport transport, Stream? wire = null) : Stream
{
#pragma warning disable CA2213 // A ping may be on its way, and it has nothing to give back.
    private readonly SemaphoreSlim _writing = new(1, 1);
#pragma warning restore CA2213
    private readonly byte[] _own = new byte[FrameScanner.PingLength];
    private int _kept; // how much of it is for the handler
    private int _held; // how much behind that may be an acknowledgement
    private ConnectionOpening? _opening;
    private volatile bool _isClosed;
    private volatile bool _hasEnded;
    private volatile string? _abortReason;

    public override bool CanRead => inner.CanRead;
    public override bool CanSeek => false;
    public override bool CanWrite => inner.CanWrite;
    public override long Length => throw new NotSupportedException();

    public override long Position { get => throw new NotSupportedException(); set => throw new NotSupportedException(); }

    public FrameScanner Frames { get; } = new() { SettingsCame = transport.SawSettings, GoAwayCame = transport.SawGoAway };
    public ConnectionOpening Opening => _opening ??= new ConnectionOpening(this);
    public Stream Wire => wire ?? inner; // by which the handler knows it; the inner one may be what the user's filter has made of it
    public Socket? Socket { get; init; } // where it is known
    public bool IsOpen => !_isClosed && !_hasEnded; // neither side has closed it, as far as has been seen

    /// <summary>Whether something has come that has not been read, because this process did not get to it.</summary>
    public bool HasUnread
    {
        get
        {
            try
            {
                return Socket?.Available > 0;
            }
            catch (Exception exception) when (exception is ObjectDisposedException or SocketException)
            {
                return false;
            }
        }
    }

    /// <summary>Sends a PING (RFC 9113, section 6.7), if none is out. Its acknowledgement shows as a read.</summary>
    public async Task PingAsync(CancellationToken cancellationToken)
    {
        if (Frames.IsPingOut)
        {
            return;
        }

        // Statement order is important: the acknowledgement must not come before it is expected.
        Frames.IsPingOut = true;
        try
        {
            await WriteOwnAsync(FrameScanner.Ping, cancellationToken).ConfigureAwait(false);
        }
        catch
        {
            Frames.IsPingOut = false;
            throw;
        }
    }

    /// <summary>Writes frames of the pool's own, between two writes of the handler.</summary>
    public async Task WriteOwnAsync(byte[] frames, CancellationToken cancellationToken)
    {
        await _writing.WaitAsync(cancellationToken).ConfigureAwait(false);
        try
        {
            // A frame that is begun is written to its end.
            await inner.WriteAsync(frames, CancellationToken.None).ConfigureAwait(false);
            await inner.FlushAsync(CancellationToken.None).ConfigureAwait(false);
        }
        finally
        {
            _writing.Release();
        }
    }

    /// <summary>Breaks the connection: the calls on it end as if the other side had, and say why.</summary>
    public void Abort(string reason)
    {
        _abortReason = reason;
        inner.Dispose();
    }

    public override ValueTask<int> ReadAsync(Memory<byte> buffer, CancellationToken cancellationToken = default) =>
        _opening is { IsRead: false } ? _opening.ReadAsync(buffer, cancellationToken) : ReadFramesAsync(buffer, cancellationToken);

    /// <summary>Reads what comes, in whatever pieces. Used by one read at a time.</summary>
    [AsyncMethodBuilder(typeof(PoolingAsyncValueTaskMethodBuilder<>))]
    public async ValueTask<int> ReadFramesAsync(Memory<byte> buffer, CancellationToken cancellationToken)
    {
        while (_kept == 0)
        {
            var isHeld = _held > 0 && !buffer.IsEmpty;
            int read;
            try
            {
                read = await inner.ReadAsync(isHeld ? _own.AsMemory(_held) : buffer, cancellationToken).ConfigureAwait(false);
            }
            catch (Exception exception)
            {
                SawEnd();
                if (_abortReason is { } reason)
                {
                    throw new IOException($"The pool closed the connection: {reason}.", exception);
                }

                throw;
            }

            if (isHeld)
            {
                // Where nothing follows it is no acknowledgement.
                _kept = read > 0 ? Look(_own.AsSpan(0, _held + read)) : _held;
                _held = read > 0 ? _held : 0;
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
            else
            {
                if (!buffer.IsEmpty)
                {
                    SawEnd();
                }

                return 0;
            }
        }

        var given = Math.Min(buffer.Length, _kept);
        _own.AsSpan(0, given).CopyTo(buffer.Span);
        _own.AsSpan(given, _kept - given + _held).CopyTo(_own);
        _kept -= given;
        return given;
    }

    [AsyncMethodBuilder(typeof(PoolingAsyncValueTaskMethodBuilder))]
    public override async ValueTask WriteAsync(ReadOnlyMemory<byte> buffer, CancellationToken cancellationToken = default)
    {
        if (_opening is { IsWritten: false })
        {
            buffer = _opening.LeaveOut(buffer);
        }

        await _writing.WaitAsync(cancellationToken).ConfigureAwait(false);
        try
        {
            var writing = inner.WriteAsync(buffer, cancellationToken);
            var isTakenAtOnce = writing.IsCompleted;
            await writing.ConfigureAwait(false);
            if (!isTakenAtOnce)
            {
                transport.SawLife(); // the other side takes what it is sent
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

    // The handler of HTTP/2 reads, writes and flushes by the three above alone.
    public override int Read(byte[] buffer, int offset, int count) => throw new NotSupportedException();
    public override void Write(byte[] buffer, int offset, int count) => throw new NotSupportedException();
    public override void Flush() => throw new NotSupportedException();
    public override long Seek(long offset, SeekOrigin origin) => throw new NotSupportedException();
    public override void SetLength(long value) => throw new NotSupportedException();

    protected override void Dispose(bool disposing)
    {
        _isClosed = true;
        transport.Closed(this);
        inner.Dispose();
        base.Dispose(disposing);
    }

    private int Look(Span<byte> bytes)
    {
        var callFrames = Frames.CallFrames;
        var kept = Frames.Scan(bytes, out _held);
        transport.SawLife(Frames.CallFrames - callFrames);
        return kept;
    }

    // The other side has closed or reset it, or takes nothing more. A read and a write may both see the end. Each tells it before it passes
    // its exception on, which is judged by that.
    private void SawEnd()
    {
        if (!_isClosed)
        {
            _hasEnded = true;
            transport.SawEnd(this);
        }
    }
}

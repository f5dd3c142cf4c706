using System.Threading.Channels;

namespace PoolingInvoker.Tests.Pool;

/// <summary>The other side: gives what the test says, piece by piece, and keeps what is written.</summary>
internal sealed class Wire : Stream
{
    private readonly Channel<byte[]> _pieces = System.Threading.Channels.Channel.CreateUnbounded<byte[]>();
    private readonly List<byte> _written = [];
    private byte[] _current = [];

    public bool WritesInPieces { get; init; }

    /// <summary>When given, the first write waits for it in the middle.</summary>
    public Task? HalfWay { get; set; }

    public Exception? WriteFailure { get; set; }

    public bool FailsAtOnce { get; init; }

    public byte[] Written
    {
        get
        {
            lock (_written)
            {
                return [.. _written];
            }
        }
    }

    public bool IsDisposed { get; private set; }

    public bool IsEmpty => _pieces.Reader.Count == 0 && _current.Length == 0;

    public override bool CanRead => true;

    public override bool CanSeek => false;

    public override bool CanWrite => true;

    public override long Length => throw new NotSupportedException();

    public override long Position { get; set; }

    public void Comes(byte[] bytes) => _pieces.Writer.TryWrite(bytes);

    public void Ends(Exception? failure = null) => _pieces.Writer.TryComplete(failure);

    public override async ValueTask<int> ReadAsync(Memory<byte> buffer, CancellationToken cancellationToken = default)
    {
        if (_current.Length == 0)
        {
            try
            {
                _current = await _pieces.Reader.ReadAsync(cancellationToken);
            }
            catch (ChannelClosedException closed)
            {
                return closed.InnerException is { } failure ? throw failure : 0;
            }
        }

        var length = Math.Min(buffer.Length, _current.Length);
        _current.AsMemory(0, length).CopyTo(buffer);
        _current = _current[length..];
        return length;
    }

    public override ValueTask WriteAsync(ReadOnlyMemory<byte> buffer, CancellationToken cancellationToken = default) =>
        WriteFailure is { } failure && FailsAtOnce ? throw failure : WriteSlowlyAsync(buffer, cancellationToken);

    public override Task FlushAsync(CancellationToken cancellationToken) => Task.CompletedTask;

    public override void Flush() => throw new NotSupportedException();

    public override int Read(byte[] buffer, int offset, int count) => throw new NotSupportedException();

    public override void Write(byte[] buffer, int offset, int count) => throw new NotSupportedException();

    public override long Seek(long offset, SeekOrigin origin) => throw new NotSupportedException();

    public override void SetLength(long value) => throw new NotSupportedException();

    protected override void Dispose(bool disposing)
    {
        IsDisposed = true;
        _pieces.Writer.TryComplete(new IOException("closed"));
        base.Dispose(disposing);
    }

    private async ValueTask WriteSlowlyAsync(ReadOnlyMemory<byte> buffer, CancellationToken cancellationToken)
    {
        if (WriteFailure is { } failure)
        {
            await Task.Yield();
            throw failure;
        }

        var half = buffer.Length / 2;
        Add(buffer[..half]);
        if (WritesInPieces)
        {
            await Task.Yield();
        }

        if (HalfWay is { IsCompleted: false } halfWay)
        {
            await halfWay.WaitAsync(cancellationToken);
        }

        Add(buffer[half..]);
    }

    private void Add(ReadOnlyMemory<byte> bytes)
    {
        lock (_written)
        {
            _written.AddRange(bytes.Span);
        }
    }
}

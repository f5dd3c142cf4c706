using System.Threading.Channels;

namespace PoolingInvoker;

/// <summary>
/// Who watches a page. Frames wait for one that is slow, but not many: then it is left behind, and goes on with all that there is to show as
/// soon as it can take it. It holds up nobody.
/// </summary>
internal sealed class Watcher : IDisposable
{
    private const int MostWaiting = 4;

    private readonly PoolSampler _sampler;
    private readonly Channel<byte[]> _frames;
    private int _needsAll = 1;

    public Watcher(PoolSampler sampler)
    {
        _sampler = sampler;
        _frames = Channel.CreateBounded<byte[]>(
            new BoundedChannelOptions(MostWaiting) { FullMode = BoundedChannelFullMode.DropOldest, SingleReader = true },
            _ => Volatile.Write(ref _needsAll, 1));
    }

    public void Offer(byte[] frame) => _frames.Writer.TryWrite(frame);

    /// <summary>There are no more frames.</summary>
    public void End() => _frames.Writer.TryComplete();

    /// <summary>Waits for the next frame; null at their end.</summary>
    public async ValueTask<byte[]?> NextAsync(CancellationToken cancellationToken)
    {
        if (!await _frames.Reader.WaitToReadAsync(cancellationToken).ConfigureAwait(false))
        {
            return null;
        }

        if (Interlocked.Exchange(ref _needsAll, 0) == 0)
        {
            return _frames.Reader.TryRead(out var next) ? next : null;
        }

        while (_frames.Reader.TryRead(out _))
        {
            // It is in the whole.
        }

        return _sampler.Whole();
    }

    public void Dispose() => _sampler.Leave(this);
}

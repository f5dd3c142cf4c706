namespace PoolingInvoker;

/// <summary>The requests that are through to an attempt of a stream, for the next one. Guarded by the lock of the call.</summary>
internal sealed class RequestLog(ReplaySpace space, long maxSize)
{
    private readonly List<ReplayableRequest> _requests = [];
    private long _size;

    public IReadOnlyList<ReplayableRequest> Requests => _requests.Count == 0 ? [] : [.. _requests];

    public bool TryAdd(ReplayableRequest request)
    {
        if (_size + request.Size > maxSize || !space.TryTake(request.Size))
        {
            return false;
        }

        _size += request.Size;
        _requests.Add(request);
        return true;
    }

    public void GiveBack() => space.GiveBack(_size);
}

/// <summary>The bytes that all calls over a pool may keep together.</summary>
internal sealed class ReplaySpace(long size)
{
    private long _taken;

    public long Taken => Interlocked.Read(ref _taken);

    public bool TryTake(long bytes)
    {
        if (Interlocked.Add(ref _taken, bytes) <= size)
        {
            return true;
        }

        GiveBack(bytes);
        return false;
    }

    public void GiveBack(long bytes) => Interlocked.Add(ref _taken, -bytes);
}

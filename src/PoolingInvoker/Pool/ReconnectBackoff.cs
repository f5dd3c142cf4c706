namespace PoolingInvoker;

/// <summary>
/// When a channel that has never worked may be replaced again: a pause from 0.1 s to 1 s, longer by 1.6 each time, with a jitter of
/// 20 % (the factors of gRPC's connection backoff), shared by the whole pool and over when a server answers. Guarded by the lock of
/// the pool.
/// </summary>
internal sealed class ReconnectBackoff(TimeProvider time, Random random)
{
    private const double Multiplier = 1.6;
    private const double Jitter = 0.2;
    private static readonly TimeSpan Initial = TimeSpan.FromSeconds(0.1);
    private static readonly TimeSpan Longest = TimeSpan.FromSeconds(1);

    private TimeSpan _next = Initial;
    private TimeSpan _pause;
    private long _since;

    public bool MayDial => _pause == TimeSpan.Zero || time.GetElapsedTime(_since) >= _pause;

    public void Dialed()
    {
        _since = time.GetTimestamp();
        _pause = _next * (1 + (Jitter * ((2 * random.NextDouble()) - 1)));
        _next = _next * Multiplier < Longest ? _next * Multiplier : Longest;
    }

    public void Reset()
    {
        _next = Initial;
        _pause = TimeSpan.Zero;
    }
}

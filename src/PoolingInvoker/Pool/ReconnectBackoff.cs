namespace PoolingInvoker;

/// <summary>
/// When what could not be connected, or has never worked, may be dialled again: after a pause that is longer by 1.6 each time, with a jitter
/// of 20 % (the factors of gRPC's connection backoff), and over when a server answers. Guarded by the lock of the pool.
/// </summary>
internal sealed class ReconnectBackoff(TimeProvider time, Random random, TimeSpan first, TimeSpan longest)
{
    private const double Multiplier = 1.6;
    private const double Jitter = 0.2;

    private TimeSpan _length; // of the pause, without the jitter

    public bool MayDial => Pause == TimeSpan.Zero || time.GetElapsedTime(DialedAt) >= Pause;
    public long DialedAt { get; private set; }
    public TimeSpan Pause { get; private set; }
    public bool HasWorked { get; private set; } // whether a server has ever answered

    public void Dialed()
    {
        DialedAt = time.GetTimestamp();
        _length = _length == TimeSpan.Zero ? first : _length * Multiplier < longest ? _length * Multiplier : longest;
        Pause = _length * (1 + (Jitter * ((2 * random.NextDouble()) - 1)));
    }

    public void Reset()
    {
        _length = Pause = TimeSpan.Zero;
        HasWorked = true;
    }
}

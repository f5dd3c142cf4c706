namespace PoolingInvoker;

/// <summary>
/// When what could not be connected, or has never worked, may be dialled again: after a pause that is longer by 1.6 each time, with a jitter
/// of 20 % (the factors of gRPC's connection backoff), and over when a server answers. Guarded by the lock of the pool.
/// </summary>
internal sealed class ReconnectBackoff
{
    private const double Multiplier = 1.6;
    private const double Jitter = 0.2;

    private readonly TimeProvider _time;
    private readonly Random _random;
    private readonly TimeSpan _first;
    private readonly TimeSpan _longest;
    private TimeSpan _next;
    private TimeSpan _pause;
    private long _since;

    public ReconnectBackoff(TimeProvider time, Random random, TimeSpan first, TimeSpan longest) =>
        (_time, _random, _first, _next, _longest) = (time, random, first, first, longest);

    public bool MayDial => _pause == TimeSpan.Zero || _time.GetElapsedTime(_since) >= _pause;

    public long DialedAt => _since;

    public TimeSpan Pause => _pause;

    /// <summary>Whether a server has ever answered.</summary>
    public bool HasWorked { get; private set; }

    public void Dialed()
    {
        _since = _time.GetTimestamp();
        _pause = _next * (1 + (Jitter * ((2 * _random.NextDouble()) - 1)));
        _next = _next * Multiplier < _longest ? _next * Multiplier : _longest;
    }

    public void Reset()
    {
        _next = _first;
        _pause = TimeSpan.Zero;
        HasWorked = true;
    }
}

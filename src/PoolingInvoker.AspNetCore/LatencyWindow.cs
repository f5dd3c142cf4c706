namespace PoolingInvoker;

/// <summary>
/// How long calls took since the last look, in buckets that are 5 % wide: from 10 µs to some 2 minutes. Any thread may add; one that adds while
/// another one looks is counted in this look or the next.
/// </summary>
internal sealed class LatencyWindow
{
    private const double Shortest = 0.01; // milliseconds
    private static readonly double Width = Math.Log(1.05);

    private readonly int[] _buckets = new int[335];

    public void Add(double milliseconds)
    {
        var bucket = milliseconds <= Shortest ? 0 : (int)Math.Min(_buckets.Length - 1, Math.Ceiling(Math.Log(milliseconds / Shortest) / Width));
        Interlocked.Increment(ref _buckets[bucket]);
    }

    /// <summary>The median and the 99th percentile, in milliseconds; null if there were no calls. What is added from now on is of the next look.</summary>
    public (double? P50, double? P99) Take()
    {
        var taken = new int[_buckets.Length];
        var total = 0L;
        for (var i = 0; i < taken.Length; i++)
        {
            total += taken[i] = Interlocked.Exchange(ref _buckets[i], 0);
        }

        return total == 0 ? (null, null) : (Percentile(taken, total, 0.5), Percentile(taken, total, 0.99));
    }

    private static double Percentile(int[] buckets, long total, double part)
    {
        var left = (long)Math.Ceiling(part * total);
        var bucket = 0;
        while ((left -= buckets[bucket]) > 0)
        {
            bucket++;
        }

        return Shortest * Math.Exp(Width * (bucket - 0.5)); // the middle of it
    }
}

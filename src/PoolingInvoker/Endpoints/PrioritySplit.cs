namespace PoolingInvoker;

/// <summary>Which part of the calls each priority gets. Pure functions.</summary>
internal static class PrioritySplit
{
    /// <summary>
    /// The part of the calls of each priority, in their order, by the part of its endpoints that is well: the first gets what they are times
    /// the factor, the next ones what is left, as far as they can take it. Where all together are worth less than the calls, each gets more
    /// in proportion; where none is well, the first gets all. As Envoy does, but for its panic threshold.
    /// </summary>
    public static double[] Of(IReadOnlyList<double> well, double factor)
    {
        var worth = well.Select(part => Math.Min(1, part * factor)).ToArray();
        var all = Math.Min(1, worth.Sum());
        var (parts, left) = (new double[worth.Length], 1.0);
        for (var i = 0; i < worth.Length; i++)
        {
            parts[i] = all == 0 ? (i == 0 ? 1 : 0) : Math.Min(left, worth[i] / all);
            left -= parts[i];
        }

        return parts;
    }

    /// <summary>How well an endpoint is that has been reached again for so long: first not at all, then more and more.</summary>
    public static double Recovered(TimeSpan since, TimeSpan delay) =>
        since < delay ? 0 : delay == TimeSpan.Zero ? 1 : Math.Min(1, (since - delay) / delay);
}

namespace PoolingInvoker.Tests.Pool;

/// <summary>How evenly calls are spread, while their number changes.</summary>
public sealed class SkewTests(ITestOutputHelper output) : IDisposable
{
    private const int Channels = 10;
    private const int Callers = 300;

    private static readonly TimeSpan StepOfTheRamp = TimeSpan.FromSeconds(2);

    private readonly PoolInTime _in = new();

    public void Dispose() => _in.Dispose();

    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(3)]
    [InlineData(4)]
    [InlineData(5)]
    public void UnderRamps_NoChannelIsHot(int seed)
    {
        // Each caller makes one call of 5 to 15 ms after the other. In each step the calls in flight on each channel are averaged over the
        // step, and its picks are counted: the hottest channel is compared with the median.
        var random = new Random(seed);
        var pool = _in.New(static options => (options.MinPoolSize, options.MaxPoolSize) = (Channels, Channels), new Random(seed));
        PoolInTime.Take(pool).Dispose();
        PoolInTime.Answer(pool);
        var ending = new PriorityQueue<ChannelLease, int>();
        var now = 0;
        var running = 0;
        List<(double InFlight, double Picks, double Moment)> hot = [];
        foreach (var share in Enumerable.Repeat((double[])[1 / 8.0, 1 / 3.0, 2 / 3.0, 1], 3).SelectMany(static ramp => ramp))
        {
            var callers = (int)Math.Round(Callers * share);
            var picks = new Dictionary<PooledChannel, double>();
            var inFlight = new Dictionary<int, double>();
            var moments = new List<double>();
            for (var until = now + (int)StepOfTheRamp.TotalMilliseconds; now < until; now++)
            {
                for (; running > 0 && ending.TryPeek(out var over, out var at) && at <= now; running--)
                {
                    ending.Dequeue();
                    over.Return(LeaseOutcome.Answered);
                }

                for (; running < callers; running++)
                {
                    var lease = PoolInTime.Take(pool);
                    picks[lease.Pooled] = picks.GetValueOrDefault(lease.Pooled) + 1;
                    ending.Enqueue(lease, now + random.Next(5, 16));
                }

                _in.Time.Advance(TimeSpan.FromMilliseconds(1));
                var seen = pool.GetChannels();
                moments.Add(HotOf(seen.Select(static channel => (double)channel.CallsInFlight)));
                foreach (var channel in seen)
                {
                    inFlight[channel.Id] = inFlight.GetValueOrDefault(channel.Id) + channel.CallsInFlight;
                }
            }

            Assert.Equal((Channels, Channels), (picks.Count, inFlight.Count));
            hot.Add((HotOf(inFlight.Values), HotOf(picks.Values), moments.Average()));
        }

        output.WriteLine(
            $"Hottest by median, worst step of {hot.Count}: {hot.Max(static step => step.InFlight):0.000} of calls in flight, {hot.Max(static step => step.Picks):0.000} of picks; "
            + $"from one moment to the next: {string.Join(", ", hot.Take(4).Select(static step => $"{step.Moment:0.00}"))} in the steps of a ramp");
        Assert.Equal(Channels, pool.GetStatistics().ChannelsCreated);
        Assert.All(hot, static step => Assert.InRange(step.InFlight, 1, 1.1));
        Assert.All(hot, static step => Assert.InRange(step.Picks, 1, 1.1));
    }

    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(3)]
    public void AmongIdleChannels_TheWarmOneIsNotPreferred(int seed)
    {
        var pool = _in.New(static options => (options.MinPoolSize, options.MaxPoolSize) = (2, 2), new Random(seed));
        PoolInTime.Take(pool).Dispose();
        PoolInTime.Answer(pool);
        var warm = PoolInTime.Take(pool);
        for (var i = 0; i < 100; i++)
        {
            PoolInTime.Take(pool).Return(LeaseOutcome.Answered); // on the other one
        }

        warm.Return(LeaseOutcome.Answered);
        var picks = Enumerable.Range(0, 200).Select(_ =>
        {
            var lease = PoolInTime.Take(pool);
            var picked = lease.Pooled;
            lease.Return(LeaseOutcome.Answered);
            return picked;
        }).GroupBy(static channel => channel).Select(static picked => picked.Count()).ToList();
        output.WriteLine($"Of 200 calls, one after the other: {string.Join(" and ", picks)}");
        Assert.Equal(2, picks.Count);
        Assert.All(picks, static count => Assert.InRange(count, 60, 140));
    }

    private static double HotOf(IEnumerable<double> values)
    {
        var ordered = values.Order().ToList();
        return ordered[^1] / Math.Max(0.5, (ordered[(ordered.Count - 1) / 2] + ordered[ordered.Count / 2]) / 2);
    }
}

namespace PoolingInvoker.FunctionalTests;

/// <summary>How many calls of a load have succeeded, by tenths of a second.</summary>
internal sealed class CallRate
{
    public static readonly TimeSpan Step = TimeSpan.FromMilliseconds(100);
    private readonly int[] _steps = new int[(int)(TimeSpan.FromMinutes(3) / Step)];
    private readonly long _since = TimeProvider.System.GetTimestamp();

    public TimeSpan Elapsed => TimeProvider.System.GetElapsedTime(_since);

    public void Count() => Interlocked.Increment(ref _steps[(int)(Elapsed / Step)]);

    /// <summary>Lets the load run on to this moment.</summary>
    public Task RunUntilAsync(TimeSpan moment) =>
        moment - Elapsed is var rest && rest > TimeSpan.Zero ? Task.Delay(rest) : Task.CompletedTask;

    /// <summary>The mean over the steps that lie between two moments.</summary>
    public double PerSecond(TimeSpan from, TimeSpan to) => Steps(from, to).Average() / Step.TotalSeconds;

    /// <summary>When a rate is reached after a moment, as a mean over half a second; null if it is not before the other one.</summary>
    public TimeSpan? TimeTo(double perSecond, TimeSpan from, TimeSpan to)
    {
        for (var start = from; start + (5 * Step) <= to; start += Step)
        {
            if (PerSecond(start, start + (6 * Step)) >= perSecond)
            {
                return start - from;
            }
        }

        return null;
    }

    /// <summary>The counts of the steps between two moments, for a person to read.</summary>
    public string Show(TimeSpan from, TimeSpan to) => string.Join(' ', Steps(from, to));

    private ArraySegment<int> Steps(TimeSpan from, TimeSpan to)
    {
        var first = (int)Math.Ceiling(from / Step);
        return new ArraySegment<int>(_steps, first, Math.Max(1, (int)(to / Step) - first));
    }
}

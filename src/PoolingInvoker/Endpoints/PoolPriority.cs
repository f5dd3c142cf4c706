namespace PoolingInvoker;

/// <summary>Has a share of the calls, beside others of its kind: the next one goes to the one that is furthest behind.</summary>
internal abstract class CallShare
{
    public double Served { get; set; } // how many calls it has had, by its share
    public abstract double Share { get; } // beside the others; zero gets none
    public abstract int Good { get; } // how many of its channels are good
    public abstract bool Has(PooledChannel channel);

    /// <summary>Of those with a good channel the one that is furthest behind. One that had none for a while does not catch up.</summary>
    public static T? Next<T>(List<T> shares, PooledChannel? avoid, ref double served)
        where T : CallShare
    {
        T? next = null;
        foreach (var share in shares)
        {
            if (share.Share > 0 && share.Good > (avoid is { IsGood: true } && share.Has(avoid) ? 1 : 0))
            {
                share.Served = Math.Max(share.Served, served);
                next = next is null || share.Served < next.Served ? share : next;
            }
        }

        served = next?.Served ?? served;
        return next;
    }
}

/// <summary>The endpoints of one priority. Guarded by the lock of the pool.</summary>
internal sealed class PoolPriority(int number) : CallShare
{
    private double _share = 1;
    private int _good;
    private double _served; // how far the endpoint was that was behind the others at the last call

    public int Number => number;
    public List<PoolEndpoint> Listed { get; set; } = []; // in the order of this pool
    public List<PoolEndpoint> Known { get; } = []; // with those that are gone but have channels
    public override double Share => _share; // the part of the calls that it gets
    public override int Good => _good;
    public int Channels { get; set; } // to those that are known
    public int Failing => Listed.Count(static endpoint => endpoint.IsFailing);
    public int MostAtATime => Failing == 0 ? int.MaxValue : Listed.Exists(static endpoint => endpoint.MayDial) ? 1 : 0; // to stand by
    public int StandBys { get; set; } // how many channels it is to have while it gets no calls
    public int StandBysMissing => IsInUse ? 0 : StandBys - Channels; // or has too many if that is negative
    public bool IsInUse { get; private set; } = true; // it gets calls, or one after it does: its endpoints are to be reached
    public double Portion { get; private set; } = 1; // what a weight of one stands for, beside other priorities

    public bool HasChanged { get; set; } // since the last look: endpoints may be well now, or not any more

    public override bool Has(PooledChannel channel) => channel.Server?.Priority == this;

    public PoolEndpoint? Next(PooledChannel? avoid) => Next(Known, avoid, ref _served);
    public void Serve() => Served += _share is > 0 and < 1 ? 1 / _share : 0;

    public void CountGood(int more) => _good += more;
    public void CountAgain() => (_good, Channels) = (Known.Sum(static endpoint => endpoint.Good), Known.Sum(static endpoint => endpoint.Channels));

    public void SetAlone() => (_share, IsInUse, Portion) = (1, true, 1);

    public void Set(double share, bool isInUse)
    {
        (_share, IsInUse) = (share, isInUse);
        Portion = share / Math.Max(1, Listed.Sum(static endpoint => endpoint.IsFailing ? 0.0 : endpoint.Weight));
    }

    /// <summary>
    /// How many of the endpoints are well, as a part of those that are used: the first so many, and others with channels.
    /// <paramref name="asFarAsReached"/> says to count one at once that is back.
    /// </summary>
    public double Well(TimeSpan recoveryDelay, bool asFarAsReached, int used)
    {
        var (well, counted) = (0.0, 0);
        for (var i = 0; i < Listed.Count; i++)
        {
            var endpoint = Listed[i];
            if (i >= used && endpoint.Channels == 0 && (!endpoint.IsFailing || endpoint.MayDial))
            {
                continue;
            }

            counted++;
            well += endpoint.IsSilent || endpoint.IsFailing ? 0 : asFarAsReached ? 1 : endpoint.Recovered(recoveryDelay);
        }

        return counted == 0 ? 0 : well / counted;
    }
}

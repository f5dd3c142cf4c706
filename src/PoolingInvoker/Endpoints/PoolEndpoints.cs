namespace PoolingInvoker;

/// <summary>
/// The endpoints of a pool that has several. A channel goes to the one with the fewest channels. Each pool has an order of its own for
/// them, drawn at random, and stable whatever comes and goes (rendezvous hashing): with more endpoints than channels each client uses a
/// part of them, and many clients together all of them evenly. Guarded by the lock of the pool.
/// </summary>
/// <remarks>
/// Endpoints of several priorities are those of the first, and of as many others as it takes: the others have no channels, or a few that
/// stand by.
/// </remarks>
internal sealed class PoolEndpoints(TimeProvider time, Random random)
{
    // How many endpoints a pool uses that needs fewer channels: enough that a thousand clients load three hundred servers evenly.
    public const int SubsetSize = 50;

    private readonly int _seed = random.Next();
    private readonly Dictionary<ChannelEndpoint, PoolEndpoint> _known = []; // those that are gone but have channels, too
    private int _used = 1; // how many endpoints of each priority are used, as far as there are places
    private double _served; // how far the priority was that was behind the others at the last call
    private volatile List<PoolEndpoint> _inOrder = []; // is not changed, so that it can be read without the lock

    public int Count => _inOrder.Count;
    public bool IsWeighted { get; private set; } // whether they have different shares of the calls
    public List<PoolPriority> Priorities { get; private set; } = []; // in their order
    public bool HasPriorities => Priorities.Count > 1;
    public bool IsShared { get; private set; } // whether several get calls
    public bool HasChanged => HasPriorities && Priorities.Exists(static priority => priority.HasChanged);
    public int Minimum { get; private set; } // how many channels calls need at least: one to each endpoint; with priorities, to each that is in use and not lost
    public bool MayDial => _inOrder.Exists(static endpoint => endpoint.MayDial);
    public bool MayDialWell => _inOrder.Exists(static endpoint => endpoint is { IsFailing: false, Priority.IsInUse: true });

    /// <summary>Whether some of those that are to be used cannot be reached, or have too few channels, or channels are left elsewhere.</summary>
    public bool IsUneven(int channels, bool isFull = false) => _known.Count > _inOrder.Count
        || InUse(channels).Any(static endpoint => endpoint.IsFailing)
        || Imbalance(channels, isFull) is not null
        || (HasPriorities && (_inOrder.Exists(static endpoint => endpoint.IsRecovering) || Priorities.Exists(static priority => priority.StandBysMissing != 0)));

    public void Update(IReadOnlyList<ChannelEndpoint> list)
    {
        foreach (var endpoint in list.Where(endpoint => !_known.ContainsKey(endpoint)))
        {
            var backoff = new ReconnectBackoff(time, random, first: TimeSpan.FromSeconds(1), longest: TimeSpan.FromSeconds(30));
            _known.Add(endpoint, new PoolEndpoint(endpoint, new PoolPriority(endpoint.Priority), _seed, backoff, time));
        }

        var listed = list.ToDictionary(static endpoint => endpoint);
        foreach (var (endpoint, known) in _known)
        {
            known.IsGone = !listed.TryGetValue(endpoint, out var now);
            known.Weight = now?.Weight ?? known.Weight;
            if (known is { IsGone: true, Channels: 0 })
            {
                _known.Remove(endpoint);
            }
        }

        _inOrder = [.. _known.Values.Where(static known => !known.IsGone).OrderBy(static known => known.Rank)];
        IsWeighted = list.Any(endpoint => endpoint.Weight != list[0].Weight);
        Prioritize(listed);
        foreach (var known in _known.Values)
        {
            known.HasOthers = _known.Count > 1;
            known.IsWeighted = IsWeighted;
            known.Priority.HasChanged = true;
        }
    }

    /// <summary>Looks at who is well, and says whether priorities get calls now that got none, or the other way round, and whether others are to be reached.</summary>
    public (bool IsOther, bool AreOthersInUse) Split(ChannelPoolOptions options)
    {
        Priorities.ForEach(static priority => priority.HasChanged = false);
        _used = Math.Min(SubsetSize, options.MaxPoolSize);
        var well = Well(asFarAsReached: false);
        var isNoneWell = well.TrueForAll(static part => part == 0);
        var parts = PrioritySplit.Of(isNoneWell ? Well(asFarAsReached: true) : well, options.OverprovisioningFactor);
        var (last, isOther, areOthersInUse) = (isNoneWell ? parts.Length : Array.FindLastIndex(parts, static part => part > 0), false, false);
        for (var i = 0; i < parts.Length; i++)
        {
            isOther |= Priorities[i].Share > 0 != parts[i] > 0;
            areOthersInUse |= Priorities[i].IsInUse != i <= last;
            Priorities[i].Set(parts[i], isInUse: i <= last);
        }

        IsShared = parts.Count(static part => part > 0) > 1;
        Minimum = Priorities.Sum(static priority => !priority.IsInUse ? 0 : Math.Min(priority.Listed.Count - priority.Failing, SubsetSize));
        var places = options.MaxPoolSize - Math.Max(options.MinPoolSize, Priorities.Sum(static priority => priority.IsInUse ? Math.Min(priority.Listed.Count, SubsetSize) : 0));
        foreach (var priority in Priorities)
        {
            priority.StandBys = priority.IsInUse ? 0 : Math.Clamp(places, 0, options.StandbyPoolSize);
            places -= priority.StandBys;
        }

        return (isOther, areOthersInUse);

        List<double> Well(bool asFarAsReached) =>
            Priorities.ConvertAll(priority => priority.Well(options.RecoveryDelay, asFarAsReached, _used));
    }

    /// <summary>Chooses where the next of so many channels goes, and counts it there. Else it is the one that failed first.</summary>
    public PoolEndpoint Take(int channels, PoolEndpoint? inPlaceOf)
    {
        var chosen = Best(InUse(channels, inPlaceOf)) ?? Best(_inOrder) ?? _inOrder.MinBy(endpoint => (!endpoint.MayDial, Others(endpoint), endpoint.FailedAt))!;
        chosen.Channels++;
        return chosen;

        int Others(PoolEndpoint endpoint) => endpoint.Channels - (endpoint == inPlaceOf ? 1 : 0);

        // Of several that where the channel is whose place it takes, unless it could not be reached there; or the first in order.
        PoolEndpoint? Best(IEnumerable<PoolEndpoint> among) => among
            .Where(endpoint => endpoint.MayDial && !(endpoint == inPlaceOf && endpoint.IsFailing))
            .MinBy(endpoint => (Need(endpoint, Others(endpoint)), endpoint != inPlaceOf));
    }

    public void Leave(PoolEndpoint endpoint)
    {
        endpoint.Channels--;
        if (endpoint is { IsGone: true, Channels: 0 })
        {
            _known.Remove(endpoint.Endpoint);
            endpoint.Priority.Known.Remove(endpoint);
        }
    }

    /// <summary>From where to where a channel should move, so that they are even. In a pool that is full an earlier priority gets one of a later one.</summary>
    public (PoolEndpoint From, PoolEndpoint To)? Imbalance(int channels, bool isFull = false)
    {
        var to = InUse(channels).Where(static endpoint => endpoint.MayDial).MinBy(static endpoint => Need(endpoint, endpoint.Channels));
        var from = _inOrder
            .Where(endpoint => endpoint is { Portion: > 0, Channels: > 1 } || (isFull && to is { Channels: 0 } && MayGiveOne(endpoint, to)))
            .MaxBy(static endpoint => endpoint.Channels / endpoint.Portion);
        return from is not null && to is not null && from != to
            && (to.Channels == 0 || from.Channels / from.Portion > (to.Channels + 1) / to.Portion) ? (from, to) : null;

        static bool MayGiveOne(PoolEndpoint from, PoolEndpoint to) => from is { Channels: > 0, Priority: var priority }
            && to.Priority.Number < priority.Number && (priority.IsInUse || priority.StandBysMissing < 0);
    }

    /// <summary>How many channels go to priorities that get no calls.</summary>
    public int StandingBy()
    {
        var channels = 0;
        foreach (var priority in Priorities)
        {
            channels += priority.IsInUse ? 0 : priority.Channels;
        }

        return channels;
    }

    /// <summary>How many channels are to be made that nobody waits for: to endpoints without one, also those that could not be reached, and to stand by.</summary>
    public int Missing(int channels) => !HasPriorities ? 0
        : InUse(channels).Count(static endpoint => endpoint is { Channels: 0, MayDial: true, Priority.IsInUse: true })
            + Priorities.Sum(static priority => Math.Clamp(priority.StandBysMissing, 0, priority.MostAtATime));

    /// <summary>What the weights of those with a good channel come to.</summary>
    public int GoodWeight(PoolPriority? among = null)
    {
        var sum = 0L;
        foreach (var endpoint in _known.Values)
        {
            sum += endpoint.Good > 0 && (among is null ? endpoint.Priority.Share > 0 : endpoint.Priority == among) ? endpoint.Weight : 0;
        }

        return (int)Math.Clamp(sum, 1, int.MaxValue);
    }

    /// <summary>Where the next call goes, if endpoints or priorities have different shares.</summary>
    public CallShare? Next(PooledChannel? avoid)
    {
        var priority = IsShared ? CallShare.Next(Priorities, avoid, ref _served)
            : IsWeighted ? Priorities.Find(static priority => priority.Share > 0)
            : null;
        return IsWeighted ? priority?.Next(avoid) : priority;
    }

    /// <summary>Which priority a key belongs to, by a number that is drawn from it: as calls move to another one, so do keys.</summary>
    public PoolPriority PriorityOf(ulong number)
    {
        var left = number / Math.Pow(2, 64);
        foreach (var priority in Priorities)
        {
            left -= priority.Share;
            if (left < 0)
            {
                return priority;
            }
        }

        return Priorities.FindLast(static priority => priority.Share > 0)!;
    }

    // The least has the next channel: those without one, by priority, then those that stand by, and then each by its share.
    private static (bool, int, double) Need(PoolEndpoint endpoint, int channels) => endpoint.Priority is { IsInUse: true } priority
        ? (channels > 0, channels > 0 ? 0 : priority.Number, (channels + 1) / endpoint.Portion)
        : (false, endpoint.Priority.Number, (channels + 1.0) / endpoint.Weight);

    private IEnumerable<PoolEndpoint> InUse(int channels, PoolEndpoint? inPlaceOf = null)
    {
        var most = Math.Max(HasPriorities ? _used : 1, channels);
        return !HasPriorities ? _inOrder.Take(most) : Priorities
            .Where(priority => priority.IsInUse || (inPlaceOf is null ? priority.StandBysMissing > 0 : inPlaceOf.Priority == priority && priority.StandBysMissing >= 0))
            .SelectMany(priority => priority.Listed.Take(most));
    }

    // An endpoint that is gone stays with those that it was with.
    private void Prioritize(Dictionary<ChannelEndpoint, ChannelEndpoint> listed)
    {
        var before = Priorities.ToDictionary(static priority => priority.Number);
        var now = new SortedDictionary<int, PoolPriority>();
        foreach (var known in _known.Values)
        {
            var number = listed.TryGetValue(known.Endpoint, out var endpoint) ? endpoint.Priority : known.Priority.Number;
            if (!now.TryGetValue(number, out var priority))
            {
                priority = before.GetValueOrDefault(number) ?? new PoolPriority(number);
                priority.Known.Clear();
                now.Add(number, priority);
            }

            known.Priority = priority;
            priority.Known.Add(known);
        }

        foreach (var priority in now.Values)
        {
            priority.Listed = _inOrder.FindAll(endpoint => endpoint.Priority == priority);
            priority.CountAgain();
        }

        Priorities = [.. now.Values.Where(static priority => priority.Listed.Count > 0 || priority.Channels > 0)];
        if (!HasPriorities)
        {
            Priorities.ForEach(static priority => priority.SetAlone());
            (IsShared, Minimum) = (false, Math.Min(Count, SubsetSize));
        }
    }
}

// What a pool is, without threads: channels with leases, a line, callers that make channels one after the other. Written from the laws
// and the design, as plainly as it goes, to be compared with the real pool after each operation.
//
// Chance is the pool's: where it may take one of several channels the model is told which one it took, and says whether it might have.
using Grpc.Net.Client;

namespace PoolingInvoker.Interleavings;

internal sealed class PoolModel(ChannelPoolOptions options)
{
    private static readonly TimeSpan MaintenancePeriod = TimeSpan.FromSeconds(30);

    private readonly List<Channel> _active = [];
    private readonly List<Channel> _draining = [];
    private readonly List<GrpcChannel> _closed = [];
    private readonly List<Place> _line = [];
    private readonly List<Errand> _errands = [];
    private TimeSpan _now;
    private TimeSpan? _dialed; // when a channel that never worked was replaced, or one could not be; null if a server answered since
    private bool _connectsSlowly; // the last channel that was made took its time
    private bool _lastFailed; // none is made for those in line, as long as there are some
    private int _inFlight;
    private int _taken;
    private int _created;
    private int _replaced;

    /// <summary>Gets or sets a value indicating whether a creation stays begun until it is ended, and does not end at once.</summary>
    public bool IsSlow { get; set; }

    /// <summary>Gets or sets a value indicating whether a creation that ends at once fails.</summary>
    public bool IsBroken { get; set; }

    public bool IsDisposed { get; private set; }

    public bool IsClosed => IsDisposed && _errands.Count == 0 && _draining.Count == 0;

    /// <summary>Gets who is in the midst of making a channel.</summary>
    public IEnumerable<Call> Makers => _errands.Select(static errand => errand.By);

    /// <summary>Gets who is in line.</summary>
    public IEnumerable<Call> Line => _line.Select(static place => place.Call);

    /// <summary>Gets who is in line and does nothing but wait.</summary>
    public IEnumerable<Call> Waiting => Line.Except(Makers);

    public IReadOnlyList<GrpcChannel> Closed => _closed;

    public IEnumerable<Channel> Open => _active.Concat(_draining);

    /// <summary>Gets whether it is chance which channel an acquire takes, and makes a difference that does not show at once.</summary>
    public bool IsUncertain => Candidates is { Count: > 1 } candidates && candidates.Exists(IsDue);

    public ChannelPoolStatistics Statistics => new()
    {
        MinPoolSize = options.MinPoolSize,
        MaxPoolSize = options.MaxPoolSize,
        Channels = _active.Count + Creating,
        IdleChannels = _active.Count(static channel => channel.Leases == 0),
        DrainingChannels = _draining.Count,
        CallsInFlight = _inFlight,
        CallsWaiting = _line.Count,
        LeasesTaken = _taken,
        ChannelsCreated = _created,
        ChannelsReplaced = _replaced,
    };

    private int Capacity => options.MaxConcurrentCallsPerChannel!.Value;

    private int Creating => _errands.Sum(static errand => errand.Left.Count(static creation => creation.Replaced is null));

    private int Replacing => _errands.Sum(static errand => errand.Left.Count(static creation => creation.Replaced is not null));

    private int Places => IsDisposed ? 0 : options.MaxPoolSize - _active.Count - Creating;

    // Those that may be leased: the good ones, and if there are none those that failed of late, or where it is not known yet.
    private List<Channel> Candidates
    {
        get
        {
            var withRoom = _active.FindAll(channel => channel.TakesLeases && channel.Leases < Capacity);
            return withRoom.Exists(static channel => channel.IsGood) ? withRoom.FindAll(static channel => channel.IsGood) : withRoom;
        }
    }

    /// <summary>Whether a caller is in the midst of making a channel.</summary>
    public bool IsMaking(Call call) => Makers.Contains(call);

    /// <summary>A caller comes, who waits for room if there is none.</summary>
    public void Acquire(Call call) =>
        Take(call, mayWait: true, () => Take(call, mayWait: false, () => call.Error = typeof(ChannelPoolExhaustedException)));

    /// <summary>A caller comes, who does not wait.</summary>
    public void TryAcquire(Call call) => Take(call, mayWait: false, () => call.IsRefused = true);

    /// <summary>A caller in line does not want any more. If he is making a channel he sees that when he is done with it.</summary>
    public void Cancel(Call call)
    {
        if (!IsMaking(call) && Leaves(call))
        {
            call.Error = typeof(OperationCanceledException);
        }
    }

    public void Return(Call call, LeaseOutcome outcome, bool wanted, Call by)
    {
        var channel = call.Channel!;
        call.Channel = null;
        channel.Leases--;
        _inFlight--;
        channel.IdleSince = _now;
        if (outcome == LeaseOutcome.Answered)
        {
            _dialed = channel.Proven ? _dialed : null;
            channel.Failed = false;
            channel.Proven = channel.HasAnswered = true;
        }

        channel.Failed |= !wanted || outcome == LeaseOutcome.ChannelFailed;
        var errand = new Errand(by);
        if (IsDue(channel))
        {
            errand.Left.Add(BeginReplacing(channel));
        }
        else if (channel is { State: PooledChannelState.Draining, Leases: 0 })
        {
            Close(channel);
        }

        _errands.Add(errand);
        Serve();
        GoOn(errand);
    }

    /// <summary>The channel that a caller is making is made, or cannot be.</summary>
    public void End(Call maker, bool works)
    {
        var errand = _errands.Find(errand => errand.By == maker)!;
        EndOne(errand, works);
        GoOn(errand);
    }

    /// <summary>
    /// Time goes by, up to the next run of the maintenance or less. <paramref name="idle"/> and <paramref name="old"/> are the channels
    /// that the pool has closed, and that it has replaced or tried to.
    /// </summary>
    public void Advance(TimeSpan by, Call call, IReadOnlyCollection<GrpcChannel> idle, IReadOnlyCollection<GrpcChannel> old)
    {
        _now += by;
        foreach (var (late, _) in _line.FindAll(place => _now - place.Since >= options.AcquireTimeout))
        {
            Leaves(late);
            late.Error = typeof(ChannelPoolExhaustedException);
        }

        if (IsDisposed)
        {
            return;
        }

        LookAtTheLine(call);
        if (_now.Ticks % MaintenancePeriod.Ticks == 0)
        {
            CloseIdle(idle);
            RefreshOld(call, old);
        }
    }

    public void BeginDispose()
    {
        IsDisposed = true;
        _line.ForEach(static place => place.Call.Error = typeof(ObjectDisposedException));
        _line.Clear();
        _active.ToList().ForEach(Drain);
    }

    /// <summary>Does not wait for leases any longer.</summary>
    public void EndDispose() => _draining.ToList().ForEach(Close);

    // What fails is replaced on the way. Whoever gets nothing tries once more if something was.
    private void Take(Call call, bool mayWait, Action refuse)
    {
        if (IsDisposed)
        {
            call.Error = typeof(ObjectDisposedException);
            return;
        }

        var errand = new Errand(call);
        _errands.Add(errand);
        var channel = Choose(call);
        while (channel is not null && IsDue(channel))
        {
            errand.Left.Add(BeginReplacing(channel));
            channel = Choose(call);
        }

        var replaces = errand.Left.Count;
        if (channel is not null)
        {
            Lease(channel, call);
        }
        else if (!mayWait && Places > 0)
        {
            errand.Left.Add(new Creation(Replaced: null, For: call));
        }
        else if (mayWait && _line.Count < options.MaxCallsWaiting)
        {
            _line.Add(new Place(call, Since: null));
            _lastFailed = false;
            errand.Then = () => Wait(call);
        }
        else
        {
            errand.Then = replaces > 0 && !mayWait ? () => Take(call, mayWait, refuse) : refuse;
        }

        errand.Left.InsertRange(replaces, Reserve(Math.Max(MissingToTheMinimum, MissingToTheLine)));
        GoOn(errand);
    }

    private void Wait(Call call)
    {
        var at = _line.FindIndex(place => place.Call == call);
        if (at >= 0)
        {
            _line[at] = new Place(call, _now);
            if (call.Cancellation.IsCancellationRequested)
            {
                Cancel(call);
            }
        }
    }

    private int MissingToTheMinimum => options.MinPoolSize - _active.Count - Creating;

    private int MissingToTheLine =>
        _active.Count == 0 ? MissingInAll
        : _connectsSlowly ? 0 // that is seen when the line is looked at
        : Math.Min(MissingInAll, Math.Max(0, _active.Count - Creating));

    // How many would carry all those in line, beyond those on their way.
    private int MissingInAll => _lastFailed && _active.Count > 0 ? 0
        : (Math.Max(0, _line.Count - ((Creating + Replacing) * Capacity)) + Capacity - 1) / Capacity;

    private List<Creation> Reserve(int count) => [.. Enumerable.Repeat(new Creation(Replaced: null, For: null), Math.Clamp(count, 0, Places))];

    private void GoOn(Errand errand)
    {
        while (errand.Left.Count > 0)
        {
            errand.Since = _now;
            if (IsSlow)
            {
                return; // until it is ended
            }

            EndOne(errand, works: !IsBroken);
        }

        _errands.Remove(errand);
        errand.Then();
    }

    private void EndOne(Errand errand, bool works)
    {
        var creation = errand.Left[0];
        errand.Left.RemoveAt(0);
        var made = works ? new Channel(errand.By.TakeMade(), _now) : null;
        if (IsDisposed)
        {
            if (made is not null)
            {
                Close(made);
            }

            if (creation.For is { } call)
            {
                call.Error = typeof(ObjectDisposedException);
            }

            return;
        }

        if (made is not null)
        {
            _active.Add(made);
            _created++;
        }

        if (creation.Replaced is { } old)
        {
            EndReplacing(old, works);
        }
        else
        {
            _lastFailed = !works;
            _connectsSlowly = works && creation.For is null ? _now > errand.Since : _connectsSlowly;
            if (!works && _active.Count == 0 && _line.Count > 0)
            {
                var first = _line[0].Call;
                Leaves(first);
                first.Error = typeof(InvalidOperationException);
            }
        }

        if (creation.For is { } caller)
        {
            if ((made ?? Choose(caller)) is { } channel)
            {
                Lease(channel, caller);
            }
            else
            {
                caller.Error = typeof(InvalidOperationException);
            }
        }

        Serve();
        errand.Left.InsertRange(0, Reserve(MissingToTheLine));
    }

    private Creation BeginReplacing(Channel channel)
    {
        _dialed = channel.Proven ? _dialed : _now;
        channel.State = PooledChannelState.Replacing;
        return new Creation(channel, For: null);
    }

    private void EndReplacing(Channel old, bool works)
    {
        if (works)
        {
            _replaced++;
            Drain(old);
        }
        else
        {
            _dialed = _now;
            old.Proven &= old.State == PooledChannelState.Refreshing;
            old.State = PooledChannelState.Active;
        }
    }

    // Whatever is missing is made by now: nothing has come back since the line was looked at last.
    private void LookAtTheLine(Call call)
    {
        var errand = new Errand(call);
        _errands.Add(errand);
        errand.Left.AddRange(Reserve(_connectsSlowly ? MissingInAll : MissingToTheLine));
        GoOn(errand);
    }

    private void CloseIdle(IReadOnlyCollection<GrpcChannel> closed)
    {
        var idle = _active.FindAll(channel =>
            channel is { State: PooledChannelState.Active, Leases: 0 } && _now - channel.IdleSince >= options.PooledChannelIdleTimeout);
        var count = Math.Clamp(-MissingToTheMinimum, 0, idle.Count);
        var closing = idle.FindAll(channel => closed.Contains(channel.Actual));
        if (closing.Count != count)
        {
            throw new LawBrokenException($"Of {idle.Count} idle channels {closing.Count} were closed, not {count}.");
        }

        closing.ForEach(Drain);
    }

    // One at a time. Up to a tenth of its lifetime may be taken off.
    private void RefreshOld(Call call, IReadOnlyCollection<GrpcChannel> refreshed)
    {
        var old = Replacing > 0 ? [] : _active.FindAll(channel =>
            channel.State == PooledChannelState.Active && _now - channel.MadeAt >= options.PooledChannelLifetime * 0.9);
        var chosen = old.FindAll(channel => refreshed.Contains(channel.Actual));
        if (chosen.Count != refreshed.Count || chosen.Count > 1)
        {
            throw new LawBrokenException($"Of {old.Count} old channels {refreshed.Count} were refreshed, or others.");
        }

        if (chosen is [var channel])
        {
            channel.State = PooledChannelState.Refreshing;
            var errand = new Errand(call);
            errand.Left.Add(new Creation(channel, For: null));
            _errands.Add(errand);
            GoOn(errand);
        }
        else if (old.Exists(channel => _now - channel.MadeAt >= options.PooledChannelLifetime))
        {
            throw new LawBrokenException("An old channel was not refreshed.");
        }
    }

    // Chance decides among several, and the caller knows.
    private Channel? Choose(Call call) =>
        IsUncertain ? throw new LostTrackException()
        : Candidates is var candidates && candidates.Count <= 1 ? candidates.FirstOrDefault()
        : candidates.Find(candidate => candidate.Actual == call.Got)
        ?? throw new LawBrokenException($"Caller {call.Number} has a lease on a channel that is not to be leased, or not before others.");

    private bool IsDue(Channel channel) =>
        channel is { State: PooledChannelState.Active, Failed: true } && (channel.Proven || _dialed != _now);

    // There was no room, so there is one channel that may have it.
    private void Serve()
    {
        while (_line.Count > 0 && Candidates is [var channel, ..])
        {
            var next = _line[0].Call;
            Leaves(next);
            Lease(channel, next);
        }
    }

    private bool Leaves(Call call) => _line.RemoveAll(place => place.Call == call) > 0;

    private void Lease(Channel channel, Call call)
    {
        channel.Leases++;
        _inFlight++;
        _taken++;
        call.Channel = channel;
    }

    private void Drain(Channel channel)
    {
        _active.Remove(channel);
        channel.State = PooledChannelState.Draining;
        _draining.Add(channel);
        if (channel.Leases == 0)
        {
            Close(channel);
        }
    }

    private void Close(Channel channel)
    {
        _draining.Remove(channel);
        channel.State = PooledChannelState.Closed;
        _closed.Add(channel.Actual);
    }

    // A place in line. Time counts from when the caller has nothing else to do.
    private sealed record Place(Call Call, TimeSpan? Since);

    // A channel that is made: in place of which one, and for whom alone, if it is for one who does not wait.
    private sealed record Creation(Channel? Replaced, Call? For);

    // What a caller makes before he goes on, one after the other.
    private sealed class Errand(Call by)
    {
        public Call By => by;

        public List<Creation> Left { get; } = [];

        public TimeSpan Since { get; set; }

        public Action Then { get; set; } = static () => { };
    }

    public sealed class Channel(GrpcChannel actual, TimeSpan now)
    {
        public GrpcChannel Actual => actual;

        public TimeSpan MadeAt { get; } = now;

        public TimeSpan IdleSince { get; set; } = now;

        public int Leases { get; set; }

        public bool Proven { get; set; }

        public bool HasAnswered { get; set; }

        public bool Failed { get; set; }

        public PooledChannelState State { get; set; } = PooledChannelState.Active;

        public bool TakesLeases => State is PooledChannelState.Active or PooledChannelState.Refreshing;

        public bool IsGood => !Failed && (HasAnswered || Leases == 0);
    }
}

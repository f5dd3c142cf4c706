// What a pool is, without threads: channels with leases, a line, creations that are begun and ended. Written from the laws and the
// design, as plainly as it goes, to be compared with the real pool after each operation.
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
    private readonly List<(Call Call, TimeSpan Since)> _line = [];
    private readonly List<Creation> _creations = [];
    private readonly Queue<Creation> _endsAtOnce = new();
    private TimeSpan _now;
    private bool _lastFailed; // those in line make no channel, as long as there are some
    private bool _paused; // the last dial was in this moment: a channel that never worked is not replaced
    private int _inFlight;
    private int _created;
    private int _replaced;

    /// <summary>Gets or sets a value indicating whether a creation stays begun until it is ended, and does not end at once.</summary>
    public bool IsSlow { get; set; }

    /// <summary>Gets or sets a value indicating whether a creation that ends at once fails.</summary>
    public bool IsBroken { get; set; }

    public bool IsDisposed { get; private set; }

    public bool IsClosed => IsDisposed && _creations.Count == 0 && _draining.Count == 0;

    public IReadOnlyList<Creation> Creations => _creations;

    public IEnumerable<Call> Line => _line.Select(static place => place.Call);

    public IReadOnlyList<GrpcChannel> Closed => _closed;

    /// <summary>Gets whether an acquire does not wait.</summary>
    public bool HasRoomForOne => IsDisposed
        || (WithRoom.Count > 0 && !IsBelowMinimum)
        || (!IsSlow && !IsBroken && _line.Count == 0 && MayNewcomerCreate(mayWait: true));

    /// <summary>Gets whether it is chance which channel an acquire takes, and makes a difference that does not show at once.</summary>
    public bool IsUncertain => WithRoom.Count > 1 && WithRoom.Exists(IsDue);

    private bool MayNewcomerCreate(bool mayWait) => IsBelowMinimum || MayCreate(1, mayWait && _line.Count < options.MaxCallsWaiting);

    private bool IsBelowMinimum => _active.Count + Creating < options.MinPoolSize;

    private int Capacity => options.MaxConcurrentCallsPerChannel!.Value;

    private int Creating => _creations.Count(static creation => creation.Replaced is null);

    private List<Channel> WithRoom => _active.FindAll(channel => channel.State == ChannelState.Active && channel.Leases < Capacity);

    public ChannelPoolStatistics Statistics => new()
    {
        Channels = _active.Count + Creating,
        IdleChannels = _active.Count(static channel => channel.Leases == 0),
        DrainingChannels = _draining.Count,
        CallsInFlight = _inFlight,
        CallsWaiting = _line.Count,
        ChannelsCreated = _created,
        ChannelsReplaced = _replaced,
    };

    /// <summary>A caller comes.</summary>
    public void Acquire(Call call, bool mayWait)
    {
        if (IsDisposed)
        {
            call.Error = typeof(ObjectDisposedException);
        }
        else if (!IsBelowMinimum && WithRoom.Count > 0)
        {
            var channel = Chosen(call);
            if (IsDue(channel))
            {
                Replace(channel, call, forCall: call);
            }
            else
            {
                Lease(channel, call);
            }
        }
        else if (MayNewcomerCreate(mayWait) && _line.Count == 0)
        {
            Begin(new Creation(call, Replaced: null, For: call, mayWait));
        }
        else if (mayWait && _line.Count < options.MaxCallsWaiting)
        {
            // Whoever is first in line makes what the newcomer may have made.
            var creates = MayNewcomerCreate(mayWait);
            ComeIntoLine(call, at: _line.Count);
            if (creates)
            {
                var first = _line[0].Call;
                _line.RemoveAt(0);
                Begin(new Creation(first, Replaced: null, For: first, MayWait: true));
            }
        }
        else
        {
            call.Error = mayWait ? typeof(InvalidOperationException) : null;
            call.IsRefused = !mayWait;
        }

        EndWhatEndsAtOnce();
    }

    public void Cancel(Call call)
    {
        if (_line.RemoveAll(place => place.Call == call) > 0)
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
            channel.Failed = false;
            _paused &= channel.Proven;
            channel.Proven = true;
        }

        channel.Failed |= !wanted || outcome == LeaseOutcome.ChannelFailed;
        if (IsDue(channel))
        {
            Replace(channel, by, forCall: null);
        }
        else if (channel is { State: ChannelState.Draining, Leases: 0 })
        {
            Close(channel);
        }

        Serve();
        EndWhatEndsAtOnce();
    }

    /// <summary>A creation ends, and works or fails.</summary>
    public void End(Creation creation, bool works)
    {
        EndOne(creation, works);
        EndWhatEndsAtOnce();
    }

    /// <summary>
    /// Time goes by, and the maintenance runs. <paramref name="idle"/> and <paramref name="old"/> are the channels that the pool has
    /// closed and replaced, where it had a choice.
    /// </summary>
    public void Advance(TimeSpan by, Call call, IReadOnlyCollection<GrpcChannel> idle, Queue<GrpcChannel> old)
    {
        var runs = (int)((_now + by) / MaintenancePeriod) - (int)(_now / MaintenancePeriod);
        _now += by;
        _paused = false;
        if (IsDisposed)
        {
            return;
        }

        if (runs > 0)
        {
            var candidates = _active.FindAll(channel =>
                channel is { State: ChannelState.Active, Leases: 0 } && _now - channel.IdleSince >= options.PooledChannelIdleTimeout);
            var count = Math.Clamp(_active.Count + Creating - options.MinPoolSize, 0, candidates.Count);
            var closing = count == candidates.Count ? candidates : candidates.FindAll(candidate => idle.Contains(candidate.Actual));
            if (closing.Count != count)
            {
                throw new LawBrokenException($"Of {candidates.Count} idle channels {closing.Count} were closed, not {count}.");
            }

            closing.ForEach(Drain);
        }

        // A tenth of the channels at a time, that is one. Each run tries anew if none can be made.
        for (; runs > 0; runs--)
        {
            var candidates = _active.FindAll(channel =>
                channel.State == ChannelState.Active && _now - channel.MadeAt >= options.PooledChannelLifetime);
            if (candidates.Count == 0)
            {
                break;
            }

            var channel = IsBroken ? candidates[0] : candidates.Find(candidate => old.TryPeek(out var next) && next == candidate.Actual);
            if (channel is null)
            {
                throw new LawBrokenException("An old channel was not replaced.");
            }

            old.TryDequeue(out _);
            channel.State = ChannelState.Replacing;
            Begin(new Creation(call, channel, For: null));
            EndWhatEndsAtOnce();
        }

        foreach (var (late, _) in _line.FindAll(place => _now - place.Since >= options.AcquireTimeout))
        {
            _line.RemoveAll(place => place.Call == late);
            late.Error = typeof(TimeoutException);
        }
    }

    public void BeginDispose()
    {
        IsDisposed = true;
        _line.ForEach(static place => place.Call.Error = typeof(ObjectDisposedException));
        _line.Clear();
        foreach (var channel in _active.ToList())
        {
            Drain(channel);
        }
    }

    /// <summary>Does not wait for leases any longer.</summary>
    public void EndDispose() => _draining.ToList().ForEach(Close);

    // Enough creations are on their way if they will carry all who wait, and one who cannot wait has no use for them. Those in line make
    // none if that has failed, as long as there are channels that will have room.
    private bool MayCreate(int newCallers, bool mayWait) =>
        _active.Count + Creating < options.MaxPoolSize
        && (!mayWait || _line.Count + newCallers + Creating > _creations.Count * Capacity)
        && (newCallers > 0 || !_lastFailed || _active.Count == 0);

    // Chance decides among several, and the caller knows.
    private Channel Chosen(Call call) => WithRoom is [var only] ? only
        : WithRoom.Find(candidate => candidate.Actual == call.Got)
        ?? throw new LawBrokenException($"Caller {call.Number} has a lease on a channel that had no room or is not to be leased.");

    private bool IsDue(Channel channel) => channel is { State: ChannelState.Active, Failed: true } && (channel.Proven || !_paused);

    private void Replace(Channel channel, Call by, Call? forCall)
    {
        _paused |= !channel.Proven;
        channel.State = ChannelState.Replacing;
        Begin(new Creation(by, channel, forCall));
    }

    private void Begin(Creation creation)
    {
        _creations.Add(creation);
        if (!IsSlow)
        {
            _endsAtOnce.Enqueue(creation);
        }
    }

    private void EndWhatEndsAtOnce()
    {
        while (_endsAtOnce.TryDequeue(out var creation))
        {
            EndOne(creation, works: !IsBroken);
        }
    }

    private void EndOne(Creation creation, bool works)
    {
        _creations.Remove(creation);
        var made = works ? new Channel(creation.By.TakeMade(), _now) : null;
        _lastFailed = creation.Replaced is null ? !works : _lastFailed;
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
            if (made is null)
            {
                _paused = true;
                old.State = ChannelState.Active;
            }
            else
            {
                _replaced++;
                Drain(old);
            }
        }

        if (creation.For is { } first)
        {
            if ((made ?? creation.Replaced ?? (WithRoom.Count > 0 ? Chosen(first) : null)) is { } channel)
            {
                Lease(channel, first);
            }
            else if (creation.MayWait && _active.Count > 0)
            {
                ComeIntoLine(first, at: 0); // it was here before all others
            }
            else
            {
                first.Error = typeof(InvalidOperationException);
            }
        }

        Serve();
    }

    private void Serve()
    {
        while (_line.Count > 0)
        {
            var next = _line[0].Call;
            if (WithRoom is { Count: > 0 } channels)
            {
                _line.RemoveAt(0);
                Lease(channels[0], next);
            }
            else if (MayCreate(0, mayWait: true))
            {
                _line.RemoveAt(0);
                Begin(new Creation(next, Replaced: null, For: next, MayWait: true));
            }
            else
            {
                break;
            }
        }
    }

    private void ComeIntoLine(Call call, int at)
    {
        _line.Insert(at, (call, _now));
        call.Places++;
    }

    private void Lease(Channel channel, Call call)
    {
        channel.Leases++;
        _inFlight++;
        call.Channel = channel;
    }

    private void Drain(Channel channel)
    {
        _active.Remove(channel);
        channel.State = ChannelState.Draining;
        _draining.Add(channel);
        if (channel.Leases == 0)
        {
            Close(channel);
        }
    }

    private void Close(Channel channel)
    {
        _draining.Remove(channel);
        channel.State = ChannelState.Closed;
        _closed.Add(channel.Actual);
    }

    public enum ChannelState
    {
        Active,
        Replacing,
        Draining,
        Closed,
    }

    /// <summary>A creation that is under way: who makes the channel, which one it replaces, and who gets a lease on it.</summary>
    public sealed record Creation(Call By, Channel? Replaced, Call? For, bool MayWait = false);

    public sealed class Channel(GrpcChannel actual, TimeSpan now)
    {
        public GrpcChannel Actual => actual;

        public TimeSpan MadeAt { get; } = now;

        public TimeSpan IdleSince { get; set; } = now;

        public int Leases { get; set; }

        public bool Proven { get; set; }

        public bool Failed { get; set; }

        public ChannelState State { get; set; }
    }
}

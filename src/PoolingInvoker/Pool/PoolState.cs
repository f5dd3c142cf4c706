// The laws. They hold at the end of each locked section, where they are checked.
//
//  1. Lease law. Every lease is returned exactly once (ChannelLease holds the gate).
//  2. Capacity. No lease is taken on a channel at its capacity, counted at the pick; a server that lowers its limit gets no new calls until
//     enough have ended. Channels, with those being made, are never more than MaxPoolSize; draining ones are counted apart. Where it is
//     lowered, those above it drain as soon as they are not being made or replaced, and none is added.
//  3. No lost wake-up. Nobody waits while an active channel has room, or without something that will end the wait: a lease that will come
//     back, a channel that is being made, a look at the line that is due, or a server that takes nothing and will say when it does. Waiters
//     are served first come, first served. A cancelled waiter takes nothing.
//  4. Draining. A draining channel is never leased again; it is disposed on its last return, never before. The replacement is
//     published before the old one starts to drain.
//  5. No foreign code under the lock: no channel creation, no dispose, no user callback, no continuation of a waiter.
using System.Diagnostics;
using Grpc.Net.Client;

namespace PoolingInvoker;

/// <summary>
/// The state of a pool, guarded by one lock. It changes in a <see cref="Section"/>: at its end waiters are served, missing channels are
/// reserved if the section asks for that, and the laws are checked. What is left to do (make, dispose, tell) is done after the lock, in its
/// order, by the same thread (law 5). The clock is read before the lock: a FakeTimeProvider may run timers when it is read.
/// </summary>
internal sealed class PoolState
{
    public static readonly TimeSpan FirstPause = TimeSpan.FromSeconds(0.1); // of a backoff

    private readonly object _lock = new();
    private List<Action>? _after; // what is left to do when the lock is free
    private bool _disposed;
    private int _ceiling; // MaxPoolSize; where it has been lowered, how many channels there still are

    public PoolState(ChannelPoolOptions options, Random random, string target)
    {
        (Options, Time, Random, _ceiling) = (options, options.TimeProvider, random, options.MaxPoolSize);
        Name = options.Name ?? target;
        Log = new PoolingInvokerLog(options.LoggerFactory, Name);
        Metrics = new PoolMetrics(options.MeterFactory, Name, target, options.TimeProvider);
        Diary = new PoolDiary(_lock, After, Log, Metrics, options, Name, target);
        Work = new PoolWork(options, Log);
        Clock = new SectionClock(this);
        Backoff = new ReconnectBackoff(Clock, random, FirstPause, longest: TimeSpan.FromSeconds(1));
        Active = new ActiveChannels(random, TargetOf(options));
        Affinity = new ChannelAffinity(Active, () => Options, Metrics.Tally);
    }

    public ChannelPoolOptions Options { get; private set; }
    public string Name { get; }
    public TimeProvider Time { get; }
    public Random Random { get; }
    public PoolingInvokerLog Log { get; }
    public PoolMetrics Metrics { get; }
    public PoolDiary Diary { get; }
    public PoolWork Work { get; }
    public TimeProvider Clock { get; } // the clock of what the lock guards: the time at which the section began
    public long Now { get; private set; } // when the section began
    public ReconnectBackoff Backoff { get; }
    public ActiveChannels Active { get; }
    public ChannelAffinity Affinity { get; } // where calls with a key go
    public LinkedList<LeaseWaiter> Waiters { get; } = []; // the callers that wait for room, first come, first served
    public Dictionary<GrpcChannel, PooledChannel> Channels { get; } = new(ReferenceEqualityComparer.Instance); // all that are not disposed
    public EndpointBalancer? Balancer { get; set; } // spreads the channels over endpoints, in a pool that has several
    public Action ServeWaiters { get; set; } = static () => { }; // gives the room that there is to those that wait
    public Action<PoolReason> Grow { get; set; } = static _ => { }; // reserves the channels that are missing, for a reason
    public Action? Refresh { get; set; } // replaces those that are to be refreshed, as long as there are any
    public Func<bool> WillGrow { get; set; } = static () => false; // whether the waiters will be looked at
    public int LastId { get; set; } // all channels whose making has begun have one up to it
    public List<int> Making { get; } = []; // the channels whose callbacks run: they are not among the others yet
    public int Creating { get; set; } // channels that are being made, replacements excepted
    public int Replacing { get; set; } // channels whose replacement is being made
    public int Draining { get; private set; }
    public int Leases { get; set; }
    public long Taken { get; set; } // leases so far
    public long Created { get; set; }
    public long Replaced { get; set; }
    public long GivenUp { get; set; }
    public int Count => Active.Count + Creating; // channels that count against MaxPoolSize
    public int Minimum => Balancer?.MinimumOf(Options.MinPoolSize, Options.MaxPoolSize) ?? Options.MinPoolSize; // below it the pool does not shrink
    public int Moves => Math.Max(1, Active.Count / 10) - Replacing; // how many channels may be replaced beside those that are
    public bool IsDisposed => Volatile.Read(ref _disposed);
    public bool IsEntered => Monitor.IsEntered(_lock); // by this thread
    public List<(PoolTimer Timer, object Owner)> Timers { get; } = []; // they end with the pool; nothing else keeps some of their owners
    public CancellationTokenSource Closing { get; } = new(); // is cancelled when the pool is disposed
    public TaskCompletionSource Closed { get; } = new(TaskCreationOptions.RunContinuationsAsynchronously); // the pool and all its channels are

    /// <summary>Begins to read or to change the state. A thread that reads does not do what is left: it may be a dispose.</summary>
    public Section Enter(PoolReason? growsBecause = null, bool isReading = false) => new(this, growsBecause, isReading);

    public void After(Action action)
    {
        Debug.Assert(IsEntered, "What is left to do is told under the lock.");
        (_after ??= []).Add(action);
    }

    public TimeSpan Since(long moment) => Time.GetElapsedTime(moment, Now);

    public LeaseWaiter? NextWaiter()
    {
        var first = Waiters.First?.Value;
        first?.Leave();
        return first;
    }

    /// <summary>A channel takes no more calls, and none takes its place.</summary>
    public void Retire(PooledChannel channel, PoolReason reason)
    {
        Diary.Retired(channel, reason);
        Drain(channel);
    }

    public void Drain(PooledChannel channel)
    {
        Active.Remove(channel);
        Balancer?.Leave(channel);
        channel.State = PooledChannelState.Draining;
        Draining++;
        if (channel.Leases == 0)
        {
            Close(channel);
        }
    }

    public void Close(PooledChannel channel)
    {
        Debug.Assert(channel.State == PooledChannelState.Draining, "Only a draining channel closes.");
        channel.State = PooledChannelState.Closed;
        Draining--;
        Discard(channel);
    }

    public void Discard(PooledChannel? channel)
    {
        if (channel is not null)
        {
            After(() => Dispose(channel));
        }
    }

    /// <summary>Goes on with other options. Under the lock.</summary>
    public void Change(ChannelPoolOptions options)
    {
        (var before, Options, _ceiling) = (Options, options, Math.Max(options.MaxPoolSize, Count));
        Active.Target = TargetOf(options);
        foreach (var channel in Channels.Values)
        {
            Adopt(channel, before);
            Active.Update(channel);
        }
    }

    /// <summary>Has the options hold for a channel that was made with those before.</summary>
    public void Adopt(PooledChannel channel, ChannelPoolOptions before)
    {
        channel.MostCalls = Options.MaxConcurrentCallsPerChannel;
        channel.Lifetime = Options.PooledChannelLifetime == before.PooledChannelLifetime ? channel.Lifetime : NewLifetime();
    }

    /// <summary>Less a part that is drawn once for each channel.</summary>
    public TimeSpan NewLifetime() => Options.PooledChannelLifetime is var lifetime && lifetime == Timeout.InfiniteTimeSpan ? lifetime : lifetime * (1 - (0.1 * Random.NextDouble()));

    public void BeginDispose()
    {
        using var section = Enter();
        if (_disposed)
        {
            return;
        }

        _disposed = true;
        while (NextWaiter() is { } waiter)
        {
            waiter.SetException(NewDisposedException());
        }

        Active.ToList().ForEach(Drain);

        After(() => Timers.ForEach(static one => one.Timer.Stop()));
        After(() => Balancer?.Dispose());
        After(() => Closing.CancelAsync().Observe()); // what the callbacks of a priming call throw has no part in the rest
    }

    public void ThrowIfDisposed() => ObjectDisposedException.ThrowIf(IsDisposed, typeof(ChannelPool));

    public static ObjectDisposedException NewDisposedException() => new(typeof(ChannelPool).FullName);

    private void Dispose(PooledChannel channel)
    {
        var isClosed = false;
        try
        {
            using var transport = channel.Transport; // goes whatever the handlers throw
            channel.Channel.Dispose();
            isClosed = true;
        }
        catch (Exception exception) // Dispose runs user handlers. What they throw does not reach the caller that returned the lease.
        {
            Log.CloseFailed(channel, exception);
        }

        using var section = Enter();
        Balancer?.Leave(channel); // if it never joined
        Channels.Remove(channel.Channel);
        if (isClosed)
        {
            Diary.Closed(channel);
        }
    }

    private static ChannelTarget TargetOf(ChannelPoolOptions options) => new(options.TargetConcurrentCallsPerChannel ?? int.MaxValue);

    // Channels that something speaks against come first, then those that stand by, then of each endpoint those with the fewest calls. One that
    // is being replaced waits, and those that are being made take the place of none before they have joined.
    private void RetireSurplus()
    {
        var surplus = Active.Where(static channel => channel.State == PooledChannelState.Active)
            .GroupBy(static channel => channel.Server)
            .SelectMany(static channels => channels.OrderBy(static channel => channel.Health > ChannelHealth.Healthy)
                .ThenByDescending(static channel => channel.Leases)
                .Select(static (channel, rank) => (channel, rank)))
            .OrderByDescending(static ranked => ranked.channel.Health > ChannelHealth.Healthy)
            .ThenByDescending(static ranked => ranked.channel.StandsBy)
            .ThenByDescending(static ranked => ranked.rank)
            .Take(Active.Count(static channel => channel.State != PooledChannelState.Replacing) - Options.MaxPoolSize)
            .Select(static ranked => ranked.channel)
            .ToList();
        surplus.ForEach(channel => Retire(channel, PoolReason.Surplus(Options.MaxPoolSize)));
        _ceiling = Math.Max(Options.MaxPoolSize, Count);
    }

    private List<Action>? Leave(PoolReason? growsBecause)
    {
        if (Balancer is { Endpoints.HasChanged: true })
        {
            Balancer.Split();
        }

        if (_ceiling > Options.MaxPoolSize)
        {
            RetireSurplus();
        }

        if (Waiters.Count > 0)
        {
            ServeWaiters();
        }

        if (growsBecause is not null)
        {
            Grow(growsBecause);
        }

        Refresh?.Invoke();

        if (_disposed && Creating + Replacing + Channels.Count == 0)
        {
            Closed.TrySetResult();
        }

        AssertLaws();
        (var after, _after) = (_after, null);
        return after;
    }

    [Conditional("DEBUG")]
    private void AssertLaws()
    {
        var leases = 0;
        var takesNothing = false;
        foreach (var channels in Active.ByStanding)
        {
            foreach (var channel in channels)
            {
                leases += channel.Leases;
                takesNothing |= channel.Capacity == 0;
                Debug.Assert(channel.Place == channel.Standing, "Each channel is picked by what is known of it.");
                Debug.Assert(channel.Leases >= channel.Streams && channel.Streams >= channel.NewStreams + channel.LongStreams, "Law 1: each lease comes back once.");
                Debug.Assert(channel is { NewStreams: >= 0, LongStreams: >= 0 }, "Law 1: each stream ends once.");
                Debug.Assert(channel.State is not (PooledChannelState.Draining or PooledChannelState.Closed), "Law 4: a draining channel is not leased.");
            }
        }

        Debug.Assert(leases <= Leases && leases == Active.Calls + Active.Streams, "Law 1: each lease is counted once.");
        Debug.Assert(Creating >= 0 && Replacing >= 0 && Draining >= 0, "What was begun ends once.");
        Debug.Assert(Count <= _ceiling, "Law 2: the pool is no larger than MaxPoolSize.");
        Debug.Assert(Waiters.Count == 0 || !Active.HasRoom, "Law 3: nobody waits while there is room.");
        Debug.Assert(Waiters.Count == 0 || leases + Creating + Replacing > 0 || takesNothing || WillGrow(), "Law 3: nobody waits for nothing.");
    }

    public readonly ref struct Section
    {
        private readonly PoolState _state;
        private readonly PoolReason? _growsBecause;
        private readonly bool _isReading;

        public Section(PoolState state, PoolReason? growsBecause, bool isReading)
        {
            (_state, _growsBecause, _isReading) = (state, growsBecause, isReading);
            var (now, isEntered) = (state.Time.GetTimestamp(), false);
            Monitor.Enter(state._lock, ref isEntered);
            state.Now = now;
        }

        public void Dispose()
        {
            List<Action>? after;
            try
            {
                after = _state.Leave(_growsBecause);
            }
            finally
            {
                Monitor.Exit(_state._lock);
            }

            if (after is not null)
            {
                Do(after);
            }
        }

        private void Do(List<Action> after)
        {
            if (_isReading)
            {
                _state.Options.Queue(() => after.ForEach(static action => action()));
            }
            else
            {
                after.ForEach(static action => action());
            }
        }
    }

    private sealed class SectionClock(PoolState state) : TimeProvider
    {
        public override long TimestampFrequency => state.Time.TimestampFrequency;

        public override long GetTimestamp() => state.Now;
    }
}

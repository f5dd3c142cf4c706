// When is a call over? Then, and not before, its lease goes back, exactly once.
//
//  kind               ends with
//  -----------------  ------------------------------------------------------------------------------------------------------------
//  unary              its response task: response, status, transport failure, deadline, cancellation, Dispose all end it
//  blocking unary     the same: it is a unary call that is waited for
//  client streaming   its response task; not CompleteAsync, after which the response is still to come
//  server streaming   MoveNext that gives false or throws for good; headers that fail to come; after the headers, and with nobody
//                     reading, the deadline or the token of the call; Dispose; its call object collected
//  duplex             as server streaming: the response side ends the call, whether the request side is complete or not
//  every kind         an exception of the channel when the call is started
//
// A client stream whose call object and writer are collected before its requests are complete is ended half a minute later: its
// response may still be awaited, which nobody can know, and come.
//
// The gate is ChannelLease: whoever comes first gives it back, the others do nothing. Law 1: every lease is returned exactly once,
// whatever ends the call.
using Grpc.Core;

namespace PoolingInvoker;

/// <summary>A call that is its own lease, and gives it back once.</summary>
internal interface ILeasingCall
{
    void Return(PooledChannel channel, LeaseOutcome outcome, Exception? error);
}

/// <summary>The lease of an attempt: judges what has ended the attempt, and gives the lease back.</summary>
internal readonly struct AttemptLease
{
    private readonly object _lease; // a ChannelLease, or the call
    private readonly int _mark; // of what has happened to the connections of the channel

    public AttemptLease(ChannelLease lease)
        : this(lease, lease.Pooled)
    {
    }

    public AttemptLease(ILeasingCall call, PooledChannel channel)
        : this((object)call, channel)
    {
    }

    private AttemptLease(object lease, PooledChannel channel) => (_lease, _mark, Channel) = (lease, channel.Transport?.Mark ?? 0, channel);

    public PooledChannel Channel { get; }

    /// <summary>The server has begun to answer: what comes now may take as long as it likes.</summary>
    public void Answered() => (_lease as ChannelLease)?.Answered();

    /// <summary>The verdict on what an attempt, or a read or a write of it, has failed with, by what has happened to its connection meanwhile.</summary>
    public CallFault Judge(Exception failure, object attempt, Metadata? headers) =>
        CallFaults.JudgeOnce(failure, Channel.Transport?.FactSince(_mark) ?? ConnectionFact.Unknown, headers, attempt);

    /// <summary>The attempt has ended, with a failure or in good order.</summary>
    public void Release(Exception? failure, object attempt, Metadata? headers, bool isEndedByCaller) => Release(failure is null ? LeaseOutcome.Answered : Judge(failure, attempt, headers) switch
    {
        { Origin: FaultOrigin.Server, IsTransient: false } => LeaseOutcome.Answered,

        // A caller that ends the call in the middle of something may make the channel say that the connection broke.
        _ when isEndedByCaller => LeaseOutcome.Unknown,
        { Origin: FaultOrigin.Server } => LeaseOutcome.ServerFailed,
        { Origin: FaultOrigin.Channel, Fate: RequestFate.NeverLeft } => LeaseOutcome.CouldNotConnect,
        { Origin: FaultOrigin.Channel } => LeaseOutcome.ChannelFailed,
        _ => LeaseOutcome.Unknown,
    }, failure);

    /// <summary>The channel would not start the call. One that is disposed was disposed behind the pool's back.</summary>
    public void ReleaseUnused(Exception failure) =>
        Release(failure is ObjectDisposedException ? LeaseOutcome.ChannelFailed : LeaseOutcome.Unknown);

    public void Release(LeaseOutcome outcome, Exception? error = null)
    {
        if (_lease is ILeasingCall call)
        {
            call.Return(Channel, outcome, error);
        }
        else
        {
            ((ChannelLease)_lease).Return(outcome, error);
        }
    }
}

/// <summary>The end of an attempt that streams, which may end with nobody reading it.</summary>
internal abstract class CallCompletion(AttemptLease lease)
{
    private static readonly object Released = new();

    // Between two looks at a call that the channel has yet to end. Each look throws, so each pause is twice the one before it.
    private static readonly TimeSpan FirstPause = TimeSpan.FromMilliseconds(1);
    private static readonly TimeSpan LongestPause = TimeSpan.FromSeconds(1);

    private object? _watch; // an UnreadWatch, or Released

    public PooledChannel Channel => lease.Channel;

    public bool IsReleased => Volatile.Read(ref _watch) == Released;

    /// <summary>How long it is to a deadline, as a timer takes it.</summary>
    public static TimeSpan DueTime(DateTime? deadline, TimeProvider time)
    {
        if (deadline is not { } value || value == DateTime.MaxValue)
        {
            return Timeout.InfiniteTimeSpan;
        }

        var due = value - time.GetUtcNow().UtcDateTime;
        return due < TimeSpan.Zero ? TimeSpan.Zero
            : due > ChannelPoolOptions.LongestWait ? ChannelPoolOptions.LongestWait
            : due;
    }

    /// <summary>Whether the channel has ended the call, also if nobody reads it.</summary>
    public abstract bool IsOver();

    /// <summary>
    /// Waits for the channel to end the call, which has said that there are no headers, or that the connection broke: the end is on its
    /// way, and as a rule there at the first look.
    /// </summary>
    public async ValueTask<bool> IsSoonOverAsync()
    {
        for (var pause = FirstPause; pause < LongestPause; pause *= 2)
        {
            if (IsOver())
            {
                return true;
            }

            await Task.Delay(pause, TimeProvider.System).ConfigureAwait(false); // what is waited for is the machine
        }

        return IsOver();
    }

    public void Answered() => lease.Answered();

    protected abstract void OverUnread();

    private void Release(LeaseOutcome outcome) => lease.Release(outcome);

    protected CallFault Judge(Exception failure, Metadata? headers) => lease.Judge(failure, this, headers);

    protected void Release(Exception? failure, Metadata? headers, bool isEndedByCaller)
    {
        StopWatching();
        lease.Release(failure, this, headers, isEndedByCaller);
    }

    /// <summary>
    /// Gives the lease back when the deadline has passed or the token has fired and the channel has ended its call: never before that, or
    /// the channel could be given away or disposed under the call.
    /// </summary>
    protected void WatchUnread(CallOptions options, TimeProvider time)
    {
        if (DueTime(options.Deadline, time) != Timeout.InfiniteTimeSpan || options.CancellationToken.CanBeCanceled)
        {
            var watch = new UnreadWatch(this, options, time);
            if (Interlocked.CompareExchange(ref _watch, watch, null) is not null)
            {
                watch.Dispose();
            }
        }
    }

    // A token that outlives the call would keep it alive.
    private void StopWatching() => (Interlocked.Exchange(ref _watch, Released) as UnreadWatch)?.Dispose();

    private sealed class UnreadWatch : IDisposable
    {
        private readonly CallCompletion _attempt;
        private readonly CallOptions _options;
        private readonly TimeProvider _time;
        private readonly ITimer _timer;
        private readonly CancellationTokenRegistration _registration;
        private int _looks; // at a call whose end is due

        public UnreadWatch(CallCompletion attempt, CallOptions options, TimeProvider time)
        {
            (_attempt, _options, _time) = (attempt, options, time);
            using (ExecutionContext.SuppressFlow())
            {
                _timer = time.CreateTimer(static watch => ((UnreadWatch)watch!).Look(), this, Timeout.InfiniteTimeSpan, Timeout.InfiniteTimeSpan);
            }

            // Statement order is important: a token that fires has the last word.
            _timer.Change(DueTime(options.Deadline, time), Timeout.InfiniteTimeSpan);
            _registration = options.CancellationToken.UnsafeRegister(static timer => ((ITimer)timer!).Change(TimeSpan.Zero, Timeout.InfiniteTimeSpan), _timer);
        }

        public void Dispose()
        {
            _registration.Unregister();
            _timer.Dispose();
        }

        private void Look()
        {
            if (_attempt.IsOver())
            {
                _attempt.StopWatching();
                _attempt.Release(LeaseOutcome.Unknown);
                _attempt.OverUnread();
                return;
            }

            var next = _options.CancellationToken.IsCancellationRequested ? TimeSpan.Zero : DueTime(_options.Deadline, _time);
            var pause = FirstPause * (1 << _looks);
            if (next <= pause)
            {
                next = pause;
                _looks += pause < LongestPause ? 1 : 0;
            }

            _timer.Change(next, Timeout.InfiniteTimeSpan);
        }
    }
}

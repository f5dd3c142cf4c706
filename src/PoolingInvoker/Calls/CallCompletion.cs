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

/// <summary>The end of one attempt: the one place that gives its lease back.</summary>
internal abstract class CallCompletion(ChannelLease lease)
{
    // Between two looks at a call that the channel has yet to end. Each look throws, so each pause is twice the one before it.
    private static readonly TimeSpan FirstPause = TimeSpan.FromMilliseconds(1);
    private static readonly TimeSpan LongestPause = TimeSpan.FromSeconds(1);

    // Guarded by a lock on this object, which the library alone knows.
    private bool _completed;
    private byte _looks; // at a call whose end is due
    private ITimer? _timer;
    private CancellationTokenRegistration _registration;

    /// <summary>Whether the lease has gone back.</summary>
    public bool IsCompleted => Volatile.Read(ref _completed);

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
    public async ValueTask<bool> EndsAsync()
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

    /// <summary>The call has ended with nobody reading it.</summary>
    protected abstract void EndedUnread();

    /// <summary>The server has begun to answer: what comes now may take as long as it likes.</summary>
    public void Answered() => lease.Answered();

    protected void Complete(LeaseOutcome outcome, Exception? error = null)
    {
        ITimer? timer;
        CancellationTokenRegistration registration;
        lock (this)
        {
            _completed = true;
            (timer, _timer) = (_timer, null);
            (registration, _registration) = (_registration, default);
        }

        // Otherwise a token that outlives the call keeps it alive.
        timer?.Dispose();
        registration.Unregister();
        lease.Return(outcome, error);
    }

    /// <summary>
    /// Completes when the deadline has passed or the token has fired and the channel has ended its call: never before that, or the
    /// channel could be given away or disposed under the call.
    /// </summary>
    protected void WatchUnread(CallOptions options, TimeProvider time)
    {
        var due = DueTime(options.Deadline, time);
        if (due == Timeout.InfiniteTimeSpan && !options.CancellationToken.CanBeCanceled)
        {
            return;
        }

        using (ExecutionContext.SuppressFlow())
        {
            var timer = time.CreateTimer(_ => Look(), state: null, Timeout.InfiniteTimeSpan, Timeout.InfiniteTimeSpan);
            lock (this)
            {
                if (_completed)
                {
                    timer.Dispose();
                    return;
                }

                // Statement order is important: a token that fires has the last word.
                _timer = timer;
                timer.Change(due, Timeout.InfiniteTimeSpan);
                _registration = options.CancellationToken.UnsafeRegister(static state => ((ITimer)state!).Change(TimeSpan.Zero, Timeout.InfiniteTimeSpan), timer);
            }
        }

        void Look()
        {
            if (IsOver())
            {
                Complete(LeaseOutcome.Unknown);
                EndedUnread();
                return;
            }

            lock (this)
            {
                var next = options.CancellationToken.IsCancellationRequested ? TimeSpan.Zero : DueTime(options.Deadline, time);
                var pause = FirstPause * (1 << _looks);
                if (next <= pause)
                {
                    next = pause;
                    _looks += pause < LongestPause ? (byte)1 : (byte)0;
                }

                _timer?.Change(next, Timeout.InfiniteTimeSpan);
            }
        }
    }
}

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
// The gate is CallAttempt.Release: whoever comes first gives the lease back, the others do nothing. Law 1: every lease is returned exactly
// once, whatever ends the call.

namespace PoolingInvoker;

/// <summary>
/// The end of a stream that nobody reads, by its deadline or its token. The lease goes back when the channel has ended the call: before that the
/// channel could be disposed under it.
/// </summary>
internal sealed class CallCompletion : IDisposable
{
    private readonly CallAttempt _attempt;
    private readonly GivenOptions _given;
    private readonly TimeProvider _time;
    private readonly ITimer _timer;
    private readonly CancellationTokenRegistration _registration;
    private TimeSpan _pause = CallAttempt.FirstPause; // between two looks at a call whose end is due

    public CallCompletion(CallAttempt attempt, GivenOptions given, TimeProvider time)
    {
        (_attempt, _given, _time) = (attempt, given, time);
        using (ExecutionContext.SuppressFlow())
        {
            _timer = time.CreateTimer(static watch => ((CallCompletion)watch!).Look(), this, Timeout.InfiniteTimeSpan, Timeout.InfiniteTimeSpan);
        }

        // Statement order is important: a token that fires has the last word.
        _timer.Change(GivenOptions.DueTime(given.Options.Deadline, time), Timeout.InfiniteTimeSpan);
        _registration = given.Options.CancellationToken.UnsafeRegister(static timer => ((ITimer)timer!).Change(TimeSpan.Zero, Timeout.InfiniteTimeSpan), _timer);
    }

    // A token that outlives the call would keep it alive.
    public void Dispose()
    {
        _registration.Unregister();
        _timer.Dispose();
    }

    private void Look()
    {
        if (_attempt.IsOver())
        {
            Dispose();
            _attempt.EndedUnread();
            return;
        }

        var next = _given.Options.CancellationToken.IsCancellationRequested ? TimeSpan.Zero : GivenOptions.DueTime(_given.Options.Deadline, _time);
        if (next <= _pause)
        {
            (next, _pause) = (_pause, CallAttempt.Longer(_pause));
        }

        _timer.Change(next, Timeout.InfiniteTimeSpan);
    }
}

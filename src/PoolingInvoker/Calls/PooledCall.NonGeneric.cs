using System.Collections;

namespace PoolingInvoker;

/// <summary>
/// What can be asked of a call, whatever its messages: its status, and whether it may be sent again. Law 7: at most once, unless told. What
/// never left is always sent again; what may have been processed only if its method is idempotent and the application has seen nothing of it.
/// </summary>
internal abstract class PooledCall(CallEnvironment environment, IMethod method, GivenOptions given, object? request)
    : IEnumerable<KeyValuePair<string, object>>
{
    private CallAttempt? _attempt;
    private bool _isDisposed;
    private bool _isCompleted;

    public abstract MethodType Kind { get; }
    public CallEnvironment Environment => environment;
    public ChannelPool Pool => environment.Pool;
    public ChannelPicker Picker => environment.Pool.Picker;
    public TimeProvider TimeProvider => environment.Pool.State.Time;
    public bool IsPoolDisposed => environment.Pool.State.IsDisposed;
    public CallPlan Plan => environment.PlanOf(method);
    public IMethod Method => method;
    public object? Request => request;
    public GivenOptions Given => given;
    public CallOptions Options => given.Options;
    public LeaseKind LeaseKind => Kind == MethodType.Unary ? LeaseKind.Call : LeaseKind.Stream;
    public bool HasOneResponse => Kind is MethodType.Unary or MethodType.ClientStreaming;
    public bool IsHedged => Plan.Hedging is not null && Kind == MethodType.Unary && !Options.IsWaitForReady && IsIdempotent;

    public CallAttempt? Attempt => Volatile.Read(ref _attempt);
    public PooledChannel? Channel => Attempt?.Channel;
    public bool IsDisposed => Volatile.Read(ref _isDisposed);
    public bool IsCompleted => Volatile.Read(ref _isCompleted);
    public bool HedgesNoMore { get; set; } // by the word of a server

    /// <summary>Whether there is another attempt than this one, or there will be none.</summary>
    public bool HasOtherThan(CallAttempt? attempt) => IsCompleted || (Attempt is { } current && current != attempt);

    /// <summary>Whether the caller has ended the call, by Dispose, its token or its deadline.</summary>
    public bool IsEndedByCaller =>
        IsDisposed || Options.CancellationToken.IsCancellationRequested || GivenOptions.DueTime(Options.Deadline, TimeProvider) == TimeSpan.Zero;

    /// <summary>What the call ends with where its caller ends it between two attempts.</summary>
    public Status EndedByCallerWith => EndedByToken is { } byToken ? byToken
        : IsDisposed ? CallErrors.Disposed
        : Options.CancellationToken.IsCancellationRequested ? CallErrors.Cancelled(Options.CancellationToken)
        : CallErrors.DeadlineExceeded(LastFailure);

    protected virtual Status? EndedByToken => null; // of a read or a write, between two attempts
    protected bool IsIdempotent => environment.IsIdempotent(method);
    protected abstract Exception? LastFailure { get; }
    protected bool HasFailed { get; set; } // the current attempt, which the loop has yet to judge
    protected bool IsCancelled { get; private set; }
    protected bool IsToldDisposed { get; set; } // by a reader or writer: a moment may pass until the channel has ended the call

    // What the call has ended with, or the attempt that is the call from now on. Statement order is important: the former is there before the
    // call is completed.
    protected CallAttempt? Final => IsCompleted ? Attempt : Attempt is { IsCommitted: true } attempt ? attempt : null;

    // Before there is a final attempt the application is told of the current one, if the caller or its own end has ended the call: both
    // the caller can know before the loop has seen it.
    private CallAttempt? Told => Final
        ?? (Attempt is { IsAbandoned: false } attempt && attempt.IsOver()
            && ((IsEndedByCaller && !HasFailed) || !MayBeRetried(new RpcException(attempt.GetStatus()))) ? attempt : null);

    /// <param name="holder">What the application holds of the call, which stays until it has the headers.</param>
    public abstract Task<Metadata> GetResponseHeadersAsync(object holder);

    public Status GetStatus()
    {
        var attempt = Attempt;
        return Told is { } told ? told.GetStatus()
            : Attempt != attempt ? GetStatus() // it is the end, perhaps
            : IsToldDisposed ? CallErrors.Disposed
            : attempt is { IsAbandoned: false } && !HasFailed ? throw CallErrors.NoStatus
            : EndedByToken is null && IsPoolDisposed && attempt is null ? CallErrors.Disposed
            : EndedByToken is not null || IsEndedByCaller ? EndedByCallerWith
            : throw CallErrors.NoStatus;
    }

    public Metadata GetTrailers() => Told is { } told ? told.GetTrailers() : throw CallErrors.NoTrailers;

    public virtual void Dispose()
    {
        Volatile.Write(ref _isDisposed, true);
        Interlocked.MemoryBarrier(); // whoever starts an attempt looks whether this is so
    }

    /// <summary>The channel has ended an attempt.</summary>
    public void TraceEnd(CallAttempt attempt, Exception? failure) => Given.Trace?.AttemptEnded(attempt, Traced(failure));

    // Where the channel throws OperationCanceledException its caller may have ended the call by a deadline.
    protected Exception? Traced(Exception? failure) =>
        failure is OperationCanceledException && IsEndedByCaller ? new RpcException(EndedByCallerWith) : failure;

    public virtual void Reclaim()
    {
    }

    /// <summary>What the debugger shows of a call object, as that of a bare channel gives it.</summary>
    public IEnumerator<KeyValuePair<string, object>> GetEnumerator()
    {
        if (Channel is { } channel)
        {
            yield return new KeyValuePair<string, object>("Channel", channel.Channel);
        }

        yield return new KeyValuePair<string, object>("Method", method);
        if (Kind == MethodType.Unary)
        {
            yield return new KeyValuePair<string, object>("Request", request!);
        }
    }

    IEnumerator IEnumerable.GetEnumerator() => GetEnumerator();

    /// <summary>Whether this failure may be followed by another attempt: a predicate of the user's is not asked.</summary>
    public bool MayBeRetried(Exception failure) => MayMoveOn(failure) && (!Plan.OnFailureOnly || CallFaults.Judge(failure).IsTransient);

    /// <summary>The same of a failure that a reader has met: what the attempt ends with can say more.</summary>
    public bool MayMoveOn(Exception failure) => (Plan.Pipeline is not null || WaitsForReady(failure)) && MayBeSentAgain(failure);

    public bool WaitsForReady(Exception? failure) => Options.IsWaitForReady && failure is not null && CallFaults.IsNotConnected(failure);

    /// <summary>
    /// Law 7: at most once, unless told. And not if the application has seen something of the last attempt, nor if the server has asked
    /// not to (gRFC A6), nor if the budget of the pool is spent, which what never left does not burden.
    /// </summary>
    public bool MayBeSentAgain(Exception? outcome) =>
        !IsDisposed
        && !IsPoolDisposed
        && Attempt is not { IsCommitted: true }
        && outcome is not NoChannelException { IsTransient: false }
        && !(outcome is not null && CallFaults.Pushback(outcome) is { } pushback && (pushback == Timeout.InfiniteTimeSpan || EndsWithin(pushback)))
        && ((outcome is not null && CallFaults.Judge(outcome).NeverLeft)
            || (IsIdempotent && environment.Budget is not { AllowsRetry: false }));

    public bool MayBeHedged => !IsDisposed && !HedgesNoMore && environment.Budget is not { AllowsRetry: false };

    /// <summary>How long to wait before the next attempt where the call knows better than a backoff; null where it does not.</summary>
    public TimeSpan? DelayBeforeRetry(Exception? outcome, int attemptNumber) =>
        outcome is not null && CallFaults.Pushback(outcome) is { } pushback ? pushback
        : attemptNumber == 0 && Picker.HasReady(otherThan: Channel) ? TimeSpan.Zero
        : null;

    /// <summary>Whether the deadline of the call comes before the end of this delay.</summary>
    public bool EndsWithin(TimeSpan delay) =>
        GivenOptions.DueTime(Options.Deadline, TimeProvider) is var left && left != Timeout.InfiniteTimeSpan && left <= delay;

    public bool TryAbandon() => Attempt is not { } attempt || attempt.TryAbandon();

    protected void SetAttempt(CallAttempt attempt)
    {
        HasFailed = false;
        Interlocked.Exchange(ref _attempt, attempt); // and a fence: whoever disposes the call looks for the attempt afterwards
    }

    protected virtual void SetCompleted(bool isCancelled)
    {
        IsCancelled = isCancelled;
        Volatile.Write(ref _isCompleted, true);
        Interlocked.MemoryBarrier(); // whoever begins to wait looks whether this is so
    }
}

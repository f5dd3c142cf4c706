using System.Diagnostics.CodeAnalysis;
using Grpc.Core;

namespace PoolingInvoker;

/// <summary>
/// When a call may be sent again. Law 7: at most once, unless told. What never left is always sent again, what may have been processed
/// only if its method is idempotent, and nothing of which the application has seen something.
/// </summary>
internal abstract class CallRules<TRequest, TResponse>(CallEnvironment environment, Method<TRequest, TResponse> method, GivenOptions given) : IRetryableCall
{
    public abstract MethodType Kind { get; }

    public CallEnvironment Environment => environment;

    public CallPlan Plan => environment.PlanOf(method);

    public Method<TRequest, TResponse> Method => method;

    public GivenOptions Given => given;

    public CallOptions Options => given.Options;

    public TimeProvider TimeProvider => environment.Pool.TimeProvider;

    public bool IsStream => Kind != MethodType.Unary;

    public bool HasOneResponse => Kind is MethodType.Unary or MethodType.ClientStreaming;

    public bool IsHedged => Plan.Hedging is not null && Kind == MethodType.Unary && !Options.IsWaitForReady && IsIdempotent;

    public abstract bool IsDisposed { get; }

    public bool IsPoolDisposed => environment.Pool.IsDisposed;

    /// <summary>Whether the caller has ended the call, by Dispose, its token or its deadline.</summary>
    public bool IsEndedByCaller =>
        IsDisposed || Options.CancellationToken.IsCancellationRequested || CallCompletion.DueTime(Options.Deadline, TimeProvider) == TimeSpan.Zero;

    /// <summary>The channel of the current attempt, or of the last one.</summary>
    public abstract PooledChannel? Channel { get; }

    /// <summary>Whether the application has seen something of the current attempt, or given it what cannot be given again.</summary>
    public abstract bool IsCommitted { get; }

    protected abstract bool HedgesNoMore { get; }

    private bool IsIdempotent => environment.IsIdempotent(Plan, method, typeof(TRequest), typeof(TResponse));

    /// <summary>Whether the first failure is to be shown to the pipeline at all.</summary>
    public bool MayBeRetried(Exception failure) =>
        Plan is { Pipeline: not null, OnFailureOnly: true } && CallFaults.IsTransient(failure) && MayBeSentAgain(failure);

    /// <summary>Whether the end of an attempt may be followed by another one: a predicate of the user's is not asked.</summary>
    public bool MayFollow(Exception failure) => MayMoveOn(failure) && (!Plan.OnFailureOnly || CallFaults.IsTransient(failure));

    /// <summary>Whether a failure that a reader or writer has met may be followed by another attempt.</summary>
    public bool MayMoveOn(Exception failure) => (Plan.Pipeline is not null || WaitsForReady(failure)) && MayBeSentAgain(failure);

    public bool WaitsForReady(Exception? failure) => Options.IsWaitForReady && failure is not null && CallFaults.IsNotConnected(failure);

    /// <summary>
    /// Law 7: at most once, unless told. And not if the application has seen something of the last attempt, nor if the server has asked
    /// not to (gRFC A6), nor if the budget of the pool is spent, which what never left does not burden.
    /// </summary>
    public bool MayBeSentAgain(Exception? outcome) =>
        !IsDisposed
        && !IsPoolDisposed
        && !IsCommitted
        && outcome is not NoChannelException { IsTransient: false }
        && !(outcome is not null && CallFaults.Pushback(outcome) is { } pushback && (pushback == Timeout.InfiniteTimeSpan || EndsWithin(pushback)))
        && ((outcome is not null && CallFaults.NeverLeft(outcome)) || (IsIdempotent && environment.Budget is not { AllowsRetry: false }));

    public bool MayBeHedged => !IsDisposed && !HedgesNoMore && environment.Budget is not { AllowsRetry: false };

    public TimeSpan? DelayBeforeRetry(Exception? outcome, int attemptNumber) =>
        outcome is not null && CallFaults.Pushback(outcome) is { } pushback ? pushback
        : attemptNumber == 0 && environment.Pool.HasReady(otherThan: Channel) ? TimeSpan.Zero
        : null;

    public bool EndsWithin(TimeSpan delay) =>
        CallCompletion.DueTime(Options.Deadline, TimeProvider) is var left && left != Timeout.InfiniteTimeSpan && left <= delay;

    /// <summary>The budget of the pool hears of the end of each attempt.</summary>
    protected void CountOutcome(Exception? failure)
    {
        if (failure is null)
        {
            environment.Budget?.Succeeded();
        }
        else if (environment.Budget is { } budget && IsIdempotent
            && (CallFaults.Judge(failure) is { IsTransient: true, Fate: RequestFate.MayHaveBeenProcessed } || CallFaults.Pushback(failure) == Timeout.InfiniteTimeSpan))
        {
            budget.Failed();
        }
    }

    /// <summary>What a failure is to the call. One that shows that the pool was disposed under it may be Internal on the channel.</summary>
    [return: NotNullIfNotNull(nameof(failure))]
    protected Exception? AsEndOfCall(Exception? failure) =>
        failure is RpcException { StatusCode: not StatusCode.Cancelled, Status.DebugException: ObjectDisposedException cause } && IsPoolDisposed && !IsEndedByCaller
            ? new RpcException(CallErrors.NoChannel(cause).Status)
            : failure;
}

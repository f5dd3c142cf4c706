using System.Collections;
using System.Runtime.ExceptionServices;
using Grpc.Core;

namespace PoolingInvoker;

/// <summary>
/// One RPC: attempts on leased channels, one after the other, until one commits or no more are made. The first attempt runs here; what
/// comes after it is up to <see cref="RetryLoop{TRequest, TResponse}"/>, which alone starts further attempts.
/// </summary>
/// <remarks>
/// An attempt is <i>decided</i> when it has succeeded or failed. The call is <i>completed</i> when no more attempts are made: then it has
/// ended with an attempt, or with an <see cref="EndedCall"/>. A lease is <i>released</i> when the channel has ended its call.
/// </remarks>
internal abstract class PooledCall<TRequest, TResponse>(CallEnvironment environment, Method<TRequest, TResponse> method, GivenOptions given, TRequest? request)
    : CallRules<TRequest, TResponse>(environment, method, given), IEnumerable<KeyValuePair<string, object>>
    where TRequest : class
    where TResponse : class
{
    private RetryLoop<TRequest, TResponse>? _loop;
    private TaskCompletionSource? _changed; // completes when there is another attempt, or the call is completed; made when somebody waits
    private Task<TResponse>? _response;
    private Task<Metadata>? _headers;
    private bool _isDisposed;
    private bool _isCompleted;
    private bool _isCancelled;

    public TRequest? Request => request;

    public override bool IsDisposed => Volatile.Read(ref _isDisposed);

    public bool IsCompleted => Volatile.Read(ref _isCompleted);

    /// <summary>The current attempt, or what the call has ended with. Null before the first attempt, and for a moment between two.</summary>
    public abstract object? Attempt { get; }

    /// <summary>What the token of a read or a write has ended the call with, while there was no attempt that it could end.</summary>
    public virtual Status? EndedByToken => null;

    protected Task<TResponse>? Response => _response;

    protected abstract InnerCall? Inner { get; }

    /// <summary>Whether the loop has ended the current attempt, which says nothing of the call: another one may come.</summary>
    protected abstract bool IsEndedByLoop { get; }

    protected abstract bool HasFailed { get; }

    /// <summary>Whether a reader or writer was told that call or pool is disposed: a moment may pass until the channel has ended the call.</summary>
    protected bool IsToldDisposed { get; set; }

    protected override bool HedgesNoMore => _loop is { HedgesNoMore: true };

    /// <summary>Starts an attempt, which is the current one from now on. What the channel throws at once is thrown, and the lease is back by then.</summary>
    /// <returns>Ends when the attempt is decided.</returns>
    public abstract Task<TResponse> StartAttempt(AttemptLease lease, int previousAttempts);

    /// <returns>What that is to the call.</returns>
    public abstract Exception? AttemptDecided(Exception? failure);

    /// <summary>Makes way for another attempt. False if the application has seen something of this one.</summary>
    public abstract bool TryAbandon();

    /// <summary>Ends the current attempt, but not the call.</summary>
    public abstract void EndAttempt();

    /// <summary>The attempt is the call from now on. False if it has been abandoned in favour of another one.</summary>
    protected abstract bool TryCommit(object attempt);

    /// <param name="end">An attempt, or an <see cref="EndedCall"/>.</param>
    protected abstract void EndWith(object end);

    protected abstract void DisposeAttempt();

    /// <summary>Takes a lease of a channel that has room, without waiting.</summary>
    protected abstract bool TryLease(out AttemptLease lease);

    /// <summary>Starts the call. What a bare channel would throw at once is thrown here.</summary>
    public Task<TResponse> Start()
    {
        // A bare channel checks it when it starts the call, which may be later here.
        if (Options.Deadline is { Kind: not DateTimeKind.Utc } deadline && deadline != DateTime.MaxValue && deadline != DateTime.MinValue)
        {
            throw new InvalidOperationException("Deadline must have a kind DateTimeKind.Utc or be equal to DateTime.MaxValue or DateTime.MinValue.");
        }

        Environment.Pool.ThrowIfDisposed();
        Task<TResponse>? first = null;
        if (Plan.OnFailureOnly && !IsHedged && !Options.IsWaitForReady && TryLease(out var lease))
        {
            try
            {
                first = StartAttempt(lease, previousAttempts: 0);
            }
            catch (ObjectDisposedException)
            {
                // A disposed channel took nothing. The loop leases another one.
            }
        }

        var response = first is null ? RunLoopAsync(failure: null) : RunAsync(first);
        Volatile.Write(ref _response, response);
        Interlocked.MemoryBarrier(); // it may have been completed meanwhile
        ObserveCancelled();
        return response;
    }

    /// <summary>What the debugger shows of a call object, as that of a bare channel gives it.</summary>
    public IEnumerator<KeyValuePair<string, object>> GetEnumerator()
    {
        if (Channel is { } channel)
        {
            yield return new KeyValuePair<string, object>("Channel", channel.Channel);
        }

        yield return new KeyValuePair<string, object>("Method", Method);
        if (Kind == MethodType.Unary)
        {
            yield return new KeyValuePair<string, object>("Request", Request!);
        }
    }

    IEnumerator IEnumerable.GetEnumerator() => GetEnumerator();

    public Status GetStatus() => Told is { } told ? told.GetStatus() : EndedByCallerWith ?? throw CallErrors.NoStatus;

    public Metadata GetTrailers() => Told is { } told ? told.GetTrailers() : throw CallErrors.NoTrailers;

    /// <param name="holder">What the application holds of the call, which stays until it has the headers.</param>
    public Task<Metadata> GetResponseHeadersAsync(object holder)
    {
        if (_headers is null)
        {
            // Whoever has seen why there are no headers need not look at the response.
            _headers = (IsCompleted || IsCommitted) && Inner?.ResponseHeadersAsync is { IsCompleted: true } headers ? headers : ReadHeadersAsync(holder);
            _headers.ContinueWith(
                static (failed, call) =>
                {
                    _ = failed.Exception;
                    ((PooledCall<TRequest, TResponse>)call!)._response?.Observe();
                },
                this,
                CancellationToken.None,
                TaskContinuationOptions.OnlyOnFaulted | TaskContinuationOptions.ExecuteSynchronously,
                TaskScheduler.Default);
        }

        return _headers;
    }

    public void Dispose()
    {
        Volatile.Write(ref _isDisposed, true);
        Interlocked.MemoryBarrier(); // whoever publishes an attempt looks whether this is so
        Volatile.Read(ref _loop)?.Stop();
        if (_response is { IsCompletedSuccessfully: false } response)
        {
            response.Observe();
        }

        DisposeAttempt();
    }

    /// <summary>Completes when there is another attempt than this one, or the call is completed.</summary>
    protected Task ChangedAsync(object? attempt)
    {
        var changed = Volatile.Read(ref _changed);
        if (changed is null)
        {
            var created = new TaskCompletionSource(TaskCreationOptions.RunContinuationsAsynchronously);
            changed = Interlocked.CompareExchange(ref _changed, created, null) ?? created;
        }

        return !IsCompleted && (Attempt is not { } current || current == attempt) ? changed.Task : Task.CompletedTask;
    }

    protected void AttemptStarted() => Interlocked.Exchange(ref _changed, null)?.SetResult();

    // What the application is told of: what the call has ended with, or is; and before that the current attempt, if the caller has ended the
    // call, or if no other attempt may follow the end of this one. Each of these the caller can know before the loop has seen it.
    private InnerCall? Told
    {
        get
        {
            // Statement order is important: what a call has ended with is there before it is completed.
            var isFinal = IsCompleted || IsCommitted;
            return Inner is not { } inner ? null
                : isFinal ? inner
                : !IsEndedByLoop && inner.IsOver() && ((IsEndedByCaller && !HasFailed) || !MayFollow(new RpcException(inner.GetStatus()))) ? inner
                : null;
        }
    }

    // What a call ends with that the caller has ended while there was no attempt under way.
    private Status? EndedByCallerWith =>
        IsToldDisposed ? CallErrors.Disposed :
        Inner is not null && !HasFailed && !IsEndedByLoop ? null
        : EndedByToken is { } byToken ? byToken
        : IsDisposed || (IsPoolDisposed && Inner is null) ? CallErrors.Disposed
        : Options.CancellationToken.IsCancellationRequested ? CallErrors.Cancelled(Options.CancellationToken)
        : IsEndedByCaller ? CallErrors.DeadlineExceeded(_loop?.LastFailure)
        : null;

    // The fast path: one attempt, started already, and nothing of Polly.
    private async Task<TResponse> RunAsync(Task<TResponse> first)
    {
        Exception failure;
        try
        {
            var response = await first.ConfigureAwait(false);
            AttemptDecided(failure: null);
            Complete(failure: null);
            return response;
        }
#pragma warning disable CA1031 // Thrown below, if no other attempt follows.
        catch (Exception exception)
#pragma warning restore CA1031
        {
            failure = AttemptDecided(exception)!;
        }

        if (MayBeRetried(failure))
        {
            return await RunLoopAsync(failure).ConfigureAwait(false);
        }

        Complete(failure);
        return ThrowOr(default, failure);
    }

    private async Task<TResponse> RunLoopAsync(Exception? failure)
    {
        var loop = new RetryLoop<TRequest, TResponse>(this);
        Volatile.Write(ref _loop, loop);
        (var response, failure) = await loop.RunAsync(failure).ConfigureAwait(false);
        Complete(failure);
        return ThrowOr(response, failure);
    }

    // A stream shows its failures to who reads it.
    private TResponse ThrowOr(TResponse? response, Exception? failure)
    {
        if (failure is not null && HasOneResponse)
        {
            ExceptionDispatchInfo.Throw(failure);
        }

        return response!;
    }

    // With the attempt that ended with this failure, wherever a pipeline may have kept it; or else with what a pipeline made of it.
    private void Complete(Exception? failure)
    {
        if (failure is not null)
        {
            EndWith(CallFaults.AttemptOf(failure) ?? new EndedCall(failure));
        }
        else if (Attempt is null)
        {
            EndWith(new EndedCall(HasOneResponse ? null : new RpcException(new Status(StatusCode.Internal, "The resilience pipeline made no attempt."))));
        }

        _isCancelled = failure is OperationCanceledException or RpcException { StatusCode: StatusCode.Cancelled or StatusCode.DeadlineExceeded };
        Volatile.Write(ref _isCompleted, true);
        Interlocked.Exchange(ref _changed, null)?.SetResult();
        Completed();
        ObserveCancelled();
    }

    protected virtual void Completed()
    {
    }

    // Whoever has cancelled a call, or let its deadline pass, need not look at how it ended: so it is on a bare channel.
    private void ObserveCancelled()
    {
        if (IsCompleted && _isCancelled)
        {
            Volatile.Read(ref _response)?.Observe();
        }
    }

    private async Task<Metadata> ReadHeadersAsync(object holder)
    {
        object? attempt = null;
        while (true)
        {
            await ChangedAsync(attempt).ConfigureAwait(false);
            var isCompleted = IsCompleted;
            attempt = Attempt;
            if (Inner is not { } inner)
            {
                continue;
            }

            try
            {
                var headers = await inner.ResponseHeadersAsync.ConfigureAwait(false);
                if (isCompleted || (!await IsRefusedAsync(attempt!).ConfigureAwait(false) && TryCommit(attempt!)))
                {
                    GC.KeepAlive(holder);
                    return headers;
                }
            }
#pragma warning disable CA1031 // The loop sees this failure too, and judges it: it is one of the whole attempt.
            catch when (!isCompleted && !IsCommitted)
#pragma warning restore CA1031
            {
            }
        }
    }

    // A server that refuses a call in its headers (Trailers-Only) has not answered it: another attempt may. The channel gives the headers
    // first, and then the failure.
    private async ValueTask<bool> IsRefusedAsync(object attempt)
    {
        if (!HasOneResponse || IsCommitted || Plan.Pipeline is null || ResponseOf(attempt) is not { } response)
        {
            return false;
        }

        // Where that shows too late the caller has the headers of a refusal and then its status, as on a bare channel.
        await RefusalDelivery.OverAsync(Channel?.Transport?.Refusals, response).ConfigureAwait(false);
        if (response is not { IsFaulted: true, Exception.InnerException: { } failure })
        {
            return false;
        }

        Judge(attempt, failure); // the loop may not have come to it yet
        return MayMoveOn(failure);
    }

    protected abstract void Judge(object attempt, Exception failure);

    protected abstract Task<TResponse>? ResponseOf(object attempt);
}

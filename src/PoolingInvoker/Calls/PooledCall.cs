using System.Diagnostics.CodeAnalysis;
using System.Runtime.CompilerServices;

namespace PoolingInvoker;

/// <summary>
/// One RPC: attempts on leased channels, one after the other, until one commits or no more are made. The first attempt runs here; what
/// comes after it is up to <see cref="RetryLoop{TResponse}"/>, which alone starts further attempts.
/// </summary>
/// <remarks>
/// An attempt is <i>decided</i> when it has succeeded or failed. The call is <i>completed</i> when no more attempts are made: then it has
/// ended with an attempt, or with an <see cref="EndedCall"/>. A lease is <i>released</i> when the channel has ended its call.
/// </remarks>
internal abstract class PooledCall<TResponse>(CallEnvironment environment, IMethod method, GivenOptions given, object? request)
    : PooledCall(environment, method, given, request)
    where TResponse : class
{
    private RetryLoop<TResponse>? _loop; // made by whoever needs it first, and dropped when no more attempts are made
    private Task<TResponse>? _response;

    protected override Exception? LastFailure => _loop?.LastFailure;
    protected RetryLoop<TResponse> Loop => Volatile.Read(ref _loop) ?? NewLoop();
    private CallAttempt<TResponse> Current => (CallAttempt<TResponse>)Attempt!;

    protected abstract CallAttempt<TResponse> NewAttempt(PooledChannel channel, object lease);
    protected abstract void StartOn(CallInvoker channel, CallAttempt<TResponse> attempt, CallOptions options);

    /// <summary>Starts the call. What a bare channel would throw at once is thrown here.</summary>
    public Task<TResponse> Start()
    {
        using var traced = Given.Trace?.Enter();
        try
        {
            return StartUntraced();
        }
        catch (Exception exception) when (Given.Trace is not null)
        {
            Given.Trace.Completed(exception, Channel?.Id, Channel?.Endpoint, goesOnWith: null);
            throw;
        }
    }

    private Task<TResponse> StartUntraced()
    {
        // A bare channel checks it when it starts the call, which may be later here.
        if (Options.Deadline is { Kind: not DateTimeKind.Utc } deadline && deadline != DateTime.MaxValue && deadline != DateTime.MinValue)
        {
            throw new InvalidOperationException("Deadline must have a kind DateTimeKind.Utc or be equal to DateTime.MaxValue or DateTime.MinValue.");
        }

        Pool.State.ThrowIfDisposed();
        ChannelLease? lease = null; // a unary call stands for its own
        var channel = !Plan.OnFailureOnly || IsHedged || Options.IsWaitForReady ? null
            : LeaseKind == LeaseKind.Call ? Picker.TryLease(this, Given.Key)
            : Picker.TryLease(new LeaseRequest(LeaseKind, Key: Given.Key), out lease) ? lease.Pooled
            : null;
        if (channel is not null)
        {
            try
            {
                Publish(StartAttempt(channel, lease ?? (object)this, previousAttempts: 0));
            }
            catch (ObjectDisposedException)
            {
                // A disposed channel took nothing. The loop leases another one.
            }
        }

        var response = RunAsync();
        if (HasOneResponse) // else it does not fail
        {
            Volatile.Write(ref _response, response);
            Interlocked.MemoryBarrier(); // it may have been completed meanwhile
            ObserveCancelled();
        }

        return response;
    }

    /// <summary>Starts an attempt. What the channel throws at once is thrown, and the lease is back by then.</summary>
    public CallAttempt<TResponse> StartAttempt(PooledChannel channel, object lease, int previousAttempts)
    {
        var attempt = NewAttempt(channel, lease);
        try
        {
            using var traced = Given.Trace?.AttemptBegins(attempt, channel.Id, channel.Endpoint, IsHedged);
            StartOn(channel.CallInvoker, attempt, Given.ForAttempt(channel, previousAttempts));
            channel.Breakable?.Add(attempt);
            return attempt;
        }
        catch (Exception exception)
        {
            // A channel that is disposed was disposed behind the pool's back.
            attempt.Release(exception is ObjectDisposedException ? LeaseOutcome.ChannelFailed : LeaseOutcome.Unknown);
            TraceEnd(attempt, exception);
            throw;
        }
    }

    public virtual void Publish(CallAttempt<TResponse> attempt)
    {
        SetAttempt(attempt);
        Volatile.Read(ref _loop)?.AttemptChanged();
        if (IsDisposed)
        {
            attempt.DisposeQuietly();
        }
    }

    /// <returns>What the failure is to the call.</returns>
    public Exception? AttemptDecided(CallAttempt attempt, Exception? failure)
    {
        HasFailed = failure is not null && attempt == Attempt;
        if (HasOneResponse)
        {
            attempt.Release(failure, this); // a stream of responses ends later than its first message
            TraceEnd(attempt, failure);
        }

        if (failure is null)
        {
            Environment.Budget?.Succeeded();
        }
        else if (attempt.Judge(failure, this) is var fault && Environment.Budget is { } budget && IsIdempotent
            && (fault is { IsTransient: true, NeverLeft: false } || CallFaults.Pushback(failure) == Timeout.InfiniteTimeSpan))
        {
            budget.Failed();
        }

        return AsEndOfCall(failure, attempt);
    }

    public virtual bool TryCommit(CallAttempt attempt) => attempt == Attempt && attempt.TryCommit();

    public override Task<Metadata> GetResponseHeadersAsync(object holder)
    {
        if (Volatile.Read(ref _loop)?.Headers is { } asked)
        {
            return asked;
        }

        var headers = Final?.ResponseHeadersAsync is { IsCompleted: true } final ? final : Loop.Headers = ReadHeadersAsync(holder);

        // Whoever has seen why there are no headers need not look at the response.
        headers.ContinueWith(
            static (failed, call) =>
            {
                _ = failed.Exception;
                ((PooledCall<TResponse>)call!)._response?.Observe();
            },
            this,
            CancellationToken.None,
            TaskContinuationOptions.OnlyOnFaulted | TaskContinuationOptions.ExecuteSynchronously,
            TaskScheduler.Default);
        return headers;
    }

    public override void Dispose()
    {
        base.Dispose();
        Volatile.Read(ref _loop)?.Stop();
        _response?.Observe();
        Attempt?.Dispose();
    }

    /// <summary>
    /// What a failure is to the call. A response that is ended from this side may stumble over that on its channel: then the status of the attempt
    /// counts. A stream whose pool was disposed may be Internal there.
    /// </summary>
    [return: NotNullIfNotNull(nameof(failure))]
    protected Exception? AsEndOfCall(Exception? failure, CallAttempt attempt) =>
        failure is not RpcException { StatusCode: not StatusCode.Cancelled, Status.DebugException: { } cause } || !(IsPoolDisposed || IsEndedByCaller) ? failure
        : HasOneResponse && attempt.IsOver() && attempt.GetStatus() is { StatusCode: StatusCode.Cancelled } status ? EndOf(attempt, status)
        : cause is ObjectDisposedException && !IsEndedByCaller ? new RpcException(CallErrors.Disposed)
        : failure;

    private RpcException EndOf(CallAttempt attempt, Status status)
    {
        var end = new RpcException(status);
        attempt.Judge(end, this); // so that the call has ended with this attempt, which its writer asks
        return end;
    }

    // The fast path is an attempt that is started already, and nothing of Polly. A stream shows its failures to who reads it.
    [AsyncMethodBuilder(typeof(FailingTaskMethodBuilder<>))]
    private async Task<TResponse> RunAsync()
    {
        Exception? failure = null;
        if (Attempt is not null)
        {
            await ((Task)Current.Deciding).ConfigureAwait(ConfigureAwaitOptions.SuppressThrowing);
            failure = AttemptDecided(Current, Current.Failure);
        }

        TResponse? response;
        if (failure is null ? Attempt is null : MayBeRetried(failure))
        {
            (response, failure) = await Loop.RunAsync(failure).ConfigureAwait(false);
        }
        else
        {
            response = failure is null ? Current.Response : null;
        }

        Complete(failure);
        return failure is not null && HasOneResponse ? await new FailureOf<TResponse>(failure) : response!;
    }

    // No more attempts are made. The call has ended with the attempt that ended with this failure, wherever a pipeline may have kept it; or
    // else with what a pipeline made of it. A stream of responses that is committed goes on.
    private void Complete(Exception? failure)
    {
        if (failure is not null && CallFaults.AttemptOf(failure) is CallAttempt attempt)
        {
            SetAttempt(attempt);
        }
        else if (failure is not null && (TryAbandon() || HasOneResponse))
        {
            Attempt?.End();
            SetAttempt(new EndedCall(failure, Channel));
        }
        else if (Attempt is null)
        {
            var nothing = new RpcException(new Status(StatusCode.Internal, "The resilience pipeline made no attempt."));
            SetAttempt(new EndedCall(HasOneResponse ? null : nothing, channel: null));
        }

        SetCompleted(isCancelled: failure is OperationCanceledException or RpcException { StatusCode: StatusCode.Cancelled or StatusCode.DeadlineExceeded });
        Volatile.Read(ref _loop)?.AttemptChanged();
        ObserveCancelled();
        if (Given.Trace is { } trace)
        {
            var goesOn = !HasOneResponse && Attempt is { IsCommitted: true } and not EndedCall;
            trace.Completed(Traced(failure), Channel?.Id, Channel?.Endpoint, goesOn ? Attempt : null);
        }

        if (Volatile.Read(ref _loop) is { Headers: null })
        {
            _loop = null; // a stream may last long
        }
    }

    private RetryLoop<TResponse> NewLoop()
    {
        var loop = new RetryLoop<TResponse>(this);
        return Interlocked.CompareExchange(ref _loop, loop, null) ?? loop;
    }

    // Whoever has cancelled a call, or let its deadline pass, need not look at how it ended: so it is on a bare channel.
    private void ObserveCancelled()
    {
        if (IsCompleted && IsCancelled)
        {
            Volatile.Read(ref _response)?.Observe();
        }
    }

    [AsyncMethodBuilder(typeof(FailingTaskMethodBuilder<>))]
    private async Task<Metadata> ReadHeadersAsync(object holder)
    {
        CallAttempt? attempt = null;
        while (true)
        {
            if (!HasOtherThan(attempt))
            {
                await Loop.ChangedAsync(attempt).ConfigureAwait(false);
            }

            var isCompleted = IsCompleted;
            attempt = Attempt!;
            var headers = attempt.ResponseHeadersAsync;
            await ((Task)headers).ConfigureAwait(ConfigureAwaitOptions.SuppressThrowing);

            // The loop sees a failure too, and judges it: it is one of the whole attempt.
            if (isCompleted || (headers.IsCompletedSuccessfully
                ? !await IsRefusedAsync(attempt).ConfigureAwait(false) && TryCommit(attempt)
                : Attempt is { IsCommitted: true }))
            {
                GC.KeepAlive(holder);
                headers = attempt.ResponseHeadersAsync;
                return headers.Failure() is { } failure ? await new FailureOf<Metadata>(failure) : await headers.ConfigureAwait(false);
            }
        }
    }

    // A server that refuses a call in its headers (Trailers-Only) has not answered it: another attempt may. The channel gives the headers
    // first, and then the failure.
    private async ValueTask<bool> IsRefusedAsync(CallAttempt attempt)
    {
        if (!HasOneResponse || attempt.IsCommitted || Plan.Pipeline is null || attempt is not CallAttempt<TResponse> decided)
        {
            return false;
        }

        // Where that shows too late the caller has the headers of a refusal and then its status, as on a bare channel.
        await RefusalDelivery.OverAsync(attempt.Channel?.Transport?.Refusals, decided.Deciding).ConfigureAwait(false);
        if (decided.Failure is not { } failure)
        {
            return false;
        }

        attempt.Judge(failure, this); // the loop may not have come to it yet
        return MayBeRetried(failure);
    }
}

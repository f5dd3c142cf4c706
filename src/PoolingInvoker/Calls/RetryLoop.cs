using Polly;
using Polly.CircuitBreaker;
using Polly.Timeout;

namespace PoolingInvoker;

/// <summary>
/// The attempts of a call after its first one, or all of them: waits for leases, goes through the pipeline, and says how it ended. Whoever
/// waits for another attempt waits here.
/// </summary>
internal sealed class RetryLoop<TResponse>(PooledCall<TResponse> call)
    where TResponse : class
{
    private static readonly ResiliencePropertyKey<CallAttempt<TResponse>> Hedge = new("PoolingInvoker.Attempt");
    private static readonly TimeSpan FirstPause = TimeSpan.FromMilliseconds(50);

    private TaskCompletionSource? _changed; // made when somebody waits
    private CancellationTokenSource? _stop; // of a wait for a lease, a backoff, a strategy; null before the first of them
    private Outcome<TResponse> _last;
    private bool _hasTried; // or has shown the pipeline the attempt that was made outside
    private long _lastEnded;
    private CallAttempt<TResponse>? _lastHedge;
    private int _previousAttempts; // that may have reached a server, or of a hedged call all

    public Exception? LastFailure { get; private set; }
    public Task<Metadata>? Headers { get; set; } // once the application has asked for them
    private ChannelPool Pool => call.Pool;
    private CancellationToken StopToken => _stop!.Token;

    public void Stop() => Volatile.Read(ref _stop)?.CancelQuietly(); // a strategy of the user's may have its token

    /// <summary>Completes when there is another attempt than this one, or the call is completed.</summary>
    public Task ChangedAsync(CallAttempt? attempt)
    {
        if (Volatile.Read(ref _changed) is not { } changed)
        {
            var created = new TaskCompletionSource(TaskCreationOptions.RunContinuationsAsynchronously);
            changed = Interlocked.CompareExchange(ref _changed, created, null) ?? created;
        }

        return call.HasOtherThan(attempt) ? Task.CompletedTask : changed.Task;
    }

    public void AttemptChanged() => Interlocked.Exchange(ref _changed, null)?.SetResult();

    /// <param name="failure">What the attempt that was made before has ended with, if there was one.</param>
    public async Task<(TResponse? Response, Exception? Failure)> RunAsync(Exception? failure)
    {
        Interlocked.Exchange(ref _stop, new CancellationTokenSource()); // and a fence: the caller may not have seen it
        var context = ResilienceContextPool.Shared.Get(call.Method.FullName, continueOnCapturedContext: false, StopToken);
        CallResilience.Attach(context, call);
        try
        {
            var due = GivenOptions.DueTime(call.Options.Deadline, call.TimeProvider);
            using var timer = due > TimeSpan.Zero
                ? call.TimeProvider.CreateTimer(static loop => ((RetryLoop<TResponse>)loop!).Stop(), this, due, Timeout.InfiniteTimeSpan)
                : null;
            using var registration = call.Options.CancellationToken.UnsafeRegister(static loop => ((RetryLoop<TResponse>)loop!).Stop(), this);
            if (call.IsDisposed || due == TimeSpan.Zero)
            {
                Stop();
            }

            await (call.IsHedged ? HedgeAsync(context) : RetryAsync(context, failure)).ConfigureAwait(false);
        }
        catch (Exception exception) // Whatever throws here, such as a callback of the user's in the pipeline, the call ends with that.
        {
            _last = Outcome.FromException<TResponse>(exception);
        }
        finally
        {
            ResilienceContextPool.Shared.Return(context);
        }

        return (_last.Result, _last.Exception is { } last && CallFaults.AttemptOf(last) is null ? Explain(last) : _last.Exception);
    }

    private async Task RetryAsync(ResilienceContext context, Exception? failure)
    {
        _lastEnded = call.TimeProvider.GetTimestamp();
        if (failure is not null)
        {
            (_last, LastFailure) = (Outcome.FromException<TResponse>(failure), failure);
        }
        else if (call.Plan.OnFailureOnly)
        {
            await TryAsync(StopToken).ConfigureAwait(false);
            failure = _last.Exception;
        }

        if (call.Plan.Pipeline is { } pipeline && (!call.Plan.OnFailureOnly || (failure is not null && call.MayBeRetried(failure))))
        {
            _last = await pipeline.Value.ExecuteOutcomeAsync(
                static (context, loop) => loop.ExecuteAsync(context.CancellationToken), context, this).ConfigureAwait(false);
        }
    }

    // What the pipeline takes for an attempt. It is none if the last one may not be followed by another.
    private async ValueTask<Outcome<TResponse>> ExecuteAsync(CancellationToken cancellationToken)
    {
        if (!_hasTried && _last.Exception is not null)
        {
            _hasTried = true;
            return _last;
        }

        if (_hasTried)
        {
            // The server that asks for a pause gets it, whatever the delay of the pipeline was.
            if (_last.Exception is { } last && CallFaults.Pushback(last) is { } pushback && call.MayBeSentAgain(last)
                && pushback - call.TimeProvider.GetElapsedTime(_lastEnded) is var rest && rest > TimeSpan.Zero)
            {
                await Task.Delay(rest, call.TimeProvider, cancellationToken).ConfigureAwait(ConfigureAwaitOptions.SuppressThrowing);
            }

            if (cancellationToken.IsCancellationRequested)
            {
                return Outcome.FromException<TResponse>(new OperationCanceledException(cancellationToken));
            }

            if (!call.MayBeSentAgain(_last.Exception) || !call.TryAbandon())
            {
                return _last;
            }

            Pool.State.Metrics.Tally.CountRetry(isHedge: false);
            _previousAttempts += _last.Exception is { } failure && CallFaults.Judge(failure).NeverLeft ? 0 : 1;
        }

        _hasTried = true;
        await TryAsync(cancellationToken).ConfigureAwait(false);
        _lastEnded = call.TimeProvider.GetTimestamp();
        return _last;
    }

    // One attempt; with a call that waits for ready as many as it takes until there is a connection.
    private async ValueTask TryAsync(CancellationToken cancellationToken)
    {
        for (var pause = FirstPause; ; pause = CallAttempt.Longer(pause))
        {
            _last = await AttemptAsync(call.Channel, _previousAttempts, hedge: null, cancellationToken).ConfigureAwait(false);
            if (!call.WaitsForReady(_last.Exception))
            {
                return;
            }

            await Task.Delay(pause, call.TimeProvider, cancellationToken).ConfigureAwait(ConfigureAwaitOptions.SuppressThrowing);
            if (cancellationToken.IsCancellationRequested)
            {
                _last = Outcome.FromException<TResponse>(new OperationCanceledException(cancellationToken));
                return;
            }

            if (!call.TryAbandon())
            {
                return;
            }
        }
    }

    // Several attempts of a unary call at a time, each on a channel of its own. The one whose outcome is taken is the call.
    private async Task HedgeAsync(ResilienceContext context)
    {
        _last = await call.Plan.Hedging!.ExecuteOutcomeAsync(
            static (context, loop) => loop.ExecuteHedgeAsync(context), context, this).ConfigureAwait(false);

        // The context of the attempt whose outcome was taken has become this one.
        if (_last.Exception is null && context.Properties.TryGetValue(Hedge, out var hedge) && hedge.Deciding.IsCompletedSuccessfully)
        {
            call.Publish(hedge);
        }
    }

    private async ValueTask<Outcome<TResponse>> ExecuteHedgeAsync(ResilienceContext context)
    {
        var last = Volatile.Read(ref _lastHedge);
        var previousAttempts = Interlocked.Increment(ref _previousAttempts) - 1;
        if (last is not null)
        {
            Pool.State.Metrics.Tally.CountRetry(isHedge: true);
        }

        // The server may ask for a pause.
        if (last?.Failure is { } failed && CallFaults.Pushback(failed) is { } pause)
        {
            await Task.Delay(pause, call.TimeProvider, context.CancellationToken).ConfigureAwait(ConfigureAwaitOptions.SuppressThrowing);
        }

        var outcome = await AttemptAsync(last?.Channel, previousAttempts, context, context.CancellationToken).ConfigureAwait(false);
        call.HedgesNoMore |= outcome.Exception is { } failure && CallFaults.Pushback(failure) == Timeout.InfiniteTimeSpan;
        return outcome;
    }

    // A lease, not on the channel that failed last, the call on it, and its end.
    private async ValueTask<Outcome<TResponse>> AttemptAsync(
        PooledChannel? avoid, int previousAttempts, ResilienceContext? hedge, CancellationToken cancellationToken)
    {
        ChannelLease? lease = null;
        CallAttempt<TResponse>? attempt = null;
        try
        {
            // A call that waits for ready waits for its deadline alone.
            var timeout = call.Options.IsWaitForReady ? Timeout.InfiniteTimeSpan : Pool.State.Options.AcquireTimeout;
            var key = hedge is null || previousAttempts < 2 ? call.Given.Key : 0; // a further hedge would come upon the first one again
            lease = await Pool.Queue.AcquireAsync(timeout, new LeaseRequest(call.LeaseKind, avoid, key), cancellationToken).ConfigureAwait(false);
            attempt = call.StartAttempt(lease.Pooled, lease, previousAttempts);
            if (hedge is null)
            {
                call.Publish(attempt);
            }
            else
            {
                hedge.Properties.Set(Hedge, attempt);
                Volatile.Write(ref _lastHedge, attempt);
            }

            using var registration = cancellationToken == StopToken ? default : cancellationToken.UnsafeRegister(
                _ =>
                {
                    // A time-out of the pipeline, or another hedge. The deadline and the token of the call end the attempt on its channel.
                    if (!StopToken.IsCancellationRequested || (call.IsHedged && call.IsDisposed))
                    {
                        attempt.End();
                    }
                },
                null);
            await ((Task)attempt.Deciding).ConfigureAwait(ConfigureAwaitOptions.SuppressThrowing);
            if (attempt.Failure is not { } failure)
            {
                call.AttemptDecided(attempt, failure: null);
                return Outcome.FromResult(attempt.Response);
            }

            LastFailure = failure;
            var end = call.AttemptDecided(attempt, failure)!;
            var isTimedOut = cancellationToken.IsCancellationRequested && !StopToken.IsCancellationRequested;
            return Outcome.FromException<TResponse>(isTimedOut ? new OperationCanceledException(cancellationToken) : end);
        }
        catch (Exception exception) // The pipeline judges, and the caller gets what is left.
        {
            var isNoChannel = attempt is null && (lease is null ? exception is not OperationCanceledException : exception is ObjectDisposedException);
            return Outcome.FromException<TResponse>(isNoChannel ? CallErrors.NoChannel(exception, Pool) : exception);
        }
    }

    // What the call ends with when that is not the failure of an attempt, as users of gRPC know it.
    private Exception Explain(Exception exception)
    {
        var isStopped = exception is OperationCanceledException && StopToken.IsCancellationRequested;
        var status = exception switch
        {
            OperationCanceledException when isStopped => call.EndedByCallerWith,
            RpcException rpc => rpc.Status,
            TimeoutRejectedException => CallErrors.DeadlineExceeded(exception),
            BrokenCircuitException => new Status(StatusCode.Unavailable, exception.Message, exception),
            ExecutionRejectedException => new Status(StatusCode.ResourceExhausted, exception.Message, exception),
            OperationCanceledException => new Status(StatusCode.Cancelled, exception.Message, exception),
            { Message: var message } => new Status(
                StatusCode.Internal, $"The resilience pipeline ended the call with {exception.GetType().Name}: {message}", exception),
        };
        return isStopped && Pool.ThrowsOperationCanceled && !call.IsDisposed
            ? new OperationCanceledException(status.Detail, status.DebugException, call.Options.CancellationToken)
            : exception is RpcException { Trailers: var trailers } ? new RpcException(status, trailers)
            : new RpcException(status);
    }
}

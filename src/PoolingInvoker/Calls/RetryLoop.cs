using Grpc.Core;
using Polly;
using Polly.CircuitBreaker;
using Polly.Timeout;

namespace PoolingInvoker;

/// <summary>
/// The attempts of a call after its first one, or all of them: waits for leases, goes through the pipeline, and says how it ended. The one
/// file of a call that knows Polly.
/// </summary>
internal sealed class RetryLoop<TRequest, TResponse>(PooledCall<TRequest, TResponse> call)
    where TRequest : class
    where TResponse : class
{
    private static readonly TimeSpan FirstPause = TimeSpan.FromMilliseconds(50);
    private static readonly TimeSpan LongestPause = TimeSpan.FromSeconds(1);

    private CallStop? _stop; // there while the loop runs
    private Outcome<TResponse> _last;
    private bool _isInHand; // the pipeline has yet to be shown an attempt that was made outside
    private bool _hasTried;
    private long _lastEnded;
    private int _previousAttempts; // that may have reached a server

    /// <summary>A server has asked for no further attempts of a call that is hedged.</summary>
    public bool HedgesNoMore { get; private set; }

    public Exception? LastFailure { get; private set; }

    private ChannelPool Pool => call.Environment.Pool;

    /// <summary>The caller has ended the call: what it waits for ends.</summary>
    public void Stop() => Volatile.Read(ref _stop)?.Cancel();

    /// <param name="failure">What an attempt has ended with that was made before; or null.</param>
    public async Task<(TResponse? Response, Exception? Failure)> RunAsync(Exception? failure)
    {
        try
        {
            using var stop = new CallStop(call.Options, call.TimeProvider);
            Volatile.Write(ref _stop, stop);
            Interlocked.MemoryBarrier(); // the caller may not have seen it
            if (call.IsDisposed)
            {
                stop.Cancel();
            }

            if (call.IsHedged)
            {
                await HedgeAsync((UnaryCall<TRequest, TResponse>)call).ConfigureAwait(false);
            }
            else
            {
                await RetryAsync(failure).ConfigureAwait(false);
            }

            return _last.Exception is { } last ? (null, CallFaults.AttemptOf(last) is null ? Explain(last) : last) : (_last.Result, null);
        }
#pragma warning disable CA1031 // Whatever throws here, the call ends.
        catch (Exception exception)
#pragma warning restore CA1031
        {
            call.EndAttempt();
            return (null, FromPipeline(exception));
        }
    }

    private async ValueTask RetryAsync(Exception? failure)
    {
        _lastEnded = call.TimeProvider.GetTimestamp();
        if (failure is not null)
        {
            (_last, LastFailure) = (Outcome.FromException<TResponse>(failure), failure);
        }
        else if (call.Plan.OnFailureOnly)
        {
            await TryAsync(_stop!.Token).ConfigureAwait(false);
            failure = _last.Exception;
        }

        if (!call.Plan.OnFailureOnly || (failure is not null && call.MayBeRetried(failure)))
        {
            _isInHand = failure is not null;
            _last = await EnterAsync(context => call.Plan.Pipeline!.ExecuteOutcomeAsync(
                static (context, loop) => loop.ExecuteAsync(context.CancellationToken), context, this)).ConfigureAwait(false);
        }
    }

    // What the pipeline takes for an attempt. It is none if the last one may not be followed by another.
    private async ValueTask<Outcome<TResponse>> ExecuteAsync(CancellationToken cancellationToken)
    {
        if (_isInHand)
        {
            (_isInHand, _hasTried) = (false, true);
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

            Pool.CountRetry();
            _previousAttempts += _last.Exception is { } failure && CallFaults.NeverLeft(failure) ? 0 : 1;
        }

        _hasTried = true;
        await TryAsync(cancellationToken).ConfigureAwait(false);
        _lastEnded = call.TimeProvider.GetTimestamp();
        return _last;
    }

    // One attempt; with a call that waits for ready as many as it takes until there is a connection.
    private async ValueTask TryAsync(CancellationToken cancellationToken)
    {
        _last = await AttemptAsync(call, call.Channel, _previousAttempts, pause: null, EndAttempt, cancellationToken).ConfigureAwait(false);
        for (var pause = FirstPause; call.WaitsForReady(_last.Exception); pause = pause * 2 < LongestPause ? pause * 2 : LongestPause)
        {
            try
            {
                await Task.Delay(pause, call.TimeProvider, cancellationToken).ConfigureAwait(false);
            }
            catch (OperationCanceledException exception)
            {
                _last = Outcome.FromException<TResponse>(exception);
                return;
            }

            if (!call.TryAbandon())
            {
                return;
            }

            _last = await AttemptAsync(call, call.Channel, _previousAttempts, pause: null, EndAttempt, cancellationToken).ConfigureAwait(false);
        }
    }

    // A time-out of the pipeline ends the attempt here. The deadline and the token of the call end it on the channel.
    private void EndAttempt()
    {
        if (!_stop!.IsCancelled)
        {
            call.EndAttempt();
        }
    }

    // Several attempts of a unary call at a time, each on a channel of its own. The one whose outcome is taken is the call.
    private async ValueTask HedgeAsync(UnaryCall<TRequest, TResponse> call)
    {
        var hedges = new Hedges(this, call);
        _last = await EnterAsync(
            async context =>
            {
                var outcome = await call.Plan.Hedging!.ExecuteOutcomeAsync(static (context, hedges) => hedges.ExecuteAsync(context), context, hedges).ConfigureAwait(false);

                // The context of the attempt whose outcome was taken has become this one.
                if (outcome.Exception is null && context.Properties.TryGetValue(Hedges.Attempt, out var hedge))
                {
                    call.TryTake(hedge);
                }

                return outcome;
            }).ConfigureAwait(false);
    }

    // A lease, not on the channel that failed last, the call on it, and its end.
    private async ValueTask<Outcome<TResponse>> AttemptAsync(
        PooledCall<TRequest, TResponse> attempt, PooledChannel? avoid, int previousAttempts, TimeSpan? pause, Action end, CancellationToken cancellationToken)
    {
        try
        {
            if (pause is { } asked)
            {
                await Task.Delay(asked, call.TimeProvider, cancellationToken).ConfigureAwait(false);
            }

            var deciding = await StartAsync(attempt, avoid, previousAttempts, cancellationToken).ConfigureAwait(false);
            using var registration = cancellationToken == _stop!.Token ? default : cancellationToken.UnsafeRegister(static end => ((Action)end!)(), end);
            try
            {
                var response = await deciding.ConfigureAwait(false);
                attempt.AttemptDecided(failure: null);
                return Outcome.FromResult(response);
            }
#pragma warning disable CA1031 // The pipeline judges, and the caller gets what is left.
            catch (Exception exception)
            {
                LastFailure = exception;
                var failure = attempt.AttemptDecided(exception)!;
                return Outcome.FromException<TResponse>(
                    cancellationToken.IsCancellationRequested && !_stop.IsCancelled ? new OperationCanceledException(cancellationToken) : failure);
            }
        }
        catch (Exception exception)
#pragma warning restore CA1031
        {
            return Outcome.FromException<TResponse>(exception);
        }
    }

    private async ValueTask<Task<TResponse>> StartAsync(PooledCall<TRequest, TResponse> attempt, PooledChannel? avoid, int previousAttempts, CancellationToken cancellationToken)
    {
        ChannelLease lease;
        try
        {
            // A call that waits for ready waits for its deadline alone.
            var timeout = call.Options.IsWaitForReady ? Timeout.InfiniteTimeSpan : Pool.AcquireTimeout;
            lease = await Pool.AcquireAsync(timeout, call.IsStream, avoid, playsSafe: previousAttempts > 1, cancellationToken).ConfigureAwait(false);
        }
        catch (Exception exception) when (exception is not OperationCanceledException)
        {
            throw CallErrors.NoChannel(exception);
        }

        try
        {
            return attempt.StartAttempt(new AttemptLease(lease), previousAttempts);
        }
        catch (ObjectDisposedException exception)
        {
            throw Pool.IsDisposed ? CallErrors.NoChannel(exception) : CallErrors.Unavailable(exception);
        }
    }

    private async ValueTask<Outcome<TResponse>> EnterAsync(Func<ResilienceContext, ValueTask<Outcome<TResponse>>> enter)
    {
        var context = ResilienceContextPool.Shared.Get(call.Method.FullName, continueOnCapturedContext: false, _stop!.Token);
        try
        {
            CallResilience.Attach(context, call);
            return await enter(context).ConfigureAwait(false);
        }
#pragma warning disable CA1031 // A callback of the user's in the pipeline threw: the call ends with that.
        catch (Exception exception)
#pragma warning restore CA1031
        {
            return Outcome.FromException<TResponse>(exception);
        }
        finally
        {
            ResilienceContextPool.Shared.Return(context);
        }
    }

    // What the call ends with when that is not the failure of an attempt.
    private Exception Explain(Exception exception)
    {
        if (exception is not OperationCanceledException || !_stop!.IsCancelled)
        {
            return FromPipeline(exception);
        }

        var token = call.Options.CancellationToken;
        var status = call.EndedByToken is { } byToken ? byToken
            : call.IsDisposed ? CallErrors.Disposed
            : token.IsCancellationRequested ? CallErrors.Cancelled(token)
            : CallErrors.DeadlineExceeded(LastFailure);
        return Pool.ThrowsOperationCanceled && !call.IsDisposed
            ? new OperationCanceledException(status.Detail, status.DebugException, token)
            : new RpcException(status);
    }

    // As users of gRPC know it.
    private static RpcException FromPipeline(Exception exception) => exception is RpcException { Status: var given, Trailers: var trailers } ? new(given, trailers) : new(exception switch
    {
        TimeoutRejectedException => CallErrors.DeadlineExceeded(exception),
        BrokenCircuitException => new Status(StatusCode.Unavailable, exception.Message, exception),
        ExecutionRejectedException => new Status(StatusCode.ResourceExhausted, exception.Message, exception),
        OperationCanceledException => new Status(StatusCode.Cancelled, exception.Message, exception),
        _ => new Status(StatusCode.Internal, $"The resilience pipeline ended the call with {exception.GetType().Name}: {exception.Message}", exception),
    });

    private sealed class Hedges(RetryLoop<TRequest, TResponse> loop, UnaryCall<TRequest, TResponse> call)
    {
        public static readonly ResiliencePropertyKey<UnaryCall<TRequest, TResponse>> Attempt = new("PoolingInvoker.Attempt");

        private readonly List<UnaryCall<TRequest, TResponse>> _hedges = []; // guarded by a lock on it

        public async ValueTask<Outcome<TResponse>> ExecuteAsync(ResilienceContext context)
        {
            var hedge = call.NewHedge();
            context.Properties.Set(Attempt, hedge);
            UnaryCall<TRequest, TResponse>? last;
            int previousAttempts;
            lock (_hedges)
            {
                last = _hedges.FindLast(static hedge => hedge.Channel is not null);
                previousAttempts = _hedges.Count;
                _hedges.Add(hedge);
            }

            if (last is not null)
            {
                loop.Pool.CountRetry();
            }

            // The server may ask for a pause.
            var pause = last?.Failure is { } failed ? CallFaults.Pushback(failed) : null;
            var outcome = await loop.AttemptAsync(hedge, last?.Channel, previousAttempts, pause, () => End(hedge), context.CancellationToken).ConfigureAwait(false);
            loop.HedgesNoMore |= outcome.Exception is { } failure && CallFaults.Pushback(failure) == Timeout.InfiniteTimeSpan;
            return outcome;
        }

        // The deadline and the token of the call end it on the channel.
        private void End(UnaryCall<TRequest, TResponse> hedge)
        {
            if (call.IsDisposed || !loop._stop!.IsCancelled)
            {
                hedge.EndAttempt();
            }
        }
    }
}

using Grpc.Core;
using Polly;

namespace PoolingInvoker;

// The driver: starts attempts, judges how they end, and says when there are no more.
internal sealed partial class PooledCall<TRequest, TResponse>
{
    private async Task<TResponse> RunAsync()
    {
        Exception? inHand = null;
        if (_current is { } first)
        {
            // The fast path: one attempt, started already, and nothing of Polly.
            try
            {
                var response = await first.Outcome.ConfigureAwait(false);
                first.OutcomeSeen(failure: null);
                End(failure: null);
                return response;
            }
            catch (Exception exception)
            {
                first.OutcomeSeen(exception);
                if (!MayBeRetried(exception))
                {
                    End(exception);
                    if (!HasOneResponse)
                    {
                        return default!; // a stream shows its failures to who reads it
                    }

                    throw;
                }

                inHand = exception;
            }
        }

        Outcome<TResponse> outcome;
        try
        {
            outcome = await RunSlowlyAsync(inHand).ConfigureAwait(false);
        }
#pragma warning disable CA1031 // Whatever throws here, the call ends.
        catch (Exception exception)
#pragma warning restore CA1031
        {
            _current?.EndByDriver();
            outcome = Outcome.FromException<TResponse>(CallErrors.FromPipeline(exception));
        }

        End(outcome.Exception);
        if (HasOneResponse)
        {
            outcome.ThrowIfException();
        }

        return outcome.Result!;
    }

    // Waits for leases, and goes through the pipeline: from the start, or with the failure of a first attempt in hand.
    private async Task<Outcome<TResponse>> RunSlowlyAsync(Exception? inHand)
    {
        using var stop = new CallStop(Options, TimeProvider);
        bool disposed;
        lock (this)
        {
            _stop = stop;
            disposed = _disposed;
        }

        if (disposed)
        {
            stop.Cancel();
        }

        try
        {
            if (IsHedged)
            {
                return await RunHedgedAsync(stop.Token).ConfigureAwait(false);
            }

            var execution = new Execution(this, stop.Token);
            if (inHand is not null)
            {
                execution.Last = Outcome.FromException<TResponse>(inHand);
            }
            else if (_plan.OnFailureOnly)
            {
                await execution.TryAsync(stop.Token).ConfigureAwait(false);
                inHand = execution.Last.Exception;
            }

            if (!_plan.OnFailureOnly || (inHand is not null && MayBeRetried(inHand)))
            {
                execution.IsInHand = inHand is not null;
                await execution.EnterPipelineAsync(_plan.Pipeline!).ConfigureAwait(false);
            }

            return execution.Last.Exception is { } exception && !ReferenceEquals(exception, _current?.Failure)
                ? Outcome.FromException<TResponse>(Explain(exception, stop.Token))
                : execution.Last;
        }
        finally
        {
            lock (this)
            {
                _stop = null;
            }
        }
    }

    private bool MayBeRetried(Exception exception) =>
        _plan is { Pipeline: not null, OnFailureOnly: true } && CallFaults.IsTransient(exception) && MayBeSentAgain(exception);

    // What the call ends with when that is not the failure of an attempt.
    private Exception Explain(Exception exception, CancellationToken stop)
    {
        if (exception is not OperationCanceledException || !stop.IsCancellationRequested)
        {
            return CallErrors.FromPipeline(exception);
        }

        var token = Options.CancellationToken;
        var status = _disposed ? CallErrors.Disposed
            : token.IsCancellationRequested ? CallErrors.Cancelled(token)
            : CallErrors.DeadlineExceeded(_current?.Failure);
        return _environment.Pool.ThrowsOperationCanceled && !_disposed
            ? new OperationCanceledException(status.Detail, status.DebugException, token)
            : new RpcException(status);
    }

    private void Publish(CallAttempt<TRequest, TResponse> attempt)
    {
        TaskCompletionSource? changed;
        TaskCompletionSource? replaying = null;
        IReadOnlyList<ReplayableRequest> requests;
        bool disposed;
        bool complete;
        lock (this)
        {
            requests = _log?.Requests ?? [];
            if (requests.Count > 0)
            {
                replaying = new TaskCompletionSource(TaskCreationOptions.RunContinuationsAsynchronously);
                attempt.Replayed = replaying.Task;
                replaying.Task.Observe();
            }

            _current = attempt;
            (changed, _changed) = (_changed, null);
            disposed = _disposed;
            complete = _requestsComplete;
        }

        // Statement order is important: whoever waits goes on, whatever the channel says below.
        changed?.SetResult();
        if (disposed)
        {
            attempt.Dispose();
        }

        if (replaying is not null)
        {
            _ = ReplayAsync(attempt, requests, replaying);
        }
        else if (complete && !disposed)
        {
            CompleteRequestsOf(attempt);
        }
    }

    // Writes to an attempt what was written to those before it. A write that fails shows that the attempt has failed, which the driver
    // sees, too.
    private async Task ReplayAsync(CallAttempt<TRequest, TResponse> attempt, IReadOnlyList<ReplayableRequest> requests, TaskCompletionSource replaying)
    {
        try
        {
            var stream = attempt.RequestStream!;
            foreach (var request in requests)
            {
                stream.WriteOptions = request.WriteOptions;
                await stream.WriteAsync(request).ConfigureAwait(false);
            }

            stream.WriteOptions = WriteOptions;
        }
#pragma warning disable CA1031 // Whoever writes next gets the exception.
        catch (Exception exception)
#pragma warning restore CA1031
        {
            replaying.SetException(exception);
            return;
        }

        bool complete;
        lock (this)
        {
            replaying.SetResult();
            complete = _requestsComplete;
        }

        if (complete)
        {
            CompleteRequestsOf(attempt);
        }
    }

    private static void CompleteRequestsOf(CallAttempt<TRequest, TResponse> attempt)
    {
        try
        {
            attempt.RequestStream!.CompleteAsync().Observe();
        }
        catch (ObjectDisposedException)
        {
            // Ended already, by whoever was told of it.
        }
    }

    private void End(Exception? failure)
    {
        TaskCompletionSource? changed;
        Task<TResponse>? response;
        lock (this)
        {
            _failure = failure;
            _ended = true;
            (changed, _changed) = (_changed, null);
            response = _response;
            _log?.Clear();
        }

        _grace?.Dispose();
        changed?.SetResult();
        ObserveCancellation(response);
    }

    // Whoever has cancelled a call, or let its deadline pass, need not look at how it ended: so it is on a bare channel.
    private void ObserveCancellation(Task<TResponse>? response)
    {
        if (_failure is OperationCanceledException or RpcException { StatusCode: StatusCode.Cancelled or StatusCode.DeadlineExceeded })
        {
            response?.Observe();
        }
    }

    private async ValueTask<CallAttempt<TRequest, TResponse>> StartAttemptAsync(PooledChannel? avoid, int previousAttempts, CancellationToken cancellationToken)
    {
        var lease = await LeaseAsync(avoid, previousAttempts, cancellationToken).ConfigureAwait(false);
        try
        {
            return new CallAttempt<TRequest, TResponse>(lease, this, previousAttempts);
        }
        catch (ObjectDisposedException exception)
        {
            throw _environment.Pool.IsDisposed ? CallErrors.NoChannel(exception) : CallErrors.Unavailable(exception);
        }
    }

    private async ValueTask<ChannelLease> LeaseAsync(PooledChannel? avoid, int previousAttempts, CancellationToken cancellationToken)
    {
        var pool = _environment.Pool;
        try
        {
            // A call that waits for ready waits for its deadline alone.
            var timeout = Options.IsWaitForReady ? Timeout.InfiniteTimeSpan : pool.AcquireTimeout;
            return await pool.AcquireAsync(timeout, IsStream, avoid, playsSafe: previousAttempts > 1, cancellationToken).ConfigureAwait(false);
        }
        catch (Exception exception) when (exception is not OperationCanceledException)
        {
            throw CallErrors.NoChannel(exception);
        }
    }

    private async ValueTask<Outcome<TResponse>> EnterAsync(Func<ResilienceContext, ValueTask<Outcome<TResponse>>> enter, CancellationToken stop)
    {
        var context = ResilienceContextPool.Shared.Get(Method.FullName, continueOnCapturedContext: false, stop);
        try
        {
            CallResilience.Attach(context, this);
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

    private static async ValueTask<Outcome<TResponse>> OutcomeOfAsync(CallAttempt<TRequest, TResponse> attempt)
    {
        try
        {
            var response = await attempt.Outcome.ConfigureAwait(false);
            attempt.OutcomeSeen(failure: null);
            return Outcome.FromResult(response);
        }
#pragma warning disable CA1031 // The pipeline judges.
        catch (Exception exception)
#pragma warning restore CA1031
        {
            attempt.OutcomeSeen(exception);
            return Outcome.FromException<TResponse>(exception);
        }
    }

    private bool WaitsForReady(Exception? exception) => Options.IsWaitForReady && exception is not null && CallFaults.IsNotConnected(exception);

    /// <summary>The attempts that are made on the slow path, one after the other.</summary>
    private sealed class Execution(PooledCall<TRequest, TResponse> call, CancellationToken stop)
    {
        private static readonly TimeSpan FirstPause = TimeSpan.FromMilliseconds(50);
        private static readonly TimeSpan LongestPause = TimeSpan.FromSeconds(1);

        private bool _tried;
        private long _lastEnded = call.TimeProvider.GetTimestamp();

        /// <summary>The outcome of the last attempt.</summary>
        public Outcome<TResponse> Last { get; set; }

        /// <summary>Whether the pipeline has yet to be shown an attempt that was made outside.</summary>
        public bool IsInHand { get; set; }

        public async ValueTask EnterPipelineAsync(ResiliencePipeline pipeline) => Last = await call.EnterAsync(
            context => pipeline.ExecuteOutcomeAsync(static (context, execution) => execution.ExecuteAsync(context.CancellationToken), context, this), stop).ConfigureAwait(false);

        /// <summary>What the pipeline takes for an attempt. It is none if the last one may not be followed by another.</summary>
        private async ValueTask<Outcome<TResponse>> ExecuteAsync(CancellationToken cancellationToken)
        {
            if (IsInHand)
            {
                IsInHand = false;
                _tried = true;
                return Last;
            }

            if (_tried)
            {
                // The server that asks for a pause gets it, whatever the delay of the pipeline was.
                if (Last.Exception is { } last && CallFaults.Pushback(last) is { } pushback && call.MayBeSentAgain(last)
                    && pushback - call.TimeProvider.GetElapsedTime(_lastEnded) is var rest && rest > TimeSpan.Zero)
                {
                    await Task.Delay(rest, call.TimeProvider, cancellationToken).ConfigureAwait(ConfigureAwaitOptions.SuppressThrowing);
                }

                if (cancellationToken.IsCancellationRequested)
                {
                    return Outcome.FromException<TResponse>(new OperationCanceledException(cancellationToken));
                }

                if (!call.MayBeSentAgain(Last.Exception) || call._current?.TryAbandon() == false)
                {
                    return Last;
                }

                call._environment.Pool.CountRetry();
                call._previousAttempts += Last.Exception is { } failure && CallFaults.NeverLeft(failure) ? 0 : 1;
            }

            _tried = true;
            await TryAsync(cancellationToken).ConfigureAwait(false);
            _lastEnded = call.TimeProvider.GetTimestamp();
            return Last;
        }

        /// <summary>One attempt; with a call that waits for ready as many as it takes until there is a connection.</summary>
        public async ValueTask TryAsync(CancellationToken cancellationToken)
        {
            await TryOnceAsync(cancellationToken).ConfigureAwait(false);
            for (var pause = FirstPause; call.WaitsForReady(Last.Exception); pause = pause * 2 < LongestPause ? pause * 2 : LongestPause)
            {
                try
                {
                    await Task.Delay(pause, call.TimeProvider, cancellationToken).ConfigureAwait(false);
                }
                catch (OperationCanceledException exception)
                {
                    Last = Outcome.FromException<TResponse>(exception);
                    return;
                }

                if (call._current?.TryAbandon() == false)
                {
                    return;
                }

                await TryOnceAsync(cancellationToken).ConfigureAwait(false);
            }
        }

        // A lease, not on the channel that failed last, and the call on it.
        private async ValueTask TryOnceAsync(CancellationToken cancellationToken)
        {
            try
            {
                var attempt = await call.StartAttemptAsync(call._current?.Channel, call._previousAttempts, cancellationToken).ConfigureAwait(false);
                call.Publish(attempt);
                Last = await OutcomeAsync(attempt, cancellationToken).ConfigureAwait(false);
            }
#pragma warning disable CA1031 // The pipeline judges, and the caller gets what is left.
            catch (Exception exception)
#pragma warning restore CA1031
            {
                Last = Outcome.FromException<TResponse>(exception);
            }
        }

        private async ValueTask<Outcome<TResponse>> OutcomeAsync(CallAttempt<TRequest, TResponse> attempt, CancellationToken cancellationToken)
        {
            // A time-out of the pipeline ends the attempt here. The deadline and the token of the call end it on the channel.
            using var registration = cancellationToken == stop ? default : cancellationToken.UnsafeRegister(
                static state =>
                {
                    var (attempt, stop) = ((CallAttempt<TRequest, TResponse>, CancellationToken))state!;
                    if (!stop.IsCancellationRequested)
                    {
                        attempt.EndByDriver();
                    }
                },
                (attempt, stop));
            var outcome = await OutcomeOfAsync(attempt).ConfigureAwait(false);
            return outcome.Exception is not null && cancellationToken.IsCancellationRequested && !stop.IsCancellationRequested
                ? Outcome.FromException<TResponse>(new OperationCanceledException(cancellationToken))
                : outcome;
        }
    }
}

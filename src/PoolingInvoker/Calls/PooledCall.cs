using Grpc.Core;
using Polly;

namespace PoolingInvoker;

/// <summary>
/// One RPC: attempts on leased channels, one after the other, until one commits or no more are made.
/// </summary>
/// <remarks>
/// <see cref="RunAsync"/> drives: it alone starts attempts. Readers, writers and the headers follow: they use the current attempt, and
/// when that fails them they ask <see cref="NextAttemptAsync"/> whether there is another. An attempt becomes the call (it is settled)
/// when it commits, and also when it has failed and no other one follows.
/// </remarks>
internal sealed class PooledCall<TRequest, TResponse> : IRetryableCall
    where TRequest : class
    where TResponse : class
{
    private static readonly TimeSpan ResponseGrace = TimeSpan.FromSeconds(30);

    private readonly CallEnvironment _environment;

    // Guarded by a lock on this object, which the library alone knows.
    private CallAttempt<TRequest, TResponse>? _current;
    private TaskCompletionSource? _changed; // completes when there is another attempt, or the call has ended; made when somebody waits
    private bool _ended; // no more attempts are made
    private Exception? _failure; // what the last of them ended with
    private bool _disposed;
    private bool _requestsComplete;
    private CancellationTokenSource? _stop; // ends waits for a lease, and backoff
    private Task<TResponse>? _response;
    private Task<Metadata>? _headers;
    private ITimer? _grace;

    public PooledCall(CallEnvironment environment, MethodType kind, Method<TRequest, TResponse> method, string? host, CallOptions options, TRequest? request)
    {
        _environment = environment;
        Kind = kind;
        Method = method;
        Host = host;
        Options = options;
        WriteOptions = options.WriteOptions;
        Request = request;
    }

    public MethodType Kind { get; }

    public Method<TRequest, TResponse> Method { get; }

    public string? Host { get; }

    public CallOptions Options { get; }

    public TRequest? Request { get; }

    /// <summary>
    /// The options of an attempt. A call that waits for ready does so here, without a lease and from channel to channel, and not on the
    /// channel that it happened to get.
    /// </summary>
    public CallOptions AttemptOptions => Options.IsWaitForReady ? Options.WithWaitForReady(false) : Options;

    /// <summary>What the application has set on the writer.</summary>
    public WriteOptions? WriteOptions { get; private set; }

    public TimeProvider TimeProvider => _environment.Pool.TimeProvider;

    /// <summary>The attempt that is the call from now on, if there is one yet.</summary>
    public CallAttempt<TRequest, TResponse>? Settled =>
        _current is { } current && (current.IsCommitted || (HasEnded && ReferenceEquals(current.Failure, _failure))) ? current : null;

    /// <summary>Whether the application has said that no more requests come.</summary>
    public bool AreRequestsComplete => Volatile.Read(ref _requestsComplete);

    private bool HasOneResponse => Kind is MethodType.Unary or MethodType.ClientStreaming;

    private bool HasEnded => Volatile.Read(ref _ended);

    /// <summary>Starts the call. What a bare channel would throw at once is thrown here.</summary>
    public Task<TResponse> Start()
    {
        // A bare channel checks it when it starts the call, which may be later here.
        if (Options.Deadline is { Kind: not DateTimeKind.Utc } deadline && deadline != DateTime.MaxValue && deadline != DateTime.MinValue)
        {
            throw new InvalidOperationException($"The deadline of a call must be in UTC, or DateTime.MaxValue or DateTime.MinValue. It is of kind {deadline.Kind}.");
        }

        _environment.Pool.ThrowIfDisposed();
        if (_environment.OnFailureOnly && !Options.IsWaitForReady && _environment.Pool.TryLease(out var lease))
        {
            try
            {
                _current = new CallAttempt<TRequest, TResponse>(lease, this);
            }
            catch (ObjectDisposedException)
            {
                // A disposed channel took nothing. The slow path leases another one.
            }
        }

        var response = RunAsync();
        bool ended;
        lock (this)
        {
            _response = response;
            ended = _ended;
        }

        if (ended)
        {
            ObserveCancellation(response);
        }

        return response;
    }

    public Status GetStatus()
    {
        // Statement order is important: a call that ends meanwhile has an attempt that it has ended with.
        var ended = HasEnded;
        return Settled is { } settled ? settled.GetStatus()
            : ended ? (_failure is RpcException rpc ? rpc.Status : new Status(StatusCode.Cancelled, string.Empty, _failure))
            : !_disposed ? throw new InvalidOperationException("Unable to get the status because the call is not complete.")
            : _current is { EndedByDriver: false } current ? current.GetStatus()
            : CallErrors.Disposed;
    }

    public Metadata GetTrailers() =>
        Settled?.GetTrailers() ?? throw new InvalidOperationException("Can't get the call trailers because the call has not completed successfully.");

    /// <param name="holder">What the application holds of the call, which stays until it has the headers.</param>
    public Task<Metadata> GetResponseHeadersAsync(object holder)
    {
        if (Settled?.ResponseHeadersAsync is { IsCompleted: true } headers)
        {
            return headers;
        }

        if (_headers is null)
        {
            _headers = ReadHeadersAsync(holder);
            _headers.Observe();
        }

        return _headers;
    }

    public void SetWriteOptions(WriteOptions? options)
    {
        WriteOptions = options;
        if (_current?.RequestStream is { } stream)
        {
            stream.WriteOptions = options;
        }
    }

    public void Dispose()
    {
        CallAttempt<TRequest, TResponse>? current;
        CancellationTokenSource? stop;
        lock (this)
        {
            _disposed = true;
            current = _current;
            stop = _stop;
        }

        try
        {
            stop?.Cancel();
        }
        catch (ObjectDisposedException)
        {
            // There was nothing left to end.
        }

        current?.Dispose();
        if (_response is { IsCompletedSuccessfully: false } response)
        {
            response.Observe();
        }
    }

    /// <summary>
    /// The application has dropped its call object, reader and writer. A client stream may have its response awaited all the same, which
    /// nobody can know: it gets a while longer for that.
    /// </summary>
    public void Reclaim()
    {
        if (Kind != MethodType.ClientStreaming)
        {
            EndDropped();
        }
        else if (!AreRequestsComplete && !_response!.IsCompleted)
        {
            _grace = TimeProvider.CreateTimer(static call => ((PooledCall<TRequest, TResponse>)call!).EndDropped(), this, ResponseGrace, Timeout.InfiniteTimeSpan);
        }
    }

    private void EndDropped()
    {
        if (!_disposed && _current is { IsCompleted: false })
        {
            _environment.Pool.CountReclaimedLeak();
            _environment.Pool.Log.LeakReclaimed(Method.FullName);
        }

        Dispose(); // also what waits for a lease or for another attempt; and it does nothing to what has ended
    }

    /// <summary>The requests are complete: at once, or when there is an attempt to complete them on.</summary>
    public Task CompleteRequestsAsync()
    {
        CallAttempt<TRequest, TResponse>? current;
        lock (this)
        {
            _requestsComplete = true;
            current = _current;
        }

        try
        {
            return current is null ? Task.CompletedTask : current.RequestStream!.CompleteAsync();
        }
        catch (ObjectDisposedException) when (current!.EndedByDriver)
        {
            return Task.CompletedTask; // they are completed on the next attempt
        }
    }

    /// <summary>
    /// Waits for another attempt than this one, or for the first. Null if there will be none: then what this one threw is what the call
    /// ends with. Throws if the call ends with something else.
    /// </summary>
    /// <param name="failed">The attempt that is no good, or null for the first.</param>
    /// <param name="cancellationToken">That of a read or a write: as on a bare channel it ends the call.</param>
    public async ValueTask<CallAttempt<TRequest, TResponse>?> NextAttemptAsync(CallAttempt<TRequest, TResponse>? failed, CancellationToken cancellationToken = default)
    {
        while (true)
        {
            Task changed;
            lock (this)
            {
                if (_current != failed)
                {
                    return _current;
                }

                if (_ended)
                {
                    return failed is not null && ReferenceEquals(failed.Failure, _failure) ? null : throw _failure!;
                }

                changed = (_changed ??= new TaskCompletionSource(TaskCreationOptions.RunContinuationsAsynchronously)).Task;
            }

            try
            {
                await changed.WaitAsync(cancellationToken).ConfigureAwait(false);
            }
            catch (OperationCanceledException)
            {
                Dispose();
                if (_environment.Pool.ThrowsOperationCanceled)
                {
                    throw;
                }

                throw new RpcException(CallErrors.Cancelled(cancellationToken));
            }
        }
    }

    /// <summary>A call that was disposed before it had a channel takes no more; one that has a channel asks that.</summary>
    public void ThrowIfDisposed() => ObjectDisposedException.ThrowIf(_disposed && _current is null, this);

    /// <summary>Whether a failure that a reader or writer has met may be followed by another attempt.</summary>
    public bool MayMoveOn(Exception exception) =>
        (_environment.Pipeline is not null || WaitsForReady(exception)) && IsSafeToSendAgain(exception);

    /// <summary>Law 7: at most once, unless told.</summary>
    public bool IsSafeToSendAgain(Exception? outcome) =>
        !_disposed
        && _current is not { IsCommitted: true }
        && outcome is not NoChannelException { IsTransient: false }
        && ((outcome is not null && CallFaults.NeverLeft(outcome)) || _environment.Idempotency.IsIdempotent(Method, typeof(TRequest), typeof(TResponse)));

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
                    if (HasOneResponse)
                    {
                        throw;
                    }

                    return default!; // a stream shows its failures to who reads it
                }

                inHand = exception;
            }
        }

        var outcome = await RunSlowlyAsync(inHand).ConfigureAwait(false);
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
        using var stop = new CancellationTokenSource(CallCompletion.DueTime(Options.Deadline, TimeProvider), TimeProvider);
        using var registration = Options.CancellationToken.UnsafeRegister(static state => ((CancellationTokenSource)state!).Cancel(), stop);
        bool disposed;
        lock (this)
        {
            _stop = stop;
            disposed = _disposed;
        }

        if (disposed)
        {
            await stop.CancelAsync().ConfigureAwait(false);
        }

        try
        {
            var execution = new Execution(this, stop.Token);
            if (inHand is not null)
            {
                execution.Last = Outcome.FromException<TResponse>(inHand);
            }
            else if (_environment.OnFailureOnly)
            {
                await execution.TryAsync(stop.Token).ConfigureAwait(false);
                inHand = execution.Last.Exception;
            }

            if (!_environment.OnFailureOnly || (inHand is not null && MayBeRetried(inHand)))
            {
                execution.IsInHand = inHand is not null;
                await execution.EnterPipelineAsync(_environment.Pipeline!).ConfigureAwait(false);
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
        _environment is { Pipeline: not null, OnFailureOnly: true } && CallFaults.IsTransient(exception) && IsSafeToSendAgain(exception);

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
        bool disposed;
        bool complete;
        lock (this)
        {
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
        else if (complete)
        {
            try
            {
                attempt.RequestStream!.CompleteAsync().Observe();
            }
            catch (ObjectDisposedException)
            {
                // Ended already, by whoever was told of it above.
            }
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

    private async Task<Metadata> ReadHeadersAsync(object holder)
    {
        var attempt = _current ?? await NextAttemptAsync(failed: null).ConfigureAwait(false);
        while (true)
        {
            try
            {
                var headers = await attempt!.ResponseHeadersAsync.ConfigureAwait(false);
                if (!await IsRefusedAsync(attempt).ConfigureAwait(false) && attempt.TryCommit())
                {
                    GC.KeepAlive(holder);
                    return headers;
                }

                var next = await NextAttemptAsync(attempt).ConfigureAwait(false);
                if (next is null)
                {
                    return headers;
                }

                attempt = next;
            }
            catch (Exception exception) when (!attempt!.IsCommitted && (attempt.EndedByDriver || MayMoveOn(exception)))
            {
                // The driver sees this failure too: it is one of the whole attempt.
                var next = await NextAttemptAsync(attempt).ConfigureAwait(false);
                if (next is null)
                {
                    throw;
                }

                attempt = next;
            }
        }
    }

    // A server that refuses a call in its headers (Trailers-Only) has not answered it: another attempt may. The channel gives the headers
    // first, and then the failure.
    private async ValueTask<bool> IsRefusedAsync(CallAttempt<TRequest, TResponse> attempt)
    {
        if (!HasOneResponse || attempt.IsCommitted || _environment.Pipeline is null)
        {
            return false;
        }

        for (var yields = 0; yields < 1000 && !attempt.Outcome.IsCompleted; yields++)
        {
            await Task.Yield();
        }

        return attempt.Outcome is { IsFaulted: true, Exception.InnerException: { } failure } && MayMoveOn(failure);
    }

    private bool WaitsForReady(Exception? exception) => Options.IsWaitForReady && exception is not null && CallFaults.IsNotConnected(exception);

    /// <summary>The attempts that are made on the slow path, one after the other.</summary>
    private sealed class Execution(PooledCall<TRequest, TResponse> call, CancellationToken stop)
    {
        private static readonly TimeSpan FirstPause = TimeSpan.FromMilliseconds(50);
        private static readonly TimeSpan LongestPause = TimeSpan.FromSeconds(1);

        private bool _tried;

        /// <summary>The outcome of the last attempt.</summary>
        public Outcome<TResponse> Last { get; set; }

        /// <summary>Whether the pipeline has yet to be shown an attempt that was made outside.</summary>
        public bool IsInHand { get; set; }

        public async ValueTask EnterPipelineAsync(ResiliencePipeline pipeline)
        {
            var context = ResilienceContextPool.Shared.Get(call.Method.FullName, continueOnCapturedContext: false, stop);
            try
            {
                CallResilience.Attach(context, call);
                Last = await pipeline.ExecuteOutcomeAsync(
                    static (context, execution) => execution.ExecuteAsync(context.CancellationToken), context, this).ConfigureAwait(false);
            }
#pragma warning disable CA1031 // A callback of the user's in the pipeline threw: the call ends with that.
            catch (Exception exception)
#pragma warning restore CA1031
            {
                Last = Outcome.FromException<TResponse>(exception);
            }
            finally
            {
                ResilienceContextPool.Shared.Return(context);
            }
        }

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
                if (!call.IsSafeToSendAgain(Last.Exception) || call._current?.TryAbandon() == false)
                {
                    return Last;
                }

                call._environment.Pool.CountRetry();
            }

            _tried = true;
            await TryAsync(cancellationToken).ConfigureAwait(false);
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

                if (call._current?.TryAbandon() != false)
                {
                    await TryOnceAsync(cancellationToken).ConfigureAwait(false);
                }
            }
        }

        // A lease, not on the channel that failed last, and the call on it.
        private async ValueTask TryOnceAsync(CancellationToken cancellationToken)
        {
            try
            {
                var attempt = new CallAttempt<TRequest, TResponse>(await LeaseAsync(cancellationToken).ConfigureAwait(false), call);
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

        private async ValueTask<ChannelLease> LeaseAsync(CancellationToken cancellationToken)
        {
            var pool = call._environment.Pool;
            try
            {
                // A call that waits for ready waits for its deadline alone.
                var timeout = call.Options.IsWaitForReady ? Timeout.InfiniteTimeSpan : pool.AcquireTimeout;
                return await pool.AcquireAsync(timeout, call._current?.Channel, cancellationToken).ConfigureAwait(false);
            }
            catch (Exception exception) when (exception is not OperationCanceledException)
            {
                throw CallErrors.NoChannel(exception);
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
                return Outcome.FromException<TResponse>(
                    cancellationToken.IsCancellationRequested && !stop.IsCancellationRequested ? new OperationCanceledException(cancellationToken) : exception);
            }
        }
    }
}

using System.Collections;
using System.Globalization;
using Grpc.Core;

namespace PoolingInvoker;

/// <summary>
/// One RPC: attempts on leased channels, one after the other, until one commits or no more are made.
/// </summary>
/// <remarks>
/// <see cref="RunAsync"/>, in PooledCall.Driver.cs, drives: it alone starts attempts. Readers, writers and the headers follow: they use
/// the current attempt, and when that fails them they ask <see cref="NextAttemptAsync"/> whether there is another. An attempt becomes the
/// call (it is settled) when it commits, and also when it has failed and no other one follows.
/// </remarks>
internal sealed partial class PooledCall<TRequest, TResponse> : IRetryableCall, IEnumerable<KeyValuePair<string, object>>
    where TRequest : class
    where TResponse : class
{
    private static readonly TimeSpan ResponseGrace = TimeSpan.FromSeconds(30);

    private const string PreviousAttemptsHeader = "grpc-previous-rpc-attempts"; // gRFC A6

    private readonly CallEnvironment _environment;
    private readonly CallPlan _plan;
    private readonly RequestLog? _log; // what has been written, while it may have to be written again

    // Guarded by a lock on this object, which the library alone knows.
    private CallAttempt<TRequest, TResponse>? _current;
    private TaskCompletionSource? _changed; // completes when there is another attempt, or the call has ended; made when somebody waits
    private bool _ended; // no more attempts are made
    private Exception? _failure; // what the last of them ended with
    private bool _disposed;
    private bool _endedByToken; // of a read or a write, and not by the application's Dispose
    private bool _requestsComplete;
    private CallStop? _stop; // ends waits for a lease, and backoff
    private Task<TResponse>? _response;
    private Task<Metadata>? _headers;
    private ITimer? _grace;
    private int _previousAttempts; // that may have reached a server

    public PooledCall(CallEnvironment environment, MethodType kind, Method<TRequest, TResponse> method, string? host, CallOptions options, TRequest? request)
    {
        _environment = environment;
        _plan = environment.PlanOf(method);
        _log = kind is MethodType.ClientStreaming or MethodType.DuplexStreaming && (_plan.Pipeline is not null || options.IsWaitForReady)
            ? new RequestLog(environment.ReplaySpace, environment.MaxReplaySize)
            : null;
        Kind = kind;
        Method = method;
        Host = host;
        Options = options.Headers is { Count: > 0 } headers ? options.WithHeaders(Copy(headers)) : options;
        WriteOptions = options.WriteOptions;
        Request = request;
    }

    public MethodType Kind { get; }

    public Method<TRequest, TResponse> Method { get; }

    public string? Host { get; }

    /// <summary>What the caller gave, as it was when the call was started: the headers are a copy, as the caller may use its object again.</summary>
    public CallOptions Options { get; }

    public TRequest? Request { get; }

    /// <summary>
    /// The options of an attempt. A call that waits for ready does so here, without a lease and from channel to channel, and not on the
    /// channel that it happened to get. On one of the user's own that channel waits too: it alone knows for what, such as its resolver.
    /// </summary>
    public CallOptions AttemptOptions(PooledChannel channel, int previousAttempts)
    {
        var options = Options.IsWaitForReady && channel.Transport is not null ? Options.WithWaitForReady(false) : Options;
        options = options.Credentials is { } credentials ? options.WithCredentials(new CallersCredentials(credentials)) : options;
        return previousAttempts > 0 ? options.WithHeaders(WithPreviousAttempts(options.Headers, previousAttempts)) : options;
    }

    /// <summary>What the application has set on the writer.</summary>
    public WriteOptions? WriteOptions { get; private set; }

    public TimeProvider TimeProvider => _environment.Pool.TimeProvider;

    /// <summary>The attempt that is the call from now on, if there is one yet.</summary>
    public CallAttempt<TRequest, TResponse>? Settled =>
        _current is { } current && (current.IsCommitted || (HasEnded && ReferenceEquals(current.Failure, _failure))) ? current : null;

    /// <summary>Whether requests are kept for another attempt.</summary>
    public bool KeepsRequests => _log is not null;

    /// <summary>Whether the application has said that no more requests come.</summary>
    public bool AreRequestsComplete => Volatile.Read(ref _requestsComplete);

    /// <summary>Whether the caller has disposed the call.</summary>
    public bool IsDisposed => Volatile.Read(ref _disposed);

    /// <summary>Whether the caller has ended the call, by Dispose, its token or its deadline.</summary>
    public bool IsEndedByCaller =>
        _disposed || Options.CancellationToken.IsCancellationRequested || CallCompletion.DueTime(Options.Deadline, TimeProvider) == TimeSpan.Zero;

    /// <summary>Whether there are no more leases.</summary>
    public bool IsPoolDisposed => _environment.Pool.IsDisposed;

    private bool IsStream => Kind != MethodType.Unary;

    private bool HasOneResponse => Kind is MethodType.Unary or MethodType.ClientStreaming;

    private bool HasEnded => Volatile.Read(ref _ended);

    /// <summary>Starts the call. What a bare channel would throw at once is thrown here.</summary>
    public Task<TResponse> Start()
    {
        // A bare channel checks it when it starts the call, which may be later here.
        if (Options.Deadline is { Kind: not DateTimeKind.Utc } deadline && deadline != DateTime.MaxValue && deadline != DateTime.MinValue)
        {
            throw new InvalidOperationException("Deadline must have a kind DateTimeKind.Utc or be equal to DateTime.MaxValue or DateTime.MinValue.");
        }

        _environment.Pool.ThrowIfDisposed();
        if (_plan.OnFailureOnly && !IsHedged && !Options.IsWaitForReady && _environment.Pool.TryLease(IsStream, out var lease))
        {
            try
            {
                _current = new CallAttempt<TRequest, TResponse>(lease, this, previousAttempts: 0);
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

    /// <summary>What the debugger shows of a call object, as that of a bare channel gives it.</summary>
    public IEnumerator<KeyValuePair<string, object>> GetEnumerator()
    {
        if (_current is { } current)
        {
            yield return new KeyValuePair<string, object>("Channel", current.Channel.Channel);
        }

        yield return new KeyValuePair<string, object>("Method", Method);
        if (Kind == MethodType.Unary)
        {
            yield return new KeyValuePair<string, object>("Request", Request!);
        }
    }

    IEnumerator IEnumerable.GetEnumerator() => GetEnumerator();

    public Status GetStatus()
    {
        // Statement order is important: a call that ends meanwhile has an attempt that it has ended with.
        var ended = HasEnded;
        return Told is { } told ? told.GetStatus()
            : ended ? (_failure is null ? Status.DefaultSuccess : _failure is RpcException rpc ? rpc.Status : new Status(StatusCode.Cancelled, string.Empty, _failure))
            : EndedByCallerWith ?? throw new InvalidOperationException("Unable to get the status because the call is not complete.");
    }

    public Metadata GetTrailers() =>
        Told is { } told ? told.GetTrailers()
        : _failure is RpcException { Trailers.Count: > 0 } ofAStrategy ? ofAStrategy.Trailers
        : HasEnded && _failure is null ? []
        : throw new InvalidOperationException("Can't get the call trailers because the call has not completed successfully.");

    /// <summary>
    /// The attempt that tells how the call stands: the settled one, or else the current one, if the caller has ended the call, or if no
    /// other attempt may follow the end of this one. Each of these the caller can know before the driver has seen it.
    /// </summary>
    private CallAttempt<TRequest, TResponse>? Told
    {
        get
        {
            // Statement order is important: a call that ends meanwhile has a settled attempt.
            var ended = HasEnded;
            return Settled is { } settled ? settled
                : !ended && _current is { EndedByDriver: false } current && current.IsOver()
                    && ((IsEndedByCaller && current.Failure is null) || !MayFollow(new RpcException(current.GetStatus()))) ? current
                : null;
        }
    }

    /// <summary>What a call ends with that the caller has ended while there was no attempt under way.</summary>
    private Status? EndedByCallerWith =>
        _current is { Failure: null, EndedByDriver: false } ? null
        : _disposed ? CallErrors.Disposed
        : Options.CancellationToken.IsCancellationRequested ? CallErrors.Cancelled(Options.CancellationToken)
        : IsEndedByCaller ? CallErrors.DeadlineExceeded(_current?.Failure)
        : null;

    /// <param name="holder">What the application holds of the call, which stays until it has the headers.</param>
    public Task<Metadata> GetResponseHeadersAsync(object holder)
    {
        if (_headers is null)
        {
            // Whoever has seen why there are no headers need not look at the response.
            _headers = Settled?.ResponseHeadersAsync is { IsCompleted: true } headers ? headers : ReadHeadersAsync(holder);
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
        CallStop? stop;
        lock (this)
        {
            _disposed = true;
            current = _current;
            stop = _stop;
        }

        stop?.Cancel();
        if (_response is { IsCompletedSuccessfully: false } response)
        {
            response.Observe();
        }

        current?.Dispose();
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

        try
        {
            Dispose(); // also what waits for a lease or for another attempt; and it does nothing to what has ended
        }
        catch (AggregateException)
        {
            // A callback of the user's on the token of the call, for which there is nobody left.
        }
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

        if (current is not { Replayed.IsCompleted: true })
        {
            return Task.CompletedTask; // they are completed when there is an attempt that has them all
        }

        try
        {
            return current.RequestStream!.CompleteAsync();
        }
        catch (ObjectDisposedException) when (current.EndedByDriver)
        {
            return Task.CompletedTask; // they are completed on the next attempt
        }
    }

    /// <summary>
    /// A request is through to this attempt: it is kept for another one, or else this attempt is the call from now on. False if another
    /// attempt has taken its place, which has yet to get the request.
    /// </summary>
    /// <param name="request">The request.</param>
    /// <param name="attempt">The attempt.</param>
    /// <param name="answers">
    /// Whether there were headers before it was written, which commit (gRFC A6). A server that refuses a call sends them, too, and ends the
    /// call with them: then the write fails.
    /// </param>
    public bool Keep(ReplayableRequest request, CallAttempt<TRequest, TResponse> attempt, bool answers)
    {
        lock (this)
        {
            if (_current != attempt)
            {
                return false;
            }

            if (attempt.IsCommitted || _ended || (!answers && _log is not null && _log.TryAdd(request)))
            {
                return true;
            }
        }

        return attempt.TryCommit();
    }

    /// <summary>There is no other attempt that could need the requests.</summary>
    public void ForgetRequests()
    {
        if (_log is not null)
        {
            lock (this)
            {
                _log.Clear();
            }
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

            await WaitAsync(changed, cancellationToken).ConfigureAwait(false);
        }
    }

    /// <summary>Waits for the call to go on. The token is that of a read or a write: as on a bare channel it ends the call.</summary>
    public async ValueTask WaitAsync(Task task, CancellationToken cancellationToken)
    {
        try
        {
            await task.WaitAsync(cancellationToken).ConfigureAwait(false);
        }
        catch (OperationCanceledException) when (cancellationToken.IsCancellationRequested)
        {
            _endedByToken |= !_disposed;
            Dispose();
            if (_environment.Pool.ThrowsOperationCanceled)
            {
                throw;
            }

            throw new RpcException(CallErrors.Cancelled(cancellationToken));
        }
    }

    /// <summary>
    /// What a read has to throw that met a disposed channel or attempt, where the application had not disposed the call before it: how the
    /// call ended.
    /// </summary>
    /// <param name="exception">What it met.</param>
    /// <param name="attempt">Where.</param>
    /// <param name="wasDisposed">Whether the application had.</param>
    public RpcException? EndedOtherwise(Exception exception, CallAttempt<TRequest, TResponse> attempt, bool wasDisposed) =>
        exception is ObjectDisposedException && (_endedByToken || !wasDisposed)
            ? new RpcException(attempt.IsOver() ? attempt.GetStatus() : CallErrors.Disposed) // a moment passes between a Dispose and the status
            : null;

    /// <summary>A call that was disposed before it had a channel takes no more; one that has a channel asks that.</summary>
    public void ThrowIfDisposed() => ObjectDisposedException.ThrowIf(_disposed && _current is null, this);

    /// <summary>Whether the end of an attempt may be followed by another one: a predicate of the user's is not asked.</summary>
    public bool MayFollow(Exception exception) => MayMoveOn(exception) && (!_plan.OnFailureOnly || CallFaults.IsTransient(exception));

    /// <summary>Whether a failure that a reader or writer has met may be followed by another attempt.</summary>
    public bool MayMoveOn(Exception exception) =>
        (_plan.Pipeline is not null || WaitsForReady(exception)) && MayBeSentAgain(exception);

    /// <summary>
    /// Law 7: at most once, unless told. And not if the application has seen something of the last attempt, nor if the server has asked
    /// not to (gRFC A6), nor if the budget of the pool is spent, which what never left does not burden.
    /// </summary>
    public bool MayBeSentAgain(Exception? outcome) =>
        !_disposed
        && _current is not { IsCommitted: true }
        && outcome is not NoChannelException { IsTransient: false }
        && !(outcome is not null && CallFaults.Pushback(outcome) is { } pushback && (pushback == Timeout.InfiniteTimeSpan || EndsWithin(pushback)))
        && ((outcome is not null && CallFaults.NeverLeft(outcome)) || (IsIdempotent && _environment.Budget is not { AllowsRetry: false }));

    public TimeSpan? DelayBeforeRetry(Exception? outcome, int attemptNumber) =>
        outcome is not null && CallFaults.Pushback(outcome) is { } pushback ? pushback
        : attemptNumber == 0 && _environment.Pool.HasReady(otherThan: _current?.Channel) ? TimeSpan.Zero
        : null;

    public bool EndsWithin(TimeSpan delay) =>
        CallCompletion.DueTime(Options.Deadline, TimeProvider) is var left && left != Timeout.InfiniteTimeSpan && left <= delay;

    /// <summary>The budget of the pool hears of the end of each attempt.</summary>
    public void CountOutcome(Exception? failure)
    {
        if (_environment.Budget is not { } budget)
        {
            return;
        }

        if (failure is null)
        {
            budget.Succeeded();
        }
        else if (IsIdempotent
            && (CallFaults.Judge(failure) is { IsTransient: true, Fate: RequestFate.MayHaveBeenProcessed } || CallFaults.Pushback(failure) == Timeout.InfiniteTimeSpan))
        {
            budget.Failed();
        }
    }

    private bool IsIdempotent => _environment.IsIdempotent(_plan, Method, typeof(TRequest), typeof(TResponse));

    private bool IsHedged => _plan.Hedging is not null && Kind == MethodType.Unary && !Options.IsWaitForReady && IsIdempotent;

    // An enumerator of Metadata is an object of its own.
    private static Metadata Copy(Metadata headers)
    {
        var copy = new Metadata();
        for (var i = 0; i < headers.Count; i++)
        {
            copy.Add(headers[i]);
        }

        return copy;
    }

    private static Metadata WithPreviousAttempts(Metadata? headers, int previousAttempts)
    {
        var copy = new Metadata();
        foreach (var entry in headers ?? [])
        {
            if (entry.Key != PreviousAttemptsHeader)
            {
                copy.Add(entry);
            }
        }

        copy.Add(PreviousAttemptsHeader, previousAttempts.ToString(CultureInfo.InvariantCulture));
        return copy;
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
            catch when (!attempt!.IsCommitted)
            {
                // The driver sees this failure too, and judges it: it is one of the whole attempt.
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
        if (!HasOneResponse || attempt.IsCommitted || _plan.Pipeline is null)
        {
            return false;
        }

        // The headers are told below the continuation of the channel that goes on to end the call, or to wait for the response. Where
        // that is too late the caller has the headers of a refusal and then its status, as on a bare channel.
        for (var yields = 0; yields < 64 && !attempt.Outcome.IsCompleted; yields++)
        {
            await Task.CompletedTask.ConfigureAwait(ConfigureAwaitOptions.ForceYielding);
        }

        return attempt.Outcome is { IsFaulted: true, Exception.InnerException: { } failure } && MayMoveOn(failure);
    }
}

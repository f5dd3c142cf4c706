using Grpc.Core;

namespace PoolingInvoker;

/// <summary>
/// A call that streams requests, responses or both. Reader and writer follow it from attempt to attempt: they use the current one, and when
/// that fails them ask <see cref="NextAttemptAsync"/> whether there is another. What was written is kept until the call commits.
/// </summary>
internal sealed class StreamingCall<TRequest, TResponse> : PooledCall<TRequest, TResponse>
    where TRequest : class
    where TResponse : class
{
    private static readonly TimeSpan ResponseGrace = TimeSpan.FromSeconds(30);

    private readonly object _gate;
    private readonly RequestLog? _log; // what has been written, while it may have to be written again; guarded by the gate
    private StreamAttempt<TResponse>? _current; // written under the gate
    private EndedCall? _ended;
    private bool _areRequestsComplete; // written under the gate
    private RpcException? _endedByToken; // of a read or a write, and not by the application's Dispose
    private ITimer? _grace;

    public StreamingCall(CallEnvironment environment, MethodType kind, Method<TRequest, TResponse> method, GivenOptions given, TRequest? request)
        : base(environment, method, given, request)
    {
        Kind = kind;
        WriteOptions = Options.WriteOptions;
        _log = kind is MethodType.ClientStreaming or MethodType.DuplexStreaming && (Plan.Pipeline is not null || Options.IsWaitForReady)
            ? new RequestLog(environment.ReplaySpace, environment.MaxReplaySize)
            : null;
        _gate = _log ?? new object();
    }

    public override MethodType Kind { get; }

    public WriteOptions? WriteOptions { get; private set; }

    /// <summary>The attempt that is the call from now on, if there is one yet.</summary>
    public StreamAttempt<TResponse>? Final
    {
        get
        {
            // Statement order is important: what a call has ended with is there before it is completed.
            var isCompleted = IsCompleted;
            return Volatile.Read(ref _current) is { } current && (current.IsCommitted || (isCompleted && _ended is null)) ? current : null;
        }
    }

    public bool KeepsRequests => _log is not null;

    public bool AreRequestsComplete => Volatile.Read(ref _areRequestsComplete);

    public override object? Attempt => _ended ?? (object?)Volatile.Read(ref _current);

    public override PooledChannel? Channel => _current?.Channel;

    public override bool IsCommitted => _current is { IsCommitted: true };

    public override Status? EndedByToken => _endedByToken?.Status;

    protected override InnerCall? Inner => _ended is { } ended ? InnerCall.Of(ended) : Volatile.Read(ref _current)?.Inner;

    protected override bool IsEndedByLoop => _current is { IsEndedByLoop: true };

    protected override bool HasFailed => _current is { Failure: not null };

    public override Task<TResponse> StartAttempt(AttemptLease lease, int previousAttempts)
    {
        var attempt = StreamAttempt<TResponse>.Start(this, lease, previousAttempts);
        Publish(attempt);
        return attempt.Deciding;
    }

    public override Exception? AttemptDecided(Exception? failure)
    {
        _current!.Decided(failure);
        CountOutcome(failure);
        return AsEndOfCall(failure);
    }

    public override bool TryAbandon() => _current is not { } current || current.TryAbandon();

    public override void EndAttempt() => _current?.EndByLoop();

    public bool TryCommit(StreamAttempt<TResponse> attempt)
    {
        if (!attempt.TryCommit())
        {
            return false;
        }

        ForgetRequests();
        return true;
    }

    protected override bool TryCommit(object attempt) => TryCommit((StreamAttempt<TResponse>)attempt);

    protected override Task<TResponse>? ResponseOf(object attempt) => (attempt as StreamAttempt<TResponse>)?.Deciding;

    protected override void Judge(object attempt, Exception failure) => ((StreamAttempt<TResponse>)attempt).Judge(failure);

    protected override void DisposeAttempt() => Volatile.Read(ref _current)?.Dispose(endsCall: true);

    protected override bool TryLease(out AttemptLease lease)
    {
        var isThere = Environment.Pool.TryLease(isStream: true, out var taken);
        lease = isThere ? new AttemptLease(taken!) : default;
        return isThere;
    }

    protected override void EndWith(object end)
    {
        if (end is StreamAttempt<TResponse> attempt)
        {
            Volatile.Write(ref _current, attempt);
        }
        else
        {
            _ended = (EndedCall)end;
        }
    }

    protected override void Completed()
    {
        ForgetRequests();
        _grace?.Dispose();
    }

    public void SetWriteOptions(WriteOptions? options)
    {
        WriteOptions = options;
        if (_current?.RequestStream is { } stream)
        {
            stream.WriteOptions = options;
        }
    }

    /// <summary>A call that was disposed before it had a channel takes no more; one that has a channel asks that.</summary>
    public void ThrowIfDisposed()
    {
        if ((IsDisposed || IsPoolDisposed) && _endedByToken is null && _current is null)
        {
            IsToldDisposed = true;
            throw new ObjectDisposedException(GetType().FullName);
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
        else if (!AreRequestsComplete && !Response!.IsCompleted)
        {
            _grace = TimeProvider.CreateTimer(static call => ((StreamingCall<TRequest, TResponse>)call!).EndDropped(), this, ResponseGrace, Timeout.InfiniteTimeSpan);
        }
    }

    /// <summary>The requests are complete: at once, or when there is an attempt to complete them on.</summary>
    public Task CompleteRequestsAsync()
    {
        StreamAttempt<TResponse>? current;
        lock (_gate)
        {
            _areRequestsComplete = true;
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
        catch (ObjectDisposedException) when (current.IsEndedByLoop || HasEndedOn(current))
        {
            return Task.CompletedTask; // they are completed on the next attempt, if there is one
        }
    }

    /// <summary>
    /// Whether a call that meets a disposed channel had ended before: its lease was back, and the pool has closed the channel. To the
    /// application it is over, as on a bare channel, and not disposed.
    /// </summary>
    public bool HasEndedOn(StreamAttempt<TResponse> attempt) =>
        !IsDisposed && attempt.IsReleased && attempt.IsOver() && attempt.Inner.GetStatus().StatusCode != StatusCode.Cancelled;

    /// <summary>
    /// A request is through to this attempt: it is kept for another one, or else this attempt is the call from now on. False if another
    /// attempt has taken its place, which has yet to get the request. Headers that came before it was written commit (gRFC A6): a server that
    /// refuses a call sends them, too, but then the write fails.
    /// </summary>
    public bool Keep(ReplayableRequest request, StreamAttempt<TResponse> attempt, bool hadHeaders)
    {
        lock (_gate)
        {
            if (_current != attempt)
            {
                return false;
            }

            if (attempt.IsCommitted || IsCompleted || (!hadHeaders && _log is not null && _log.TryAdd(request)))
            {
                return true;
            }
        }

        return TryCommit(attempt);
    }

    /// <summary>
    /// Waits for another attempt than this one, or for the first. Null if there will be none: then what this one threw is what the call
    /// ends with. Throws if the call ends with something else.
    /// </summary>
    public async ValueTask<StreamAttempt<TResponse>?> NextAttemptAsync(StreamAttempt<TResponse>? failed, CancellationToken cancellationToken)
    {
        while (true)
        {
            var isCompleted = IsCompleted;
            if (Volatile.Read(ref _current) is { } current && current != failed)
            {
                return current;
            }

            if (isCompleted)
            {
                return _ended is null ? null : throw _ended.Exception!;
            }

            await WaitAsync(ChangedAsync(failed), cancellationToken).ConfigureAwait(false);
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
            var ended = new RpcException(CallErrors.Cancelled(Options.CancellationToken.IsCancellationRequested ? Options.CancellationToken : cancellationToken));
            if (!IsDisposed)
            {
                Interlocked.CompareExchange(ref _endedByToken, ended, null);
            }

            Dispose();
            if (Environment.Pool.ThrowsOperationCanceled)
            {
                throw;
            }

            throw ended;
        }
    }

    /// <summary>
    /// What a read throws that has met this. Where that was a disposed channel or attempt, and the application had not disposed the call before
    /// it: how the call ended.
    /// </summary>
    public Exception EndOf(StreamAttempt<TResponse> attempt, Exception met, bool wasDisposed)
    {
        if (met is not ObjectDisposedException)
        {
            return AsEndOfCall(met);
        }

        IsToldDisposed = true;
        return _endedByToken is null && wasDisposed ? met : new RpcException(attempt.IsOver() ? attempt.Inner.GetStatus() : CallErrors.Disposed);
    }

    private void EndDropped()
    {
        if (!IsDisposed && _current is { IsReleased: false })
        {
            Environment.Pool.CountReclaimedLeak();
            Environment.Pool.Log.LeakReclaimed(Method.FullName);
        }

        try
        {
            Dispose(); // also what waits for a lease or for another attempt; and it does nothing to what has ended
        }
        catch (AggregateException)
        {
            // Of a callback of the user's on the token of the call, for which there is nobody left.
        }
    }

    private void Publish(StreamAttempt<TResponse> attempt)
    {
        TaskCompletionSource? replaying = null;
        IReadOnlyList<ReplayableRequest> requests;
        bool isComplete;
        lock (_gate)
        {
            requests = _log?.Requests ?? [];
            if (requests.Count > 0)
            {
                replaying = new TaskCompletionSource(TaskCreationOptions.RunContinuationsAsynchronously);
                attempt.Replayed = replaying.Task;
                replaying.Task.Observe();
            }

            _current = attempt;
            isComplete = _areRequestsComplete;
        }

        // Statement order is important: whoever waits goes on, whatever the channel says below.
        AttemptStarted();
        var isDisposed = IsDisposed;
        if (isDisposed)
        {
            attempt.Dispose(endsCall: true);
        }

        if (replaying is not null)
        {
            _ = ReplayAsync(attempt, requests, replaying);
        }
        else if (isComplete && !isDisposed)
        {
            attempt.CompleteRequests();
        }
    }

    // Writes to an attempt what was written to those before it. A write that fails shows that the attempt has failed, which the loop
    // sees, too.
    private async Task ReplayAsync(StreamAttempt<TResponse> attempt, IReadOnlyList<ReplayableRequest> requests, TaskCompletionSource replaying)
    {
        try
        {
            await attempt.WriteAsync(requests).ConfigureAwait(false);
            attempt.RequestStream!.WriteOptions = WriteOptions;
        }
#pragma warning disable CA1031 // Whoever writes next gets the exception.
        catch (Exception exception)
#pragma warning restore CA1031
        {
            replaying.SetException(exception);
            return;
        }

        bool isComplete;
        lock (_gate)
        {
            replaying.SetResult();
            isComplete = _areRequestsComplete;
        }

        if (isComplete)
        {
            attempt.CompleteRequests();
        }
    }

    // There is no other attempt that could need them.
    private void ForgetRequests()
    {
        if (_log is not null)
        {
            lock (_gate)
            {
                _log.Clear();
            }
        }
    }
}

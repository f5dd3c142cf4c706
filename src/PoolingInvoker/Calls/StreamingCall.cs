namespace PoolingInvoker;

/// <summary>
/// A call that streams requests, responses or both. Reader and writer follow it from attempt to attempt: they use the current one, and when
/// that fails them ask <see cref="NextAttemptAsync"/> whether there is another. What was written is kept until the call commits.
/// </summary>
internal sealed class StreamingCall<TRequest, TResponse> : PooledCall<TResponse>
    where TRequest : class
    where TResponse : class
{
    private static readonly TimeSpan ResponseGrace = TimeSpan.FromSeconds(30);

    private RequestLog? _log; // what has been written, while it may have to be written again; guarded by the gate
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
    }

    public override MethodType Kind { get; }
    public WriteOptions? WriteOptions { get; private set; }

    public StreamAttempt<TResponse>? FinalStream => Final as StreamAttempt<TResponse>;
    public bool KeepsRequests => _log is not null;
    public bool AreRequestsComplete => Volatile.Read(ref _areRequestsComplete);
    protected override Status? EndedByToken => _endedByToken?.Status;
    private StreamAttempt<TResponse>? Stream => Attempt as StreamAttempt<TResponse>;
    private object Gate => this; // the application holds its handle alone

    public override bool TryCommit(CallAttempt attempt)
    {
        if (!base.TryCommit(attempt))
        {
            return false;
        }

        (attempt as StreamAttempt<TResponse>)?.WasCommitted();
        ForgetRequests();
        return true;
    }

    protected override StreamAttempt<TResponse> NewAttempt(PooledChannel channel, object lease) => new(this, channel, lease);

    protected override void StartOn(CallInvoker channel, CallAttempt<TResponse> attempt, CallOptions options)
    {
        var (stream, method) = ((StreamAttempt<TResponse>)attempt, (Method<TRequest, TResponse>)Method);
        SendOnceHandler.Begin(HasOneResponse ? null : method.FullName);
        try
        {
            stream.Inner = Kind switch
            {
                MethodType.ClientStreaming => channel.AsyncClientStreamingCall(ReplayableRequest.MethodOf(method), Given.Host, options),
                MethodType.ServerStreaming => channel.AsyncServerStreamingCall(method, Given.Host, options, (TRequest)Request!),
                _ => channel.AsyncDuplexStreamingCall(ReplayableRequest.MethodOf(method), Given.Host, options),
            };
            stream.Started(SendOnceHandler.Response);
        }
        finally
        {
            SendOnceHandler.Begin(null);
        }

        if (stream.RequestStream is { } requests && WriteOptions != requests.WriteOptions)
        {
            requests.WriteOptions = WriteOptions;
        }
    }

    protected override void SetCompleted(bool isCancelled)
    {
        base.SetCompleted(isCancelled);
        ForgetRequests();
        _grace?.Dispose();
    }

    public void SetWriteOptions(WriteOptions? options)
    {
        WriteOptions = options;
        if (Stream?.RequestStream is { } stream)
        {
            stream.WriteOptions = options;
        }
    }

    /// <summary>A disposed call that has nothing on a channel takes no more. What a call on a channel takes, that call says.</summary>
    public void ThrowIfDisposed()
    {
        var isDisposed = Channel is null ? IsDisposed || IsPoolDisposed : IsDisposed && Attempt is EndedCall;
        if (isDisposed && _endedByToken is null)
        {
            IsToldDisposed = true;
            throw new ObjectDisposedException(GetType().FullName);
        }
    }

    // The response of a client stream may be awaited all the same, which nobody can know: it gets a while longer for that.
    public override void Reclaim()
    {
        if (Kind != MethodType.ClientStreaming)
        {
            EndDropped();
        }
        else if (!AreRequestsComplete && !IsCompleted)
        {
            _grace = TimeProvider.CreateTimer(
                static call => ((StreamingCall<TRequest, TResponse>)call!).EndDropped(), this, ResponseGrace, Timeout.InfiniteTimeSpan);
        }
    }

    public Task CompleteRequestsAsync()
    {
        StreamAttempt<TResponse>? current;
        lock (Gate)
        {
            _areRequestsComplete = true;
            current = Stream;
        }

        if (current is not { Replayed.IsCompleted: true })
        {
            _ = current?.CompleteRequestsAsync();
            return Task.CompletedTask; // they are completed when there is an attempt that has them all
        }

        try
        {
            return current.RequestStream!.CompleteAsync();
        }
        catch (ObjectDisposedException) when (current.IsAbandoned || EndOfWrites(current) is not null)
        {
            return Task.CompletedTask; // they are completed on the next attempt, if there is one
        }
    }

    /// <summary>Whether a call that meets a disposed channel had ended before: to the application it is over, and not disposed.</summary>
    public bool HasEndedOn(StreamAttempt<TResponse> attempt) =>
        !IsDisposed && (attempt.IsReleased || attempt.IsBroken) && attempt.IsOver() && attempt.GetStatus().StatusCode != StatusCode.Cancelled;

    public bool IsEndedByToken => _endedByToken is not null;

    /// <summary>What a writer meets that has met a disposed channel, unless the application has disposed the call: then null.</summary>
    public RpcException? EndOfWrites(StreamAttempt<TResponse> attempt) => _endedByToken ?? (HasEndedOn(attempt) ? attempt.NewEndException() : null);

    /// <summary>
    /// A request is through to this attempt: it is kept for another one, or else this attempt is the call from now on. False if another
    /// attempt has taken its place, which has yet to get the request. Headers that came before it was written commit (gRFC A6): a server that
    /// refuses a call sends them, too, but then the write fails.
    /// </summary>
    public bool Keep(ReplayableRequest request, StreamAttempt<TResponse> attempt, bool hadHeaders)
    {
        lock (Gate)
        {
            if (Stream is { } current && current != attempt)
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

    /// <summary>Waits for another attempt, or for the first. Null if this one is the last; throws what the call ends with otherwise.</summary>
    public async ValueTask<StreamAttempt<TResponse>?> NextAttemptAsync(StreamAttempt<TResponse>? failed, CancellationToken cancellationToken)
    {
        while (true)
        {
            var isCompleted = IsCompleted;
            switch (Attempt)
            {
                case EndedCall ended:
                    throw ended.Exception;
                case StreamAttempt<TResponse> current when current != failed:
                    return current;
                case not null when isCompleted:
                    return null;
                default:
                    break;
            }

            await WaitAsync(Loop.ChangedAsync(failed), cancellationToken).ConfigureAwait(false);
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
            var token = Options.CancellationToken.IsCancellationRequested ? Options.CancellationToken : cancellationToken;
            var ended = new RpcException(CallErrors.Cancelled(token));
            if (!IsDisposed)
            {
                Interlocked.CompareExchange(ref _endedByToken, ended, null);
            }

            Dispose();
            if (Pool.ThrowsOperationCanceled)
            {
                throw;
            }

            throw ended;
        }
    }

    /// <summary>
    /// What a read throws that has met this. Where that was a disposed channel, and the application had not disposed the call before: how the call
    /// ended, which is null if that was in good order.
    /// </summary>
    public Exception? EndOf(StreamAttempt<TResponse> attempt, Exception met, bool wasDisposed)
    {
        if (met is not ObjectDisposedException)
        {
            return AsEndOfCall(met, attempt);
        }

        if (HasEndedOn(attempt))
        {
            return attempt.GetStatus().StatusCode == StatusCode.OK ? null : attempt.NewEndException();
        }

        IsToldDisposed = true;
        return _endedByToken is null && wasDisposed ? met : new RpcException(attempt.IsOver() ? attempt.GetStatus() : CallErrors.Disposed);
    }

    private void EndDropped()
    {
        if (!IsDisposed && Attempt is { IsReleased: false })
        {
            Pool.State.Metrics.Tally.CountReclaimedLeak();
            Pool.State.Log.LeakReclaimed(Method.FullName);
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

    public override void Publish(CallAttempt<TResponse> attempt)
    {
        var stream = (StreamAttempt<TResponse>)attempt;
        bool isComplete;
        lock (Gate)
        {
            if (_log is { Requests: { Count: > 0 } requests })
            {
                stream.Replayed = ReplayAsync(stream, requests);
                stream.Replayed.Observe(); // whoever writes next gets the exception
            }

            SetAttempt(attempt);
            isComplete = _areRequestsComplete;
        }

        base.Publish(attempt);
        if (isComplete)
        {
            _ = stream.CompleteRequestsAsync();
        }
    }

    // Not under the lock. A write that fails shows that the attempt has failed, which the loop sees, too.
    private async Task ReplayAsync(StreamAttempt<TResponse> attempt, IReadOnlyList<ReplayableRequest> requests)
    {
        await Task.CompletedTask.ConfigureAwait(ConfigureAwaitOptions.ForceYielding);
        foreach (var request in requests)
        {
            attempt.RequestStream!.WriteOptions = request.WriteOptions;
            await attempt.RequestStream.WriteAsync(request).ConfigureAwait(false);
        }

        attempt.RequestStream!.WriteOptions = WriteOptions;
    }

    private void ForgetRequests()
    {
        lock (Gate)
        {
            _log?.GiveBack();
            _log = null;
        }
    }
}

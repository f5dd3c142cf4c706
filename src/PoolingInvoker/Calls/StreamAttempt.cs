namespace PoolingInvoker;

/// <summary>One try of a call that streams.</summary>
internal sealed class StreamAttempt<TResponse>(PooledCall call, PooledChannel channel, object lease) : CallAttempt<TResponse>(channel, lease)
    where TResponse : class
{
    private static readonly Task<TResponse> Committed = Task.FromResult<TResponse>(null!);

    private TaskCompletionSource<TResponse>? _deciding = // null where the response decides, and where a commit has
        call.HasOneResponse ? null : new(TaskCreationOptions.RunContinuationsAsynchronously);

    private CallCompletion? _watch;

    public IDisposable? Inner { get; set; } // the call on the channel: one of the next three

    public override Task<TResponse> Deciding => _deciding?.Task ?? Client?.ResponseAsync ?? Committed;
    protected override Task<Metadata> InnerHeadersAsync =>
        Client?.ResponseHeadersAsync ?? Server?.ResponseHeadersAsync ?? Duplex!.ResponseHeadersAsync;
    public IClientStreamWriter<ReplayableRequest>? RequestStream => Client?.RequestStream ?? Duplex?.RequestStream;
    public IAsyncStreamReader<TResponse>? ResponseStream => Server?.ResponseStream ?? Duplex?.ResponseStream;

    public Task Replayed { get; set; } = Task.CompletedTask; // the requests of earlier attempts
    public bool HasHeaders { get; private set; } // what ends a stream of responses later is known to its reader alone

    private AsyncClientStreamingCall<ReplayableRequest, TResponse>? Client => Inner as AsyncClientStreamingCall<ReplayableRequest, TResponse>;
    private AsyncServerStreamingCall<TResponse>? Server => Inner as AsyncServerStreamingCall<TResponse>;
    private AsyncDuplexStreamingCall<ReplayableRequest, TResponse>? Duplex => Inner as AsyncDuplexStreamingCall<ReplayableRequest, TResponse>;

    public override Status GetStatus() => AsGivenUp(Client?.GetStatus() ?? Server?.GetStatus() ?? Duplex!.GetStatus());
    public override Metadata GetTrailers() => Client?.GetTrailers() ?? Server?.GetTrailers() ?? Duplex!.GetTrailers();

    /// <param name="response">The response of the transport, where it is the pool's own.</param>
    public void Started(Task<HttpResponseMessage>? response)
    {
        if (ResponseStream is not null)
        {
            _ = WatchHeadersAsync(response);
        }
    }

    // What the channel throws at once fails the task, too.
    public Task<bool> ReadAsync(CancellationToken cancellationToken)
    {
        try
        {
            return ResponseStream!.MoveNext(cancellationToken);
        }
        catch (Exception exception)
        {
            return Task.FromException<bool>(exception);
        }
    }

    public void WasCommitted()
    {
        if (_deciding?.TrySetResult(null!) == true)
        {
            _deciding = null; // a stream may last long
        }
    }

    public async Task CompleteRequestsAsync()
    {
        try
        {
            await Replayed.ConfigureAwait(false);
            await RequestStream!.CompleteAsync().ConfigureAwait(false);
        }
        catch // The end of the attempt says the same.
        {
        }
    }

    /// <summary>A reader or writer of the application has met this failure.</summary>
    public void MetFailure(Exception exception)
    {
        if ((exception is ObjectDisposedException or not InvalidOperationException) && IsOver())
        {
            Release(exception);
        }

        _deciding?.TrySetException(exception);
    }

    public void Release(Exception? exception)
    {
        var failure = Failure ?? exception;
        Release(failure, call);
        call.TraceEnd(this, failure);
        Volatile.Read(ref _watch)?.Dispose();
    }

    /// <summary>A call with one response gives its lease back when that has ended.</summary>
    public override void Dispose()
    {
        try
        {
            Inner?.Dispose();
        }
        finally
        {
            if (!call.HasOneResponse)
            {
                var disposed = new RpcException(AsGivenUp(CallErrors.Cancelled(CancellationToken.None)));
                Release(disposed);
                _deciding?.TrySetException(disposed);
            }
        }
    }

    public override void EndedUnread()
    {
        base.EndedUnread();
        call.TraceEnd(this, GetStatus() is { StatusCode: not StatusCode.OK } status ? new RpcException(status) : null);
        _deciding?.TrySetException(new RpcException(GetStatus()));
    }

    public RpcException NewEndException()
    {
        var status = GetStatus();
        try
        {
            return new RpcException(status, GetTrailers());
        }
        catch (InvalidOperationException)
        {
            return new RpcException(status); // it broke before there were any
        }
    }

    // A stream may end without anybody reading it. Until there are headers, every end shows as a failure to get them. Later the
    // deadline and the token of the call are watched: what else can end it then shows only to who reads.
    private async Task WatchHeadersAsync(Task<HttpResponseMessage>? response)
    {
        await ((Task?)response ?? Task.CompletedTask).ConfigureAwait(ConfigureAwaitOptions.SuppressThrowing);
        if (response is null || !SendOnceHandler.IsAnswer(response))
        {
            var headers = ResponseHeadersAsync;
            if (response is not null || !headers.IsCompleted)
            {
                await ((Task)headers).ConfigureAwait(ConfigureAwaitOptions.SuppressThrowing);
                await RefusalDelivery.OverAsync(Channel!.Transport?.Refusals, Deciding).ConfigureAwait(false);
            }

            if (FailureOf(headers) is { } failure)
            {
                // Statement order is important: a channel may be disposed on its last return, and would end the call with that.
                await IsSoonOverAsync().ConfigureAwait(false);
                Release(failure);
                _deciding?.TrySetException(failure);
                return;
            }
        }

        HasHeaders = true;
        Answered();
        if (GivenOptions.DueTime(call.Options.Deadline, call.TimeProvider) != Timeout.InfiniteTimeSpan || call.Options.CancellationToken.CanBeCanceled)
        {
            var watch = new CallCompletion(this, call.Given, call.TimeProvider);
            Interlocked.Exchange(ref _watch, watch); // and a fence: whoever releases the lease looks for the watch afterwards
            if (IsReleased)
            {
                watch.Dispose();
            }
        }
    }
}

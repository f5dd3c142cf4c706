using Grpc.Core;

namespace PoolingInvoker;

/// <summary>One try of a call that streams: a lease, and the call on the leased channel.</summary>
internal sealed class StreamAttempt<TResponse> : CallCompletion
    where TResponse : class
{
    private const int Open = 0;
    private const int Committed = 1;
    private const int Abandoned = 2;

    private readonly TaskCompletionSource<TResponse> _deciding = new(TaskCreationOptions.RunContinuationsAsynchronously);
    private readonly GivenOptions _given;
    private readonly TimeProvider _time;
    private int _state;
    private bool _isEndedByCaller;

    private StreamAttempt(
        AttemptLease lease, InnerCall inner, GivenOptions given, TimeProvider time, IClientStreamWriter<ReplayableRequest>? requests, IAsyncStreamReader<TResponse>? responses)
        : base(lease) => (Inner, _given, _time, RequestStream, ResponseStream) = (inner, given, time, requests, responses);

    public InnerCall Inner { get; }

    /// <summary>
    /// Ends when the attempt is decided. For a call with one response that is the response; for others it is the first message, or
    /// whatever else commits the call.
    /// </summary>
    public Task<TResponse> Deciding => _deciding.Task;

    /// <summary>What the attempt was decided with, if that was a failure.</summary>
    public Exception? Failure { get; private set; }

    public IClientStreamWriter<ReplayableRequest>? RequestStream { get; }

    /// <summary>Completes when the requests of earlier attempts have been written to this one, or one of them could not be.</summary>
    public Task Replayed { get; set; } = Task.CompletedTask;

    public IAsyncStreamReader<TResponse>? ResponseStream { get; }

    public bool IsCommitted => Volatile.Read(ref _state) == Committed;

    /// <summary>Whether a stream of responses has got as far as its headers: what ends it later is known to its reader alone.</summary>
    public bool HasHeaders { get; private set; }

    public bool IsEndedByLoop { get; private set; }

    /// <summary>Starts the call. What the channel throws at once is thrown, and the lease is back by then.</summary>
    public static StreamAttempt<TResponse> Start<TRequest>(StreamingCall<TRequest, TResponse> call, AttemptLease lease, int previousAttempts)
        where TRequest : class
    {
        StreamAttempt<TResponse> attempt;
        Task<TResponse>? response = null;
        try
        {
            var invoker = lease.Channel.CallInvoker;
            var options = call.Given.ForAttempt(lease.Channel, previousAttempts);
            switch (call.Kind)
            {
                case MethodType.ClientStreaming:
                    var clientStreaming = invoker.AsyncClientStreamingCall(ReplayableMethods<TRequest, TResponse>.Of(call.Method), call.Given.Host, options);
                    attempt = new(lease, InnerCall.Of(clientStreaming), call.Given, call.TimeProvider, clientStreaming.RequestStream, null);
                    response = clientStreaming.ResponseAsync;
                    break;
                case MethodType.ServerStreaming:
                    var serverStreaming = invoker.AsyncServerStreamingCall(call.Method, call.Given.Host, options, call.Request!);
                    attempt = new(lease, InnerCall.Of(serverStreaming), call.Given, call.TimeProvider, null, serverStreaming.ResponseStream);
                    break;
                default:
                    var duplex = invoker.AsyncDuplexStreamingCall(ReplayableMethods<TRequest, TResponse>.Of(call.Method), call.Given.Host, options);
                    attempt = new(lease, InnerCall.Of(duplex), call.Given, call.TimeProvider, duplex.RequestStream, duplex.ResponseStream);
                    break;
            }
        }
        catch (Exception exception)
        {
            lease.ReleaseUnused(exception);
            throw;
        }

        if (attempt.RequestStream is { } requests && call.WriteOptions != requests.WriteOptions)
        {
            requests.WriteOptions = call.WriteOptions;
        }

        _ = response is not null ? attempt.WatchResponseAsync(response) : attempt.WatchHeadersAsync();
        return attempt;
    }

    /// <summary>
    /// The application has seen something of this attempt, or given it something that cannot be given again: from now on it is the
    /// call. False if the attempt has been abandoned in favour of another one.
    /// </summary>
    public bool TryCommit()
    {
        if (Interlocked.CompareExchange(ref _state, Committed, Open) == Abandoned)
        {
            return false;
        }

        if (ResponseStream is not null)
        {
            _deciding.TrySetResult(null!);
        }

        return true;
    }

    public bool TryAbandon()
    {
        if (Interlocked.CompareExchange(ref _state, Abandoned, Open) == Committed)
        {
            return false;
        }

        EndByLoop();
        return true;
    }

    public void EndByLoop()
    {
        IsEndedByLoop = true;
        try
        {
            Dispose(endsCall: false);
        }
        catch (AggregateException)
        {
            // Of a callback that a handler of the user's has registered. This may be the thread of a timer.
        }
    }

    public async Task WriteAsync(IReadOnlyList<ReplayableRequest> requests)
    {
        foreach (var request in requests)
        {
            RequestStream!.WriteOptions = request.WriteOptions;
            await RequestStream.WriteAsync(request).ConfigureAwait(false);
        }
    }

    public void CompleteRequests()
    {
        try
        {
            RequestStream!.CompleteAsync().Observe();
        }
        catch (ObjectDisposedException)
        {
            // Ended already, by whoever was told of it.
        }
    }

    /// <summary>A reader or writer of the application has met this failure.</summary>
    public void MetFailure(Exception exception)
    {
        if ((exception is ObjectDisposedException or not InvalidOperationException) && IsOver())
        {
            Release(exception);
        }

        if (ResponseStream is not null)
        {
            _deciding.TrySetException(exception);
        }
    }

    public CallFault Judge(Exception exception) => Judge(exception, _given.Options.Headers);

    public void Decided(Exception? failure)
    {
        Failure = failure;
        if (failure is not null)
        {
            Judge(failure);
        }
    }

    /// <summary>The channel has ended the call, with this exception or in good order: the lease goes back.</summary>
    public void Release(Exception? exception) => Release(
        Failure ?? exception,
        _given.Options.Headers,
        _isEndedByCaller || _given.Options.CancellationToken.IsCancellationRequested || DueTime(_given.Options.Deadline, _time) == TimeSpan.Zero);

    /// <summary>Ends the call on the channel, which is a no-op if it is over. A call with one response gives its lease back when that has ended.</summary>
    public void Dispose(bool endsCall)
    {
        _isEndedByCaller |= endsCall;
        try
        {
            Inner.Dispose();
        }
        finally
        {
            if (ResponseStream is not null)
            {
                var disposed = new RpcException(CallErrors.Cancelled(CancellationToken.None));
                Release(disposed);
                _deciding.TrySetException(disposed);
            }
        }
    }

    public override bool IsOver() => Inner.IsOver();

    /// <summary>What a call throws that is over.</summary>
    public RpcException NewEndException()
    {
        var status = Inner.GetStatus();
        try
        {
            return new RpcException(status, Inner.GetTrailers());
        }
        catch (InvalidOperationException)
        {
            return new RpcException(status); // it broke before there were any
        }
    }

    protected override void OverUnread() => _deciding.TrySetException(new RpcException(Inner.GetStatus()));

    private async Task WatchResponseAsync(Task<TResponse> response)
    {
        try
        {
            var message = await response.ConfigureAwait(false);
            Release(exception: null);
            _deciding.TrySetResult(message);
        }
#pragma warning disable CA1031 // Whoever waits for the decision gets the exception.
        catch (Exception exception)
#pragma warning restore CA1031
        {
            Release(exception);
            _deciding.TrySetException(exception);
        }
    }

    // A stream may end without anybody reading it. Until there are headers, every end shows as a failure to get them. Later the
    // deadline and the token of the call are watched: what else can end it then shows only to who reads.
    private async Task WatchHeadersAsync()
    {
        try
        {
            var headers = Inner.ResponseHeadersAsync;
            if (!headers.IsCompleted)
            {
                await ((Task)headers).ConfigureAwait(ConfigureAwaitOptions.SuppressThrowing);
                await RefusalDelivery.OverAsync(Channel.Transport?.Refusals, Deciding).ConfigureAwait(false);
            }

            await headers.ConfigureAwait(false);
            HasHeaders = true;
            Answered();
            WatchUnread(_given.Options, _time);
        }
#pragma warning disable CA1031 // Whoever waits for the decision gets the exception.
        catch (Exception exception)
#pragma warning restore CA1031
        {
            // The channel says that there are no headers before it ends the call. The lease must not go back before that, or the
            // channel could be disposed under the call, which then would end with that.
            await IsSoonOverAsync().ConfigureAwait(false);
            Release(exception);
            _deciding.TrySetException(exception);
        }
    }
}

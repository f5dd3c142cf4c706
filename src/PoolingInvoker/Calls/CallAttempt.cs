using Grpc.Core;
using Polly;

namespace PoolingInvoker;

/// <summary>One try of a call: a lease, and the call on the leased channel.</summary>
internal sealed class CallAttempt<TRequest, TResponse> : CallCompletion
    where TRequest : class
    where TResponse : class
{
    private const int Open = 0;
    private const int Committed = 1;
    private const int Abandoned = 2;

    private readonly PooledCall<TRequest, TResponse> _owner;
    private readonly object _call;
    private readonly int _mark; // of what has happened to the connections of the channel
    private readonly TaskCompletionSource<TResponse>? _outcome;
    private int _state;
    private bool _endedByDriver;

    /// <summary>Starts the call. What the channel throws at once is thrown, and the lease has come back by then.</summary>
    public CallAttempt(ChannelLease lease, PooledCall<TRequest, TResponse> call, int previousAttempts)
        : base(lease)
    {
        _owner = call;
        Channel = lease.Pooled;
        _mark = Channel.Transport?.Mark ?? 0;
        try
        {
            var invoker = lease.CallInvoker;
            var options = call.AttemptOptions(Channel, previousAttempts);
            switch (call.Kind)
            {
                case MethodType.Unary:
                    var unary = invoker.AsyncUnaryCall(call.Method, call.Host, options, call.Request!);
                    (_call, Outcome) = (unary, unary.ResponseAsync);
                    break;
                case MethodType.ClientStreaming:
                    var clientStreaming = invoker.AsyncClientStreamingCall(ReplayableMethods<TRequest, TResponse>.Of(call.Method), call.Host, options);
                    (_call, RequestStream) = (clientStreaming, clientStreaming.RequestStream);
                    break;
                case MethodType.ServerStreaming:
                    var serverStreaming = invoker.AsyncServerStreamingCall(call.Method, call.Host, options, call.Request!);
                    (_call, ResponseStream) = (serverStreaming, serverStreaming.ResponseStream);
                    break;
                default:
                    var duplex = invoker.AsyncDuplexStreamingCall(ReplayableMethods<TRequest, TResponse>.Of(call.Method), call.Host, options);
                    (_call, ResponseStream, RequestStream) = (duplex, duplex.ResponseStream, duplex.RequestStream);
                    break;
            }

            // A pool that was disposed meanwhile has disposed the call and the handler below it. The channel may say Internal then.
            if (call.IsPoolDisposed && !call.IsEndedByCaller && IsOver()
                && (GetStatus() is { DebugException: ObjectDisposedException } || GetStatus().Detail == CallErrors.Disposed.Detail))
            {
                Outcome?.Observe();
                throw new ObjectDisposedException(nameof(ChannelPool));
            }
        }
        catch (Exception exception)
        {
            // A channel that is disposed was disposed behind the pool's back.
            Complete(exception is ObjectDisposedException ? LeaseOutcome.ChannelFailed : LeaseOutcome.Unknown);
            throw;
        }

        if (RequestStream is not null && call.WriteOptions != RequestStream.WriteOptions)
        {
            RequestStream.WriteOptions = call.WriteOptions;
        }

        if (Outcome is null)
        {
            _outcome = new TaskCompletionSource<TResponse>(TaskCreationOptions.RunContinuationsAsynchronously);
            Outcome = _outcome.Task;
            _ = _call is AsyncClientStreamingCall<ReplayableRequest, TResponse> { ResponseAsync: var response }
                ? WatchResponseAsync(response)
                : WatchHeadersAsync(call.Options, call.TimeProvider);
        }
    }

    public PooledChannel Channel { get; }

    /// <summary>
    /// Ends when the attempt has succeeded or failed. For calls with one response that is the response; for others it is the first
    /// message, or whatever else commits the call.
    /// </summary>
    public Task<TResponse> Outcome { get; }

    /// <summary>The exception that the outcome ended with.</summary>
    public Exception? Failure { get; private set; }

    public IClientStreamWriter<ReplayableRequest>? RequestStream { get; }

    /// <summary>Completes when the requests of earlier attempts have been written to this one, or one of them could not be.</summary>
    public Task Replayed { get; set; } = Task.CompletedTask;

    public IAsyncStreamReader<TResponse>? ResponseStream { get; }

    public bool IsCommitted => Volatile.Read(ref _state) == Committed;

    /// <summary>Whether a stream of responses has got as far as its headers: what ends it later is known to its reader alone.</summary>
    public bool HasHeaders { get; private set; }

    /// <summary>Whether the driver has ended this attempt, which says nothing about the call: another one may come.</summary>
    public bool EndedByDriver => _endedByDriver;

    public Task<Metadata> ResponseHeadersAsync => _call switch
    {
        AsyncUnaryCall<TResponse> call => call.ResponseHeadersAsync,
        AsyncClientStreamingCall<ReplayableRequest, TResponse> call => call.ResponseHeadersAsync,
        AsyncServerStreamingCall<TResponse> call => call.ResponseHeadersAsync,
        AsyncDuplexStreamingCall<ReplayableRequest, TResponse> call => call.ResponseHeadersAsync,
        _ => throw new InvalidOperationException(),
    };

    public Status GetStatus() => _call switch
    {
        AsyncUnaryCall<TResponse> call => call.GetStatus(),
        AsyncClientStreamingCall<ReplayableRequest, TResponse> call => call.GetStatus(),
        AsyncServerStreamingCall<TResponse> call => call.GetStatus(),
        AsyncDuplexStreamingCall<ReplayableRequest, TResponse> call => call.GetStatus(),
        _ => throw new InvalidOperationException(),
    };

    public Metadata GetTrailers() => _call switch
    {
        AsyncUnaryCall<TResponse> call => call.GetTrailers(),
        AsyncClientStreamingCall<ReplayableRequest, TResponse> call => call.GetTrailers(),
        AsyncServerStreamingCall<TResponse> call => call.GetTrailers(),
        AsyncDuplexStreamingCall<ReplayableRequest, TResponse> call => call.GetTrailers(),
        _ => throw new InvalidOperationException(),
    };

    /// <summary>
    /// The application has seen something of this attempt, or given it something that cannot be given again: from now on it is the
    /// call. False if the attempt has been abandoned in favour of another one.
    /// </summary>
    public bool TryCommit()
    {
        var before = Interlocked.CompareExchange(ref _state, Committed, Open);
        if (before == Open)
        {
            _owner.ForgetRequests();
        }

        if (before != Abandoned && ResponseStream is not null)
        {
            _outcome!.TrySetResult(null!);
        }

        return before != Abandoned;
    }

    /// <summary>Makes way for another attempt. False if the application has seen something of this one.</summary>
    public bool TryAbandon()
    {
        if (Interlocked.CompareExchange(ref _state, Abandoned, Open) == Committed)
        {
            return false;
        }

        EndByDriver();
        return true;
    }

    /// <summary>Ends this attempt, but not the call.</summary>
    public void EndByDriver()
    {
        _endedByDriver = true;
        try
        {
            Dispose();
        }
        catch (AggregateException)
        {
            // A callback that a handler of the user's has registered with the token of the call. This may be the thread of a timer.
        }
    }

    /// <summary>A reader or writer of the application has met this failure.</summary>
    public void ReportFailure(Exception exception)
    {
        if ((exception is ObjectDisposedException or not InvalidOperationException) && IsOver())
        {
            Complete(exception);
        }

        if (ResponseStream is not null)
        {
            _outcome!.TrySetException(exception);
        }
    }

    /// <summary>Judges what the attempt, or a read or a write of it, has failed with, by what has happened to its connection meanwhile.</summary>
    public CallFault Judge(Exception exception) => CallFaults.JudgeOnce(exception, Channel.Transport?.FactSince(_mark) ?? ConnectionFact.Unknown, _owner.Options.Headers);

    /// <summary>Whether a strategy has left the outcome of this attempt as it was.</summary>
    public bool EndedWith(Outcome<TResponse> outcome) => outcome.Exception is { } exception
        ? ReferenceEquals(Failure, exception)
        : Outcome.IsCompletedSuccessfully && ReferenceEquals(Outcome.Result, outcome.Result);

    /// <summary>The driver has seen the outcome.</summary>
    public void OutcomeSeen(Exception? failure)
    {
        Failure = failure;
        if (failure is not null)
        {
            Judge(failure);
        }

        if (_outcome is null)
        {
            Complete(failure); // for a unary call that is the end
        }

        _owner.CountOutcome(failure);
    }

    /// <summary>The call is over, with this exception or in good order: the lease goes back.</summary>
    public void Complete(Exception? exception)
    {
        // A caller that ends the call in the middle of something may make the channel say that the connection broke.
        exception = Failure ?? exception;
        Complete(exception is null ? LeaseOutcome.Answered : Judge(exception) switch
        {
            { Origin: FaultOrigin.Server, IsTransient: false } => LeaseOutcome.Answered,
            { Origin: FaultOrigin.Server } when !_owner.IsEndedByCaller => LeaseOutcome.ServerFailed,
            { Origin: FaultOrigin.Channel, Fate: RequestFate.NeverLeft } when !_owner.IsEndedByCaller => LeaseOutcome.CouldNotConnect,
            { Origin: FaultOrigin.Channel } when !_owner.IsEndedByCaller => LeaseOutcome.ChannelFailed,
            _ => LeaseOutcome.Unknown,
        }, exception);
    }

    /// <summary>Ends the call on the channel, which is a no-op if it is over, and gives the lease back.</summary>
    public void Dispose()
    {
        try
        {
            ((IDisposable)_call).Dispose();
        }
        finally
        {
            if (ResponseStream is not null)
            {
                // A call with one response gives its lease back when that has ended.
                var disposed = new RpcException(CallErrors.Cancelled(CancellationToken.None));
                Complete(disposed);
                _outcome!.TrySetException(disposed);
            }
        }
    }

    protected override void EndedUnread() => _outcome!.TrySetException(new RpcException(GetStatus()));

    public override bool IsOver()
    {
        try
        {
            _ = GetStatus();
            return true;
        }
        catch (InvalidOperationException)
        {
            return false;
        }
    }

    private async Task WatchResponseAsync(Task<TResponse> response)
    {
        try
        {
            var message = await response.ConfigureAwait(false);
            Complete(exception: null);
            _outcome!.TrySetResult(message);
        }
#pragma warning disable CA1031 // Whoever waits for the outcome gets the exception.
        catch (Exception exception)
#pragma warning restore CA1031
        {
            Complete(exception);
            _outcome!.TrySetException(exception);
        }
    }

    // A stream may end without anybody reading it. Until there are headers, every end shows as a failure to get them. Later the
    // deadline and the token of the call are watched: what else can end it then shows only to who reads.
    private async Task WatchHeadersAsync(CallOptions options, TimeProvider time)
    {
        try
        {
            var headers = ResponseHeadersAsync;
            if (!headers.IsCompleted)
            {
                await ((Task)headers).ConfigureAwait(ConfigureAwaitOptions.SuppressThrowing);
                await Task.CompletedTask.ConfigureAwait(ConfigureAwaitOptions.ForceYielding); // a refusal has as a rule ended the call by then
            }

            await headers.ConfigureAwait(false);
            HasHeaders = true;
            Answered();
            WatchUnread(options, time);
        }
#pragma warning disable CA1031 // Whoever waits for the outcome gets the exception.
        catch (Exception exception)
#pragma warning restore CA1031
        {
            // The channel says that there are no headers before it ends the call. The lease must not go back before that, or the
            // channel could be disposed under the call, which then would end with that.
            await EndsAsync().ConfigureAwait(false);
            Complete(exception);
            _outcome!.TrySetException(exception);
        }
    }
}

using Grpc.Core;

namespace PoolingInvoker;

/// <summary>One try of a call: a lease, and the call on the leased channel.</summary>
internal sealed class CallAttempt<TRequest, TResponse>
    where TRequest : class
    where TResponse : class
{
    private const int Open = 0;
    private const int Committed = 1;
    private const int Abandoned = 2;

    private readonly object _call;
    private readonly CallCompletion _completion;
    private readonly TaskCompletionSource<TResponse>? _established;
    private int _state;

    /// <summary>Starts the call. What the channel throws at once is thrown, and the lease has come back by then.</summary>
    public CallAttempt(ChannelLease lease, PooledCall<TRequest, TResponse> call)
    {
        Channel = lease.Pooled;
        _completion = new CallCompletion(lease);
        try
        {
            var invoker = lease.CallInvoker;
            switch (call.Kind)
            {
                case MethodType.Unary:
                    var unary = invoker.AsyncUnaryCall(call.Method, call.Host, call.Options, call.Request!);
                    (_call, Outcome) = (unary, unary.ResponseAsync);
                    break;
                case MethodType.ClientStreaming:
                    var clientStreaming = invoker.AsyncClientStreamingCall(call.Method, call.Host, call.Options);
                    (_call, Outcome, RequestStream) = (clientStreaming, clientStreaming.ResponseAsync, clientStreaming.RequestStream);
                    break;
                case MethodType.ServerStreaming:
                    var serverStreaming = invoker.AsyncServerStreamingCall(call.Method, call.Host, call.Options, call.Request!);
                    (_call, ResponseStream) = (serverStreaming, serverStreaming.ResponseStream);
                    break;
                default:
                    var duplex = invoker.AsyncDuplexStreamingCall(call.Method, call.Host, call.Options);
                    (_call, ResponseStream, RequestStream) = (duplex, duplex.ResponseStream, duplex.RequestStream);
                    break;
            }
        }
        catch
        {
            _completion.Complete(LeaseOutcome.Unknown);
            throw;
        }

        if (Outcome is null)
        {
            _established = new TaskCompletionSource<TResponse>(TaskCreationOptions.RunContinuationsAsynchronously);
            Outcome = _established.Task;
            Outcome.Observe();
            _ = WatchHeadersAsync(call.Options, call.TimeProvider);
        }
    }

    public PooledChannel Channel { get; }

    /// <summary>
    /// Ends when the attempt has succeeded or failed. For calls with one response that is the response; for others it is the first
    /// message, or whatever else commits the call.
    /// </summary>
    public Task<TResponse> Outcome { get; }

    /// <summary>Whether the outcome is the response and the end of the call, and not only the start of a stream.</summary>
    public bool HasOneResponse => _established is null;

    /// <summary>The exception that the outcome ended with.</summary>
    public Exception? Failure { get; set; }

    public IClientStreamWriter<TRequest>? RequestStream { get; }

    public IAsyncStreamReader<TResponse>? ResponseStream { get; }

    public bool IsCommitted => Volatile.Read(ref _state) == Committed;

    public Task<Metadata> ResponseHeadersAsync => _call switch
    {
        AsyncUnaryCall<TResponse> call => call.ResponseHeadersAsync,
        AsyncClientStreamingCall<TRequest, TResponse> call => call.ResponseHeadersAsync,
        AsyncServerStreamingCall<TResponse> call => call.ResponseHeadersAsync,
        AsyncDuplexStreamingCall<TRequest, TResponse> call => call.ResponseHeadersAsync,
        _ => throw new InvalidOperationException(),
    };

    public Status GetStatus() => _call switch
    {
        AsyncUnaryCall<TResponse> call => call.GetStatus(),
        AsyncClientStreamingCall<TRequest, TResponse> call => call.GetStatus(),
        AsyncServerStreamingCall<TResponse> call => call.GetStatus(),
        AsyncDuplexStreamingCall<TRequest, TResponse> call => call.GetStatus(),
        _ => throw new InvalidOperationException(),
    };

    public Metadata GetTrailers() => _call switch
    {
        AsyncUnaryCall<TResponse> call => call.GetTrailers(),
        AsyncClientStreamingCall<TRequest, TResponse> call => call.GetTrailers(),
        AsyncServerStreamingCall<TResponse> call => call.GetTrailers(),
        AsyncDuplexStreamingCall<TRequest, TResponse> call => call.GetTrailers(),
        _ => throw new InvalidOperationException(),
    };

    /// <summary>
    /// The application has seen something of this attempt, or given it something that cannot be given again: from now on it is the
    /// call. False if the attempt has been abandoned in favour of another one.
    /// </summary>
    public bool TryCommit()
    {
        var committed = Interlocked.CompareExchange(ref _state, Committed, Open) != Abandoned;
        if (committed)
        {
            _established?.TrySetResult(null!);
        }

        return committed;
    }

    /// <summary>Makes way for another attempt. False if the application has seen something of this one.</summary>
    public bool TryAbandon() => Interlocked.CompareExchange(ref _state, Abandoned, Open) != Committed;

    /// <summary>A reader or writer of the application has met this failure.</summary>
    public void ReportFailure(Exception exception)
    {
        if (IsOver())
        {
            Complete(exception);
        }

        _established?.TrySetException(exception);
    }

    /// <summary>The call is over, with this exception or in good order: the lease goes back.</summary>
    public void Complete(Exception? exception) => _completion.Complete(
        exception is null || CallFaults.IsAnswer(exception) ? LeaseOutcome.Answered
        : CallFaults.IsChannelFault(exception) ? LeaseOutcome.ChannelFailed
        : LeaseOutcome.Unknown);

    /// <summary>Ends the call on the channel, which is a no-op if it is over, and gives the lease back.</summary>
    public void Dispose()
    {
        ((IDisposable)_call).Dispose();
        if (_established is not null)
        {
            // A call with one response gives its lease back when that has ended.
            _completion.Complete(LeaseOutcome.Unknown);
            _established.TrySetException(new RpcException(CallErrors.Disposed));
        }
    }

    // Whether the call on the channel is over, also if nobody reads it.
    private bool IsOver()
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

    // A stream may end without anybody reading it. Until there are headers, every end shows as a failure to get them. Later the
    // deadline and the token of the call are watched: what else can end it then shows only to who reads.
    private async Task WatchHeadersAsync(CallOptions options, TimeProvider time)
    {
        try
        {
            await ResponseHeadersAsync.ConfigureAwait(false);
            _completion.Watch(options, time, IsOver, () => _established!.TrySetException(new RpcException(GetStatus())));
        }
#pragma warning disable CA1031 // Whoever waits for the outcome gets the exception.
        catch (Exception exception)
#pragma warning restore CA1031
        {
            Complete(exception);
            _established!.TrySetException(exception);
        }
    }
}

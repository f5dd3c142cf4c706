using Grpc.Core;

namespace PoolingInvoker;

/// <summary>
/// A unary call, which is its own attempt: the lease and the call on the channel are fields, and a later attempt takes the place of the
/// one before it. An attempt is decided by its response, and its lease goes back with that.
/// </summary>
internal sealed class UnaryCall<TRequest, TResponse>(CallEnvironment environment, Method<TRequest, TResponse> method, GivenOptions given, TRequest request)
    : PooledCall<TRequest, TResponse>(environment, method, given, request), ILeasingCall
    where TRequest : class
    where TResponse : class
{
    private const int Open = 0;
    private const int Committed = 1;
    private const int Abandoned = 2;

    private AttemptLease _lease;
    private object? _inner; // the call on the channel, or the EndedCall
    private int _state;
    private int _isLease; // 1 while the call is the lease of its first attempt
    private bool _isEndedByLoop;
    private bool _hasFailed;

    public override MethodType Kind => MethodType.Unary;

    public override object? Attempt => Volatile.Read(ref _inner);

    public override PooledChannel? Channel => _lease.Channel;

    public override bool IsCommitted => Volatile.Read(ref _state) == Committed;

    protected override InnerCall? Inner => Attempt switch
    {
        null => null,
        EndedCall ended => InnerCall.Of(ended),
        var inner => InnerCall.Of((AsyncUnaryCall<TResponse>)inner),
    };

    protected override bool IsEndedByLoop => _isEndedByLoop;

    protected override bool HasFailed => _hasFailed;

    public override Task<TResponse> StartAttempt(AttemptLease lease, int previousAttempts)
    {
        var inner = StartOn(lease, previousAttempts);
        Publish(lease, inner);
        return inner.ResponseAsync;
    }

    void ILeasingCall.Return(PooledChannel channel, LeaseOutcome outcome, Exception? error)
    {
        if (Interlocked.Exchange(ref _isLease, 0) == 1)
        {
            Environment.Pool.Return(this, channel, outcome, error);
        }
    }

    // Of the first attempt: no object is made for it.
    protected override bool TryLease(out AttemptLease lease)
    {
        var channel = Environment.Pool.TryLease(this);
        lease = channel is null ? default : new AttemptLease(this, channel);
        _isLease = channel is null ? 0 : 1;
        return channel is not null;
    }

    public override Exception? AttemptDecided(Exception? failure)
    {
        _hasFailed = failure is not null;
        _lease.Release(failure, _inner!, Options.Headers, IsEndedByCaller);
        CountOutcome(failure);
        return AsEndOfCall(failure);
    }

    public Exception? Failure => _hasFailed ? (Attempt as AsyncUnaryCall<TResponse>)?.ResponseAsync.Exception?.InnerException : null;

    /// <summary>Another call like this one, of which the loop makes one attempt beside others.</summary>
    public UnaryCall<TRequest, TResponse> NewHedge() => new(Environment, Method, Given, Request!);

    /// <summary>The response of this hedge was taken: its attempt is that of the call. False if it has none.</summary>
    public bool TryTake(UnaryCall<TRequest, TResponse> hedge)
    {
        if (hedge.Attempt is not AsyncUnaryCall<TResponse> { ResponseAsync.IsCompletedSuccessfully: true } inner)
        {
            return false;
        }

        Publish(hedge._lease, inner);
        return true;
    }

    public override bool TryAbandon()
    {
        if (Interlocked.CompareExchange(ref _state, Abandoned, Open) == Committed)
        {
            return false;
        }

        EndAttempt();
        return true;
    }

    public override void EndAttempt()
    {
        _isEndedByLoop = true;
        Inner?.DisposeQuietly();
    }

    protected override bool TryCommit(object attempt)
    {
        var before = Interlocked.CompareExchange(ref _state, Committed, Open);
        if (before == Open && Attempt != attempt)
        {
            Volatile.Write(ref _state, Open); // another one has taken its place meanwhile, of which nobody has seen anything
            return false;
        }

        return before != Abandoned && Attempt == attempt;
    }

    protected override void EndWith(object end) => Volatile.Write(ref _inner, end);

    protected override Task<TResponse>? ResponseOf(object attempt) => (attempt as AsyncUnaryCall<TResponse>)?.ResponseAsync;

    protected override void Judge(object attempt, Exception failure) => _lease.Judge(failure, attempt, Options.Headers);

    protected override void DisposeAttempt() => Inner?.Dispose();

    private void Publish(AttemptLease lease, AsyncUnaryCall<TResponse> inner)
    {
        Volatile.Write(ref _inner, null); // Statement order is important: what is asked of this attempt is not asked of the one before it.
        (_lease, _state, _isEndedByLoop, _hasFailed) = (lease, Open, false, false);
        Volatile.Write(ref _inner, inner);
        AttemptStarted();
        if (IsDisposed)
        {
            inner.Dispose();
        }
    }

    private AsyncUnaryCall<TResponse> StartOn(AttemptLease lease, int previousAttempts)
    {
        try
        {
            return lease.Channel.CallInvoker.AsyncUnaryCall(Method, Given.Host, Given.ForAttempt(lease.Channel, previousAttempts), Request!);
        }
        catch (Exception exception)
        {
            lease.ReleaseUnused(exception);
            throw;
        }
    }
}

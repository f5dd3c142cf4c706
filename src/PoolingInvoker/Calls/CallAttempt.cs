namespace PoolingInvoker;

/// <summary>One try of a call: a lease, the call on the leased channel, and the gate through which the lease goes back.</summary>
internal abstract class CallAttempt(PooledChannel? channel, object? lease) : IBreakableCall
{
    private const int Open = 0;
    private const int Committed = 1;
    private const int Abandoned = 2;
    private const int Broken = -1;

    // Between two looks at a call that the channel has yet to end. Each look throws.
    public static readonly TimeSpan FirstPause = TimeSpan.FromMilliseconds(1);

    private static readonly TimeSpan LongestPause = TimeSpan.FromSeconds(1);

    private int _mark = channel?.Transport?.Mark ?? 0; // of what has happened to the connections of the channel, or to the call itself
    private object? _lease = lease; // a ChannelLease, or the call, which stands for the lease of its first attempt; null when it is back
    private int _state = lease is null ? Committed : Open;

    public PooledChannel? Channel => channel;
    public bool IsReleased => Volatile.Read(ref _lease) is null;
    public bool IsCommitted => Volatile.Read(ref _state) == Committed;

    /// <summary>Whether the loop has ended the attempt, which says nothing of the call: another one may come.</summary>
    public bool IsAbandoned => Volatile.Read(ref _state) == Abandoned;

    /// <summary>Whether the pool has ended the call, as it gave up the channel, over a transport of the user's own.</summary>
    public bool IsBroken => Volatile.Read(ref _mark) == Broken;

    public Task<Metadata> ResponseHeadersAsync => IsBroken && FailureOf(InnerHeadersAsync) is { } failure ? Task.FromException<Metadata>(failure) : InnerHeadersAsync;
    protected abstract Task<Metadata> InnerHeadersAsync { get; }

    public abstract Status GetStatus();
    public abstract Metadata GetTrailers();
    public abstract void Dispose();

    public static TimeSpan Longer(TimeSpan pause) => pause * 2 < LongestPause ? pause * 2 : LongestPause;

    /// <summary>The application has seen something of this attempt, or has given it what is not kept: it is the call from now on.</summary>
    public bool TryCommit() => Interlocked.CompareExchange(ref _state, Committed, Open) != Abandoned;

    /// <summary>Makes way for another attempt, if this one is not committed.</summary>
    public bool TryAbandon()
    {
        if (Interlocked.CompareExchange(ref _state, Abandoned, Open) == Committed)
        {
            return false;
        }

        End();
        return true;
    }

    public void End()
    {
        Interlocked.CompareExchange(ref _state, Abandoned, Open);
        DisposeQuietly();
    }

    /// <summary>Ends the call on the channel where its caller is not there to get what that throws.</summary>
    public void DisposeQuietly()
    {
        try
        {
            Dispose();
        }
        catch (AggregateException)
        {
            // Of a callback that a handler of the user's has registered with the token of the call. This may be the thread of a timer.
        }
    }

    public void Break()
    {
        if (!IsOver())
        {
            Volatile.Write(ref _mark, Broken);
            DisposeQuietly();
        }
    }

    /// <summary>Whether the channel has ended the call, also if nobody reads it. A call that is not over throws inside.</summary>
    public virtual bool IsOver()
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

    /// <summary>Waits for the end of a call whose headers or connection have failed: as a rule it is there at the first look.</summary>
    public async ValueTask<bool> IsSoonOverAsync()
    {
        for (var pause = FirstPause; !IsOver(); pause = Longer(pause))
        {
            if (pause == LongestPause)
            {
                return false;
            }

            await Task.Delay(pause, TimeProvider.System).ConfigureAwait(false); // what is waited for is the machine
        }

        return true;
    }

    /// <summary>The server has begun to answer: what comes now may take as long as it likes.</summary>
    public void Answered() => (Volatile.Read(ref _lease) as ChannelLease)?.Answered();

    public CallFault Judge(Exception failure, PooledCall call) =>
        CallFaults.JudgeOnce(failure, channel?.Transport?.FactSince(_mark) ?? ConnectionFact.Unknown, call.Options.Headers, this);

    /// <summary>What the task of a call on the channel has failed with, if it has. What the pool has broken ends in one way, whatever the channel says of that.</summary>
    public Exception? FailureOf(Task task) =>
        task.Failure() is var failure && IsBroken && failure is not (null or ObjectDisposedException) && IsOver() && GetStatus() is { StatusCode: not StatusCode.OK } status
            ? new RpcException(status)
            : failure;

    /// <summary>The channel has ended the call, with this failure or in good order.</summary>
    public void Release(Exception? failure, PooledCall call) => Release(failure is null ? LeaseOutcome.Answered : Judge(failure, call) switch
    {
        { Origin: FaultOrigin.Server, IsTransient: false } => LeaseOutcome.Answered,

        // A caller that ends the call in the middle of something may make the channel say that the connection broke.
        _ when call.IsEndedByCaller => LeaseOutcome.Unknown,
        { Origin: FaultOrigin.Server } => LeaseOutcome.ServerFailed,
        { Origin: FaultOrigin.Channel, NeverLeft: true } => LeaseOutcome.CouldNotConnect,
        { Origin: FaultOrigin.Channel } => LeaseOutcome.ChannelFailed,
        _ => LeaseOutcome.Unknown,
    }, failure);

    public void Release(LeaseOutcome outcome, Exception? error = null)
    {
        var lease = Interlocked.Exchange(ref _lease, null);
        channel?.Breakable?.Remove(this);
        (lease as ChannelLease)?.Return(outcome, error);
        (lease as PooledCall)?.Picker.Return(lease!, channel!, outcome, error);
    }

    protected Status AsGivenUp(Status status) =>
        status.StatusCode == StatusCode.Cancelled && IsBroken ? CallErrors.GivenUp(channel!.Breakable!.BrokenBecause!) : status;

    public virtual void EndedUnread() => Release(LeaseOutcome.Unknown);
}

internal abstract class CallAttempt<TResponse>(PooledChannel channel, object lease) : CallAttempt(channel, lease)
    where TResponse : class
{
    /// <summary>The response; of a stream of responses whatever commits the call, or its failure.</summary>
    public abstract Task<TResponse> Deciding { get; }
    public TResponse Response => Deciding.GetAwaiter().GetResult();
    public Exception? Failure => FailureOf(Deciding);
}

/// <summary>What a call has ended with that got no attempt, or whose end is not that of one; null is a success.</summary>
internal sealed class EndedCall(Exception? exception, PooledChannel? channel) : CallAttempt(channel, lease: null)
{
    /// <summary>What a reader or a writer meets.</summary>
    public Exception Exception => exception ?? new RpcException(Status.DefaultSuccess);

    protected override Task<Metadata> InnerHeadersAsync =>
        exception is null ? Task.FromResult<Metadata>([]) : Task.FromException<Metadata>(exception);

    public override Status GetStatus() => exception switch
    {
        null => Status.DefaultSuccess,
        RpcException { Status: var status } => status,
        _ => new Status(StatusCode.Cancelled, string.Empty, exception),
    };

    public override Metadata GetTrailers() => exception switch
    {
        null => [],
        RpcException { Trailers: { Count: > 0 } trailers } => trailers,
        _ => throw CallErrors.NoTrailers,
    };

    public override void Dispose()
    {
    }
}

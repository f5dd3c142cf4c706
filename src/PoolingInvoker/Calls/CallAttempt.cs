using Grpc.Core;

namespace PoolingInvoker;

/// <summary>One try of a call: a lease, the call on the leased channel, and the gate through which the lease goes back.</summary>
internal abstract class CallAttempt(PooledChannel? channel, object? lease)
{
    private const int Open = 0;
    private const int Committed = 1;
    private const int Abandoned = 2;

    // Between two looks at a call that the channel has yet to end. Each look throws, so each pause is twice the one before it.
    public static readonly TimeSpan FirstPause = TimeSpan.FromMilliseconds(1);
    public static readonly TimeSpan LongestPause = TimeSpan.FromSeconds(1);

    private readonly int _mark = channel?.Transport?.Mark ?? 0; // of what has happened to the connections of the channel
    private object? _lease = lease; // a ChannelLease, or the call, which stands for the lease of its first attempt; null when it is back
    private int _state = lease is null ? Committed : Open;

    public PooledChannel? Channel => channel;
    public bool IsReleased => Volatile.Read(ref _lease) is null;
    public bool IsCommitted => Volatile.Read(ref _state) == Committed;

    /// <summary>Whether the loop has ended the attempt, which says nothing of the call: another one may come.</summary>
    public bool IsAbandoned => Volatile.Read(ref _state) == Abandoned;

    public abstract Task<Metadata> ResponseHeadersAsync { get; }
    public abstract Status GetStatus();
    public abstract Metadata GetTrailers();
    public abstract void Dispose();

    /// <summary>
    /// The application has seen something of this attempt, or given it something that cannot be given again: from now on it is the
    /// call. False if the attempt has been abandoned in favour of another one.
    /// </summary>
    public bool TryCommit() => Interlocked.CompareExchange(ref _state, Committed, Open) != Abandoned;

    /// <summary>Makes way for another attempt. False if the application has seen something of this one.</summary>
    public bool TryAbandon()
    {
        if (Interlocked.CompareExchange(ref _state, Abandoned, Open) == Committed)
        {
            return false;
        }

        End();
        return true;
    }

    /// <summary>The loop ends the attempt, but not the call.</summary>
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

    /// <summary>
    /// Waits for the channel to end the call, which has said that there are no headers, or that the connection broke: the end is on its
    /// way, and as a rule there at the first look.
    /// </summary>
    public async ValueTask<bool> IsSoonOverAsync()
    {
        for (var pause = FirstPause; !IsOver(); pause *= 2)
        {
            if (pause >= LongestPause)
            {
                return false;
            }

            await Task.Delay(pause, TimeProvider.System).ConfigureAwait(false); // what is waited for is the machine
        }

        return true;
    }

    /// <summary>The server has begun to answer: what comes now may take as long as it likes.</summary>
    public void Answered() => (Volatile.Read(ref _lease) as ChannelLease)?.Answered();

    /// <summary>The verdict on what an attempt, or a read or a write of it, has failed with, by what has happened to its connection meanwhile.</summary>
    public CallFault Judge(Exception failure, PooledCall call) =>
        CallFaults.JudgeOnce(failure, channel?.Transport?.FactSince(_mark) ?? ConnectionFact.Unknown, call.Options.Headers, this);

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
        (lease as ChannelLease)?.Return(outcome, error);
        (lease as PooledCall)?.Picker.Return(lease!, channel!, outcome, error);
    }

    /// <summary>The channel has ended the call, and nobody has seen it.</summary>
    public virtual void EndedUnread() => Release(LeaseOutcome.Unknown);
}

internal abstract class CallAttempt<TResponse>(PooledChannel channel, object lease) : CallAttempt(channel, lease)
    where TResponse : class
{
    /// <summary>
    /// Ends when the attempt is decided. For a call with one response that is the response; for others it is the first message, or
    /// whatever else commits the call.
    /// </summary>
    public abstract Task<TResponse> Deciding { get; }

    /// <summary>What it was decided with.</summary>
    public TResponse Response => Deciding.GetAwaiter().GetResult();

    /// <summary>What it was decided with, if that is a failure.</summary>
    public Exception? Failure => FailureOf(Deciding);

    protected static Exception? FailureOf(Task task) =>
        task.IsFaulted ? task.Exception.InnerException : task.IsCanceled ? new TaskCanceledException(task) : null;
}

/// <summary>What a call has ended with that got no attempt, or whose end is not that of one; null is a success.</summary>
internal sealed class EndedCall(Exception? exception, PooledChannel? channel) : CallAttempt(channel, lease: null)
{
    /// <summary>What a reader or a writer meets.</summary>
    public Exception Exception => exception ?? new RpcException(Status.DefaultSuccess);

    public override Task<Metadata> ResponseHeadersAsync =>
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

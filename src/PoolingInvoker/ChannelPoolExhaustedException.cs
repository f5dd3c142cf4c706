namespace PoolingInvoker;

/// <summary>
/// No channel of a <see cref="ChannelPool"/> had room for a call: none became free within <see cref="ChannelPoolOptions.AcquireTimeout"/>, or
/// <see cref="ChannelPoolOptions.MaxCallsWaiting"/> calls waited already. A generated client gets an <c>RpcException</c> with the status
/// <c>ResourceExhausted</c>, and this one as <c>Status.DebugException</c>.
/// </summary>
/// <remarks>The message has the same numbers, and says which option to raise. They are of the moment of the refusal.</remarks>
public sealed class ChannelPoolExhaustedException : TimeoutException
{
    internal ChannelPoolExhaustedException(string message, Exception? cause)
        : base(message, cause)
    {
    }

    /// <summary>Gets the number of channels that take calls, or were being made.</summary>
    public int Channels { get; internal init; }

    /// <summary>Gets how many there may be (<see cref="ChannelPoolOptions.MaxPoolSize"/>).</summary>
    public int MaxPoolSize { get; internal init; }

    /// <summary>Gets the number of leases that were out.</summary>
    public int CallsInFlight { get; internal init; }

    /// <summary>Gets the number of calls that waited for room, this one not counted.</summary>
    public int CallsWaiting { get; internal init; }

    /// <summary>Gets how many may wait (<see cref="ChannelPoolOptions.MaxCallsWaiting"/>).</summary>
    public int MaxCallsWaiting { get; internal init; }

    /// <summary>Gets how long this call waited in line; zero if it was refused at once.</summary>
    public TimeSpan Waited { get; internal init; }
}

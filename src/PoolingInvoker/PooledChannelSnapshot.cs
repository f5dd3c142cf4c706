namespace PoolingInvoker;

/// <summary>One channel of a <see cref="ChannelPool"/> at one moment.</summary>
public readonly record struct PooledChannelSnapshot
{
    /// <summary>Gets the number of the channel. They are counted from 1, those included that could not be made, and none is used again.</summary>
    public int Id { get; init; }

    /// <summary>Gets what becomes of the channel.</summary>
    public PooledChannelState State { get; init; }

    /// <summary>Gets the state of the connection of the channel (gRPC's connectivity semantics); <see langword="null"/> over a transport that cannot tell.</summary>
    public ConnectivityState? ConnectivityState { get; init; }

    /// <summary>Gets where the channel leads, as host and port.</summary>
    public string Endpoint { get; init; }

    /// <summary>Gets the number of leases on the channel.</summary>
    public int CallsInFlight { get; init; }

    /// <summary>Gets the priority of the endpoint (<see cref="ChannelAddress.Priority"/>); 0 if it has none.</summary>
    public int Priority { get; init; }

    /// <summary>Gets how many calls the channel takes at a time: what its server announces, or <see cref="ChannelPoolOptions.MaxConcurrentCallsPerChannel"/> if that is less.</summary>
    public int Capacity { get; init; }

    /// <summary>Gets how long ago the channel was made.</summary>
    public TimeSpan Age { get; init; }

    /// <summary>Gets what the channel, or a call on it, last failed with because of the channel or its server; null if nothing has.</summary>
    public Exception? LastError { get; init; }

    /// <inheritdoc/>
    public override string ToString() =>
        FormattableString.Invariant($"#{Id} {State} to {Endpoint}, {CallsInFlight}/{Capacity} calls, {Age.TotalSeconds:0.#} s old{(LastError is null ? string.Empty : $", last error: {LastError.Message}")}");
}

namespace PoolingInvoker;

/// <summary>An address of a pool that has several, with its priority and its share of the calls.</summary>
/// <param name="address">The address, with its scheme, as in <c>http://10.0.0.1:5000</c>.</param>
public class ChannelAddress(string address)
{
    internal const int MostWeight = 1_000_000;
    internal const int LastPriority = 128; // as in Envoy

    /// <summary>Gets the address.</summary>
    public string Address { get; } = address ?? throw new ArgumentNullException(nameof(address));

    /// <summary>
    /// Gets the priority of the address. Calls go to the lowest number; to the next one in part where too few addresses of it can be
    /// reached (<see cref="ChannelPoolOptions.OverprovisioningFactor"/>), and at once where none can. They go back when the addresses have
    /// been well for <see cref="ChannelPoolOptions.RecoveryDelay"/>.
    /// </summary>
    /// <value>The default value is 0, the first one. From 0 to 128; numbers may be left out.</value>
    public int Priority { get; init; }

    /// <summary>Gets the share of the calls that the address has, beside those of the others of its priority.</summary>
    /// <value>The default value is 1. From 1 to 1,000,000.</value>
    public int Weight { get; init; } = 1;

    /// <summary>Makes one of a text, with the defaults.</summary>
    /// <param name="address">The address.</param>
    public static implicit operator ChannelAddress(string address) => new(address);

    /// <summary>Makes one of a text, with the defaults.</summary>
    /// <param name="address">The address.</param>
    public static ChannelAddress FromString(string address) => new(address);
}

namespace PoolingInvoker;

/// <summary>
/// What a configuration says of the sizes and times of a pool: <see cref="ChannelPoolOptions"/>, whose ranges hold. A time is a number of seconds
/// (<c>30</c>, <c>0.5</c>), <c>hh:mm:ss</c> (<c>00:00:30</c>), or, where it is said, <c>Infinite</c>. What is <see langword="null"/> is not said.
/// </summary>
public sealed class ChannelPoolSettings
{
    private const string Announced = "Announced";
    private const string Off = "Off";

    /// <summary>Gets or sets the name of the pool in its log, its events and its telemetry. The default value is the name of the client. It cannot change while the pool is at work.</summary>
    public string? Name { get; set; }

    /// <summary>Gets or sets how many channels the pool keeps. The default value is 1; at least 0.</summary>
    public int? MinPoolSize { get; set; }

    /// <summary>Gets or sets how many channels there are at the most. The default value is 100; at least 1.</summary>
    public int? MaxPoolSize { get; set; }

    /// <summary>Gets or sets how many calls a channel carries, at least 1, or <c>Announced</c> for what its server announces, which is the default.</summary>
    public string? MaxConcurrentCallsPerChannel { get; set; }

    /// <summary>Gets or sets how many calls a channel should carry before there is another one, at least 1, or <c>Off</c>. The default value is 12.</summary>
    public string? TargetConcurrentCallsPerChannel { get; set; }

    /// <summary>Gets or sets how busy the channel of a key may be, as a multiple of the mean. The default value is 1.25; at least 1.</summary>
    public double? AffinityLoadFactor { get; set; }

    /// <summary>Gets or sets how many endpoints of a priority may be lost before the next one gets calls. The default value is 1.4; at least 1.</summary>
    public double? OverprovisioningFactor { get; set; }

    /// <summary>Gets or sets how long an endpoint must have been well before calls go back to its priority. The default value is 10 seconds; at least 0.</summary>
    public string? RecoveryDelay { get; set; }

    /// <summary>Gets or sets how many channels are kept to each priority that gets no calls. The default value is 0; at least 0.</summary>
    public int? StandbyPoolSize { get; set; }

    /// <summary>Gets or sets how long a call waits for room. The default value is 30 seconds; <c>Infinite</c> waits without limit.</summary>
    public string? AcquireTimeout { get; set; }

    /// <summary>Gets or sets how many calls may wait. The default value is 10,000; at least 0.</summary>
    public int? MaxCallsWaiting { get; set; }

    /// <summary>Gets or sets the age at which a channel is replaced. The default value is 30 minutes; <c>Infinite</c> keeps channels.</summary>
    public string? PooledChannelLifetime { get; set; }

    /// <summary>Gets or sets how long a channel may be idle. The default value is 10 minutes; <c>Infinite</c> keeps idle channels.</summary>
    public string? PooledChannelIdleTimeout { get; set; }

    /// <summary>Gets or sets how long calls in flight are waited for at the end. The default value is 30 seconds; <c>Infinite</c> waits without limit.</summary>
    public string? DrainTimeout { get; set; }

    /// <summary>Gets or sets the age at which a lease is reported. The default value is 0, which turns it off. It cannot change while the pool is at work.</summary>
    public string? LeakDetectionThreshold { get; set; }

    /// <summary>Gets or sets how long a channel may be silent before it is asked. The default value is 1 second; <c>Infinite</c> turns it off.</summary>
    public string? ProbeDelay { get; set; }

    /// <summary>Gets or sets how long a sign of life is waited for. The default value is 1 second; it is positive.</summary>
    public string? ProbeTimeout { get; set; }

    /// <summary>Gets or sets the budget of retries. A configuration turns it off with <c>null</c> or <c>Off</c> in its place.</summary>
    public RetryThrottlingSettings? RetryThrottling { get; set; }

    /// <summary>Gets or sets how many bytes of requests all calls keep. The default value is 16,777,216; at least 0.</summary>
    public long? MaxRetryBufferSize { get; set; }

    internal static ChannelPoolSettings Read(SettingsSection section) => section.Whole(new ChannelPoolSettings
    {
        Name = section.Text(nameof(Name)),
        MinPoolSize = section.Number<int>(nameof(MinPoolSize)),
        MaxPoolSize = section.Number<int>(nameof(MaxPoolSize)),
        MaxConcurrentCallsPerChannel = section.Text(nameof(MaxConcurrentCallsPerChannel), forNull: Announced),
        TargetConcurrentCallsPerChannel = section.Text(nameof(TargetConcurrentCallsPerChannel), forNull: Off),
        AffinityLoadFactor = section.Number<double>(nameof(AffinityLoadFactor)),
        OverprovisioningFactor = section.Number<double>(nameof(OverprovisioningFactor)),
        RecoveryDelay = section.Text(nameof(RecoveryDelay)),
        StandbyPoolSize = section.Number<int>(nameof(StandbyPoolSize)),
        AcquireTimeout = section.Text(nameof(AcquireTimeout)),
        MaxCallsWaiting = section.Number<int>(nameof(MaxCallsWaiting)),
        PooledChannelLifetime = section.Text(nameof(PooledChannelLifetime)),
        PooledChannelIdleTimeout = section.Text(nameof(PooledChannelIdleTimeout)),
        DrainTimeout = section.Text(nameof(DrainTimeout)),
        LeakDetectionThreshold = section.Text(nameof(LeakDetectionThreshold)),
        ProbeDelay = section.Text(nameof(ProbeDelay)),
        ProbeTimeout = section.Text(nameof(ProbeTimeout)),
        RetryThrottling = section.IsOff(nameof(RetryThrottling)) ? new RetryThrottlingSettings { Enabled = false }
            : section.Section(nameof(RetryThrottling)) is { } throttling ? RetryThrottlingSettings.Read(throttling)
            : null,
        MaxRetryBufferSize = section.Number<long>(nameof(MaxRetryBufferSize)),
    });

    internal void Apply(ChannelPoolOptions options, SettingsValues values)
    {
        options.Name = Name ?? options.Name;
        options.MinPoolSize = MinPoolSize ?? options.MinPoolSize;
        options.MaxPoolSize = MaxPoolSize ?? options.MaxPoolSize;
        options.MaxConcurrentCallsPerChannel = values.CountOr(Announced, nameof(MaxConcurrentCallsPerChannel), MaxConcurrentCallsPerChannel, options.MaxConcurrentCallsPerChannel);
        options.TargetConcurrentCallsPerChannel = values.CountOr(Off, nameof(TargetConcurrentCallsPerChannel), TargetConcurrentCallsPerChannel, options.TargetConcurrentCallsPerChannel);
        options.AffinityLoadFactor = AffinityLoadFactor ?? options.AffinityLoadFactor;
        options.OverprovisioningFactor = OverprovisioningFactor ?? options.OverprovisioningFactor;
        options.RecoveryDelay = values.Time(nameof(RecoveryDelay), RecoveryDelay, options.RecoveryDelay);
        options.StandbyPoolSize = StandbyPoolSize ?? options.StandbyPoolSize;
        options.AcquireTimeout = values.TimeOrInfinite(nameof(AcquireTimeout), AcquireTimeout, options.AcquireTimeout);
        options.MaxCallsWaiting = MaxCallsWaiting ?? options.MaxCallsWaiting;
        options.PooledChannelLifetime = values.TimeOrInfinite(nameof(PooledChannelLifetime), PooledChannelLifetime, options.PooledChannelLifetime);
        options.PooledChannelIdleTimeout = values.TimeOrInfinite(nameof(PooledChannelIdleTimeout), PooledChannelIdleTimeout, options.PooledChannelIdleTimeout);
        options.DrainTimeout = values.TimeOrInfinite(nameof(DrainTimeout), DrainTimeout, options.DrainTimeout);
        options.LeakDetectionThreshold = values.Time(nameof(LeakDetectionThreshold), LeakDetectionThreshold, options.LeakDetectionThreshold);
        options.ProbeDelay = values.TimeOrInfinite(nameof(ProbeDelay), ProbeDelay, options.ProbeDelay);
        options.ProbeTimeout = values.Time(nameof(ProbeTimeout), ProbeTimeout, options.ProbeTimeout);
        options.RetryThrottling = RetryThrottling is null ? options.RetryThrottling : RetryThrottling.Applied(options.RetryThrottling);
        options.MaxRetryBufferSize = MaxRetryBufferSize ?? options.MaxRetryBufferSize;
    }
}

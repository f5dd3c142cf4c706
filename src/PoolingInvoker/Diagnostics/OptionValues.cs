namespace PoolingInvoker;

/// <summary>The options of a pool that have values, and are not callbacks, as they are told.</summary>
internal static class OptionValues
{
    public static IReadOnlyList<(string Name, object? Value)> Of(ChannelPoolOptions options) =>
    [
        (nameof(options.Name), options.Name),
        (nameof(options.MinPoolSize), options.MinPoolSize),
        (nameof(options.MaxPoolSize), options.MaxPoolSize),
        (nameof(options.MaxConcurrentCallsPerChannel), options.MaxConcurrentCallsPerChannel),
        (nameof(options.TargetConcurrentCallsPerChannel), options.TargetConcurrentCallsPerChannel),
        (nameof(options.AffinityLoadFactor), options.AffinityLoadFactor),
        (nameof(options.OverprovisioningFactor), options.OverprovisioningFactor),
        (nameof(options.RecoveryDelay), options.RecoveryDelay),
        (nameof(options.StandbyPoolSize), options.StandbyPoolSize),
        (nameof(options.AcquireTimeout), options.AcquireTimeout),
        (nameof(options.MaxCallsWaiting), options.MaxCallsWaiting),
        (nameof(options.PooledChannelLifetime), options.PooledChannelLifetime),
        (nameof(options.PooledChannelIdleTimeout), options.PooledChannelIdleTimeout),
        (nameof(options.DrainTimeout), options.DrainTimeout),
        (nameof(options.LeakDetectionThreshold), options.LeakDetectionThreshold),
        (nameof(options.ProbeDelay), options.ProbeDelay),
        (nameof(options.ProbeTimeout), options.ProbeTimeout),
        (nameof(options.RetryThrottling), options.RetryThrottling is { } budget ? FormattableString.Invariant($"{budget.MaxTokens} tokens, ratio {budget.TokenRatio}") : null),
        (nameof(options.MaxRetryBufferSize), options.MaxRetryBufferSize),
    ];
}

using Grpc.Net.Client.Configuration;

namespace PoolingInvoker;

/// <summary>What a configuration says of the budget of retries (<see cref="ChannelPoolOptions.RetryThrottling"/>). What is <see langword="null"/> is not said.</summary>
public sealed class RetryThrottlingSettings
{
    private static readonly RetryThrottlingPolicy Preset = new ChannelPoolOptions().RetryThrottling!;

    /// <summary>Gets or sets whether there is a budget. The default value is true.</summary>
    public bool? Enabled { get; set; }

    /// <summary>Gets or sets how many tokens there are. The default value is 1,000; at least 1.</summary>
    public int? MaxTokens { get; set; }

    /// <summary>Gets or sets what a call that succeeds gives back. The default value is 0.2; at least 0.001.</summary>
    public double? TokenRatio { get; set; }

    internal static RetryThrottlingSettings Read(SettingsSection section) => section.Whole(new RetryThrottlingSettings
    {
        Enabled = section.Flag(nameof(Enabled)),
        MaxTokens = section.Number<int>(nameof(MaxTokens)),
        TokenRatio = section.Number<double>(nameof(TokenRatio)),
    });

    internal RetryThrottlingPolicy? Applied(RetryThrottlingPolicy? policy) => !(Enabled ?? true) ? null : new RetryThrottlingPolicy
    {
        MaxTokens = MaxTokens ?? (policy ?? Preset).MaxTokens,
        TokenRatio = TokenRatio ?? (policy ?? Preset).TokenRatio,
    };
}

using Polly;

namespace PoolingInvoker;

/// <summary>What a configuration says of retries: <see cref="ChannelRetryStrategyOptions"/>. What is <see langword="null"/> is not said.</summary>
public sealed class ChannelRetrySettings
{
    /// <summary>Gets or sets how often a call is sent again. The default value is 3; 0 turns the retry off.</summary>
    public int? MaxRetryAttempts { get; set; }

    /// <summary>Gets or sets the first pause. The default value is 50 ms (<c>0.05</c>); from 0 to one day.</summary>
    public string? Delay { get; set; }

    /// <summary>Gets or sets the longest pause. The default value is 1 second; from 0 to one day, or <c>Infinite</c> for no limit.</summary>
    public string? MaxDelay { get; set; }

    /// <summary>Gets or sets how pauses grow: <c>Constant</c>, <c>Linear</c> or <c>Exponential</c>, which is the default.</summary>
    public string? BackoffType { get; set; }

    /// <summary>Gets or sets whether chance has a part in the pauses. The default value is true.</summary>
    public bool? UseJitter { get; set; }

    internal static ChannelRetrySettings Read(SettingsSection section) => section.Whole(new ChannelRetrySettings
    {
        MaxRetryAttempts = section.Number<int>(nameof(MaxRetryAttempts)),
        Delay = section.Text(nameof(Delay)),
        MaxDelay = section.Text(nameof(MaxDelay), forNull: SettingsValues.Infinite),
        BackoffType = section.Text(nameof(BackoffType)),
        UseJitter = section.Flag(nameof(UseJitter)),
    });

    internal void Apply(ChannelRetryStrategyOptions options, SettingsValues values)
    {
        options.MaxRetryAttempts = MaxRetryAttempts ?? options.MaxRetryAttempts;
        options.Delay = values.Time(nameof(Delay), Delay, options.Delay);
        var longest = values.TimeOrInfinite(nameof(MaxDelay), MaxDelay, options.MaxDelay ?? Timeout.InfiniteTimeSpan);
        options.MaxDelay = longest == Timeout.InfiniteTimeSpan ? null : longest;
        options.BackoffType = values.OneOf<DelayBackoffType>(nameof(BackoffType), BackoffType, options.BackoffType);
        options.UseJitter = UseJitter ?? options.UseJitter;
    }
}

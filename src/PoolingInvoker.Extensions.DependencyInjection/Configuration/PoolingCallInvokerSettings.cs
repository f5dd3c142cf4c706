using Microsoft.Extensions.Options;

namespace PoolingInvoker;

/// <summary>
/// What a configuration says of a pool and of its calls, in values that a configuration has: <see cref="PoolingCallInvokerOptions"/> without
/// callbacks. What is <see langword="null"/> is not said, and stays as it is. <c>AddChannelPool(section)</c> reads them; a settings type of an
/// app may contain them, too, and <see cref="ApplyTo"/> gives them to options.
/// </summary>
public sealed class PoolingCallInvokerSettings
{
    /// <summary>Gets or sets the sizes and times of the pool.</summary>
    public ChannelPoolSettings? Pool { get; set; }

    /// <summary>Gets or sets when and how often a call is sent again.</summary>
    public ChannelRetrySettings? Retry { get; set; }

    /// <summary>Gets or sets how many bytes of requests one call keeps for another attempt. The default value is 1,048,576; at least 0.</summary>
    public long? MaxRetryBufferPerCallSize { get; set; }

    /// <summary>Gets what holds for single methods. They are added to those that the options have.</summary>
    public ICollection<PooledMethodSettings> MethodConfigs { get; } = [];

    /// <summary>Changes options by what is said here.</summary>
    /// <param name="options">The options.</param>
    /// <exception cref="OptionsValidationException">A value is not one that its key may have. The message names key, value, and what is allowed.</exception>
    public void ApplyTo(PoolingCallInvokerOptions options)
    {
        ArgumentNullException.ThrowIfNull(options);
        SettingsValues values = new([]);
        Apply(options, values);
        values.ThrowIfFailed();
    }

    internal static PoolingCallInvokerSettings Read(SettingsSection section) => section.Whole(new PoolingCallInvokerSettings
    {
        Pool = section.Section(nameof(Pool)) is { } pool ? ChannelPoolSettings.Read(pool) : null,
        Retry = section.Section(nameof(Retry)) is { } retry ? ChannelRetrySettings.Read(retry) : null,
        MaxRetryBufferPerCallSize = section.Number<long>(nameof(MaxRetryBufferPerCallSize)),
    }.With(section.List(nameof(MethodConfigs), PooledMethodSettings.Read)));

    internal void Apply(PoolingCallInvokerOptions options, SettingsValues values)
    {
        Pool?.Apply(options.Pool, values.In(nameof(Pool)));
        Retry?.Apply(options.Retry ??= new ChannelRetryStrategyOptions(), values.In(nameof(Retry)));
        options.MaxRetryBufferPerCallSize = MaxRetryBufferPerCallSize ?? options.MaxRetryBufferPerCallSize;
        foreach (var (config, i) in MethodConfigs.Select(static (config, i) => (config, i)))
        {
            options.MethodConfigs.Add(config.ToConfig(options.Retry ?? new ChannelRetryStrategyOptions(), values.In($"{nameof(MethodConfigs)}:{i}")));
        }
    }

    private PoolingCallInvokerSettings With(IEnumerable<PooledMethodSettings> configs)
    {
        foreach (var config in configs)
        {
            MethodConfigs.Add(config);
        }

        return this;
    }
}

namespace PoolingInvoker;

/// <summary>The options of calls that have values, without those of the pool, as they are told.</summary>
internal static class CallOptionValues
{
    public static IReadOnlyList<(string Name, object? Value)> Of(PoolingCallInvokerOptions options) =>
    [
        .. options.Retry is { } retry ? Of("Retry", retry) : [], // none beside a pipeline
        (nameof(options.MaxRetryBufferPerCallSize), options.MaxRetryBufferPerCallSize),
        .. options.MethodConfigs.SelectMany(static config => Of(config)),
    ];

    public static string NameOf(PooledMethodConfig config) => $"MethodConfigs[{string.Join(", ", config.Names.Select(static name => $"{name.Service}/{name.Method}"))}]";

    private static IEnumerable<(string Name, object? Value)> Of(PooledMethodConfig config)
    {
        var names = NameOf(config);
        return
        [
            .. config.Retry is { } retry ? Of($"{names}.Retry", retry) : [],
            .. config.Hedging is { } hedging ? [($"{names}.Hedging.Delay", (object?)hedging.Delay), ($"{names}.Hedging.MaxHedgedAttempts", hedging.MaxHedgedAttempts)] : Array.Empty<(string, object?)>(),
            ($"{names}.Idempotent", config.Idempotent),
        ];
    }

    private static (string Name, object? Value)[] Of(string name, ChannelRetryStrategyOptions retry) =>
    [
        ($"{name}.MaxRetryAttempts", retry.MaxRetryAttempts),
        ($"{name}.Delay", retry.Delay),
        ($"{name}.MaxDelay", retry.MaxDelay),
        ($"{name}.BackoffType", retry.BackoffType),
        ($"{name}.UseJitter", retry.UseJitter),
    ];
}

using Grpc.Net.Client.Configuration;

namespace PoolingInvoker;

/// <summary>What a configuration says of single methods: a <see cref="PooledMethodConfig"/>. What is <see langword="null"/> is not said.</summary>
public sealed class PooledMethodSettings
{
    /// <summary>Gets the methods. At least one.</summary>
    public ICollection<MethodNameSettings> Names { get; } = [];

    /// <summary>Gets or sets when and how often they are sent again. What is not said in it is as for all methods.</summary>
    public ChannelRetrySettings? Retry { get; set; }

    /// <summary>Gets or sets hedging in place of retries, for idempotent unary methods.</summary>
    public ChannelHedgingSettings? Hedging { get; set; }

    /// <summary>Gets or sets whether they are safe to run twice. The default value is what the .proto says.</summary>
    public bool? Idempotent { get; set; }

    internal static PooledMethodSettings Read(SettingsSection section) => section.Whole(new PooledMethodSettings
    {
        Retry = section.Section(nameof(Retry)) is { } retry ? ChannelRetrySettings.Read(retry) : null,
        Hedging = section.Section(nameof(Hedging)) is { } hedging ? ChannelHedgingSettings.Read(hedging) : null,
        Idempotent = section.Flag(nameof(Idempotent)),
    }.With(section.List(nameof(Names), MethodNameSettings.Read)));

    internal PooledMethodConfig ToConfig(ChannelRetryStrategyOptions ofAll, SettingsValues values)
    {
        var config = new PooledMethodConfig { Idempotent = Idempotent, Hedging = Hedging?.ToOptions(values.In(nameof(Hedging))) };
        foreach (var name in Names)
        {
            config.Names.Add(new MethodName { Service = name.Service, Method = name.Method });
        }

        if (Names.Count == 0)
        {
            values.Fail(nameof(Names), "names no method. Name at least one, as in { \"Service\": \"user.v1.User\", \"Method\": \"GetName\" }; without a method it is all of the service, and {} is all methods.");
        }

        if (Retry is not null)
        {
            config.Retry = new ChannelRetryStrategyOptions
            {
                MaxRetryAttempts = ofAll.MaxRetryAttempts,
                Delay = ofAll.Delay,
                MaxDelay = ofAll.MaxDelay,
                BackoffType = ofAll.BackoffType,
                UseJitter = ofAll.UseJitter,
                ShouldHandle = ofAll.ShouldHandle,
                DelayGenerator = ofAll.DelayGenerator,
                OnRetry = ofAll.OnRetry,
                Randomizer = ofAll.Randomizer,
            };
            Retry.Apply(config.Retry, values.In(nameof(Retry)));
        }

        return config;
    }

    private PooledMethodSettings With(IEnumerable<MethodNameSettings> names)
    {
        foreach (var name in names)
        {
            Names.Add(name);
        }

        return this;
    }
}

/// <summary>A method, or all of a service, or all.</summary>
public sealed class MethodNameSettings
{
    /// <summary>Gets or sets the service, as in <c>user.v1.User</c>.</summary>
    public string? Service { get; set; }

    /// <summary>Gets or sets the method, as in <c>GetName</c>.</summary>
    public string? Method { get; set; }

    internal static MethodNameSettings Read(SettingsSection section) => section.Whole(new MethodNameSettings
    {
        Service = section.Text(nameof(Service), forNull: string.Empty),
        Method = section.Text(nameof(Method), forNull: string.Empty),
    });
}

/// <summary>What a configuration says of hedging: <see cref="ChannelHedgingStrategyOptions"/>.</summary>
public sealed class ChannelHedgingSettings
{
    /// <summary>Gets or sets how long an answer is waited for before the call is made on another channel, too. The default value is 2 seconds; <c>Infinite</c> waits for a failure.</summary>
    public string? Delay { get; set; }

    /// <summary>Gets or sets how many further attempts there are. The default value is 1; from 1 to 10.</summary>
    public int? MaxHedgedAttempts { get; set; }

    internal static ChannelHedgingSettings Read(SettingsSection section) => section.Whole(new ChannelHedgingSettings
    {
        Delay = section.Text(nameof(Delay)),
        MaxHedgedAttempts = section.Number<int>(nameof(MaxHedgedAttempts)),
    });

    internal ChannelHedgingStrategyOptions ToOptions(SettingsValues values)
    {
        var options = new ChannelHedgingStrategyOptions();
        options.Delay = values.TimeOrInfinite(nameof(Delay), Delay, options.Delay);
        options.MaxHedgedAttempts = MaxHedgedAttempts ?? options.MaxHedgedAttempts;
        return options;
    }
}

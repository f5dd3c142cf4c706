using System.Globalization;
using Grpc.Net.Client.Configuration;
using Microsoft.Extensions.Configuration;
using Microsoft.Extensions.DependencyInjection;
using Microsoft.Extensions.Options;
using Polly;
using PoolingInvoker.Protos;

namespace PoolingInvoker.DependencyInjectionTests;

/// <summary>What a section of the configuration says, and what is refused of it.</summary>
public sealed class SettingsTests
{
    private static readonly Uri Nowhere = new("http://localhost");

    [Fact]
    public void EachKey_IsTakenUp()
    {
        var options = Read("""
            {
              "Pool": {
                "MinPoolSize": 2, "MaxPoolSize": 20, "MaxConcurrentCallsPerChannel": 50, "TargetConcurrentCallsPerChannel": 8, "AcquireTimeout": 5, "MaxCallsWaiting": 100,
                "PooledChannelLifetime": "01:00:00", "PooledChannelIdleTimeout": "Infinite", "DrainTimeout": "0.5", "LeakDetectionThreshold": "00:01:00", "ProbeDelay": 2, "ProbeTimeout": 3,
                "Name": "users", "RetryThrottling": { "MaxTokens": 10, "TokenRatio": 0.5 }, "MaxRetryBufferSize": 5000000000
              },
              "Retry": { "MaxRetryAttempts": 5, "Delay": 0.1, "MaxDelay": 2, "BackoffType": "linear", "UseJitter": false },
              "MaxRetryBufferPerCallSize": 1000,
              "MethodConfigs": [
                { "Names": [ { "Service": "user.v1.User", "Method": "GetName" }, { "Service": "user.v1.User", "Method": "GetProfile" } ], "Retry": { "MaxRetryAttempts": 1 }, "Idempotent": true },
                { "Names": [ { "Service": "user.v1.User" } ], "Hedging": { "Delay": "Infinite", "MaxHedgedAttempts": 2 } }
              ]
            }
            """);
        var pool = options.Pool;
        Assert.Equal((2, 20, 50, 8, 100), (pool.MinPoolSize, pool.MaxPoolSize, pool.MaxConcurrentCallsPerChannel, pool.TargetConcurrentCallsPerChannel, pool.MaxCallsWaiting));
        Assert.Equal(
            [TimeSpan.FromSeconds(5), TimeSpan.FromHours(1), Timeout.InfiniteTimeSpan, TimeSpan.FromSeconds(0.5), TimeSpan.FromMinutes(1), TimeSpan.FromSeconds(2), TimeSpan.FromSeconds(3)],
            [pool.AcquireTimeout, pool.PooledChannelLifetime, pool.PooledChannelIdleTimeout, pool.DrainTimeout, pool.LeakDetectionThreshold, pool.ProbeDelay, pool.ProbeTimeout]);
        var retry = options.Retry;
        Assert.Equal((5, TimeSpan.FromSeconds(0.1), TimeSpan.FromSeconds(2), DelayBackoffType.Linear, false), (retry.MaxRetryAttempts, retry.Delay, retry.MaxDelay, retry.BackoffType, retry.UseJitter));
        Assert.Equal((10, 0.5), (pool.RetryThrottling!.MaxTokens, pool.RetryThrottling.TokenRatio));
        Assert.Equal((1000, 5_000_000_000, "users"), (options.MaxRetryBufferPerCallSize, pool.MaxRetryBufferSize, pool.Name));
        var (first, second) = (options.MethodConfigs.First(), options.MethodConfigs.Last());
        Assert.Equal([("user.v1.User", "GetName"), ("user.v1.User", "GetProfile")], first.Names.Select(static name => (name.Service!, name.Method!)));
        Assert.Equal((1, TimeSpan.FromSeconds(0.1), true), (first.Retry!.MaxRetryAttempts, first.Retry.Delay, first.Idempotent));
        Assert.Equal((Timeout.InfiniteTimeSpan, 2, null), (second.Hedging!.Delay, second.Hedging.MaxHedgedAttempts, second.Idempotent));
    }

    [Fact]
    public void WhatIsNotSaid_StaysAsItIs()
    {
        var options = new PoolingCallInvokerOptions { Pool = { MaxPoolSize = 7, RetryThrottling = new RetryThrottlingPolicy { MaxTokens = 3, TokenRatio = 1 } } };
        Assert.Equal((7, 1, 12), (Read("""{ "Pool": { "MinPoolSize": 1, "RetryThrottling": { "TokenRatio": 2 } } }""", options).Pool.MaxPoolSize, options.Pool.MinPoolSize, options.Pool.TargetConcurrentCallsPerChannel));
        Assert.Equal((3, 2), (options.Pool.RetryThrottling!.MaxTokens, options.Pool.RetryThrottling.TokenRatio));
    }

    [Theory]
    [InlineData("null")]
    [InlineData("\"Off\"")]
    [InlineData("{ \"Enabled\": false }")]
    public void TheBudget_IsTurnedOff(string off) => Assert.Null(Read($$"""{ "Pool": { "RetryThrottling": {{off}} } }""").Pool.RetryThrottling);

    [Theory]
    [InlineData("null", "null", "null")]
    [InlineData("\"Announced\"", "\"off\"", "\"infinite\"")]
    public void ANull_IsWhatItIsInCode(string most, string target, string longest)
    {
        var given = new PoolingCallInvokerOptions { Pool = { MaxConcurrentCallsPerChannel = 5 } };
        var options = Read($$"""{ "Pool": { "MaxConcurrentCallsPerChannel": {{most}}, "TargetConcurrentCallsPerChannel": {{target}} }, "Retry": { "MaxDelay": {{longest}} } }""", given);
        Assert.Equal((null, null, null), (options.Pool.MaxConcurrentCallsPerChannel, options.Pool.TargetConcurrentCallsPerChannel, options.Retry.MaxDelay));
    }

    [Theory]
    [InlineData("30", 30)]
    [InlineData("0", 0)]
    [InlineData("0.25", 0.25)]
    [InlineData(" 30 ", 30)]
    [InlineData("00:00:30", 30)]
    [InlineData("00:00:00.5", 0.5)]
    [InlineData("1.02:00:00", 93_600)]
    [InlineData("Infinite", -0.001)]
    [InlineData("INFINITE", -0.001)]
    public void Times_AreSeconds_OrHoursMinutesSeconds_OrInfinite(string text, double seconds) =>
        Assert.Equal(TimeSpan.FromSeconds(seconds), Read(("Pool:AcquireTimeout", text)).Pool.AcquireTimeout);

    [Theory]
    [InlineData("5 minutes")]
    [InlineData("5s")]
    [InlineData("00:30")]
    [InlineData("PT30S")]
    [InlineData("1,5")]
    [InlineData("NaN")]
    [InlineData("1e3")]
    [InlineData("99999999999999999999")]
    [InlineData("Never")]
    [InlineData("25:00:00")]
    public void AnythingElse_IsRefused_WithWhatIsAllowed(string text)
    {
        Refuses($"Pools:users:Pool:AcquireTimeout is '{text}'. It must be a number of seconds, as in 30 or 0.5, or hh:mm:ss, as in 00:00:30, or Infinite.", ("Pool:AcquireTimeout", text));
        Refuses($"Pools:users:Pool:ProbeTimeout is '{text}'. It must be a number of seconds, as in 30 or 0.5, or hh:mm:ss, as in 00:00:30.", ("Pool:ProbeTimeout", text));
    }

    [Theory]
    [InlineData("Pool:MaxPoolSize", "many", "is 'many'. It must be a whole number.")]
    [InlineData("Pool:MaxPoolSize", "2.5", "is '2.5'. It must be a whole number.")]
    [InlineData("Pool:MaxPoolSize", "9999999999", "is '9999999999'. It must be a whole number, and not as large as that.")]
    [InlineData("Pool:MaxPoolSize", "", "is empty. Give it a value, or leave it out.")]
    [InlineData("Pool:MaxPoolSize:Most", "5", "is a section. It must be a value.", "Pool:MaxPoolSize")]
    [InlineData("Pool", "5", "is '5'. It must be a section.")]
    [InlineData("Pool:MaxConcurrentCallsPerChannel", "all", "is 'all'. It must be a whole number, or Announced.")]
    [InlineData("Pool:TargetConcurrentCallsPerChannel", "none", "is 'none'. It must be a whole number, or Off.")]
    [InlineData("Pool:MaxPoolSzie", "5", "is not known. Pools:users:Pool may have Name, MinPoolSize, MaxPoolSize, ")]
    [InlineData("MaxPoolSize", "5", "is not known. Pools:users may have Pool, Retry, MaxRetryBufferPerCallSize, MethodConfigs.")]
    [InlineData("Retry:UseJitter", "maybe", "is 'maybe'. It must be true or false.")]
    [InlineData("Retry:BackoffType", "Cubic", "is 'Cubic'. It must be one of Constant, Linear, Exponential.")]
    [InlineData("Retry:BackoffType", "7", "is '7'. It must be one of Constant, Linear, Exponential.")]
    [InlineData("Pool:RetryThrottling:TokenRatio", "half", "is 'half'. It must be a number.")]
    [InlineData("MethodConfigs:0:Idempotent", "true", "names no method.", "MethodConfigs:0:Names")]
    [InlineData("MethodConfigs:0:Names:0:Service:Name", "user", "is a section.", "MethodConfigs:0:Names:0:Service")]
    public void AMistake_IsRefused_ByItsKey(string key, string value, string complaint, string? named = null) => Refuses($"Pools:users:{named ?? key} {complaint}", (key, value));

    [Fact]
    public void AllMistakes_AreToldAtOnce()
    {
        var exception = Assert.Throws<OptionsValidationException>(() => Read(("Pool:MaxPoolSize", "many"), ("Pool:DrainTimeout", "long"), ("Retries", "3")));
        Assert.Equal(["Pools:users:Pool:MaxPoolSize", "Pools:users:Retries", "Pools:users:Pool:DrainTimeout"], exception.Failures.Select(static failure => failure.Split(' ')[0]));
        Assert.Equal(nameof(User.UserClient), exception.OptionsName);
    }

    [Theory]
    [InlineData("Pool:MaxPoolSize", "0", "Pools:users:Pool:MaxPoolSize is 0. It must be at least 1.")]
    [InlineData("Pool:MinPoolSize", "101", "Pools:users:Pool:MinPoolSize (101) is larger than MaxPoolSize (100).")]
    [InlineData("Pool:ProbeTimeout", "0", "Pools:users:Pool:ProbeTimeout is 00:00:00. It must be positive")]
    [InlineData("Pool:AcquireTimeout", "-5", "Pools:users:Pool:AcquireTimeout is -00:00:05. It must be from zero to ")]
    [InlineData("Retry:MaxRetryAttempts", "-1", "Pools:users:Retry:MaxRetryAttempts is -1. It must be at least 0, which turns the retry off.")]
    [InlineData("Retry:Delay", "1.00:00:01", "Pools:users:Retry:Delay is 1.00:00:01. It must be from 0 to 1 day.")]
    [InlineData("Pool:RetryThrottling:MaxTokens", "0", "Pools:users:Pool:RetryThrottling has MaxTokens 0 and TokenRatio 0.2. MaxTokens must be at least 1")]
    [InlineData("MaxRetryBufferPerCallSize", "-1", "Pools:users:MaxRetryBufferPerCallSize is -1. It must be at least 0.")]
    public void AValueBeyondItsRange_IsRefused_ByItsKey(string key, string value, string message) => Refuses(message, (key, value));

    /// <summary>The options of all calls have a key of the same name, with another value.</summary>
    [Fact]
    public void AMethodConfig_WithAValueBeyondItsRange_IsNotTakenForTheOptionsOfAllCalls()
    {
        Refuses(
            "Pools:users:MethodConfigs[user.v1.User/GetName]: Retry.MaxRetryAttempts is -1. It must be at least 0, which turns the retry off.",
            ("Retry:MaxRetryAttempts", "2"),
            ("MethodConfigs:0:Names:0:Service", "user.v1.User"),
            ("MethodConfigs:0:Names:0:Method", "GetName"),
            ("MethodConfigs:0:Retry:MaxRetryAttempts", "-1"));
    }

    [Fact]
    public void AMistakeInCode_SaysOfWhichClient()
    {
        var services = new ServiceCollection();
        services.AddGrpcClient<User.UserClient>(static options => options.Address = Nowhere).AddChannelPool(static options => options.Retry.MaxRetryAttempts = -1);
        using var provider = services.BuildServiceProvider();
        const string Told = "The channel pool of the gRPC client 'UserClient' cannot be made: Retry.MaxRetryAttempts is -1. It must be at least 0, which turns the retry off.";
        Assert.Equal(Told, Assert.Throws<OptionsValidationException>(() => provider.GetRequiredService<IOptionsMonitor<PoolingCallInvokerOptions>>().Get(nameof(User.UserClient))).Message);
        Assert.Equal(Told, Assert.Throws<InvalidOperationException>(() => provider.GetRequiredService<User.UserClient>()).Message);
    }

    [Fact]
    public void ATypeOfTheAppsOwn_MayContainTheSettings()
    {
        var bound = ConfigurationOf(("Pool:MaxPoolSize", "5"), ("Pool:AcquireTimeout", "2.5"), ("MethodConfigs:0:Names:0:Service", "user.v1.User"), ("MethodConfigs:0:Idempotent", "true"))
            .GetSection("Pools:users").Get<PoolingCallInvokerSettings>(static binder => binder.ErrorOnUnknownConfiguration = true)!;
        var options = new PoolingCallInvokerOptions();
        bound.ApplyTo(options);
        Assert.Equal((5, TimeSpan.FromSeconds(2.5), true), (options.Pool.MaxPoolSize, options.Pool.AcquireTimeout, options.MethodConfigs.Single().Idempotent));
        bound.Pool!.DrainTimeout = "soon";
        Assert.StartsWith("Pool:DrainTimeout is 'soon'.", Assert.Throws<OptionsValidationException>(() => bound.ApplyTo(options)).Message, StringComparison.Ordinal);
    }

    private static void Refuses(string message, params (string Key, string Value)[] values) =>
        Assert.StartsWith(message, Assert.Single(Assert.Throws<OptionsValidationException>(() => Read(values)).Failures), StringComparison.Ordinal);

    private static PoolingCallInvokerOptions Read(params (string Key, string Value)[] values) => Read(ConfigurationOf(values), null);

    private static PoolingCallInvokerOptions Read(string json, PoolingCallInvokerOptions? given = null)
    {
        using var stream = new MemoryStream(System.Text.Encoding.UTF8.GetBytes(string.Create(CultureInfo.InvariantCulture, $$"""{ "Pools": { "users": {{json}} } }""")));
        return Read(new ConfigurationBuilder().AddJsonStream(stream).Build(), given);
    }

    private static IConfiguration ConfigurationOf(params (string Key, string Value)[] values) => new ConfigurationBuilder()
        .AddInMemoryCollection(values.Select(static value => KeyValuePair.Create($"Pools:users:{value.Key}", (string?)value.Value)))
        .Build();

    // As an app reads them, with the checks.
    private static PoolingCallInvokerOptions Read(IConfiguration configuration, PoolingCallInvokerOptions? given)
    {
        var services = new ServiceCollection();
        services.AddGrpcClient<User.UserClient>(static options => options.Address = Nowhere)
            .AddChannelPool(options => options.Pool = given?.Pool ?? options.Pool)
            .AddChannelPool(configuration.GetSection("Pools:users"));
        using var provider = services.BuildServiceProvider();
        return provider.GetRequiredService<IOptionsMonitor<PoolingCallInvokerOptions>>().Get(nameof(User.UserClient));
    }
}

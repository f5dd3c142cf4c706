using System.Collections;
using System.Globalization;
using System.Runtime.CompilerServices;
using System.Text;
using Microsoft.Extensions.Configuration;
using Microsoft.Extensions.DependencyInjection;
using PoolingInvoker.Protos;

namespace PoolingInvoker.DependencyInjectionTests;

/// <summary>The table of keys in docs/configuration.md is that of the code: each key, its default, and whether it is taken up live.</summary>
public sealed class ConfigurationDocsTests
{
    private static readonly string Docs = File.ReadAllText(Path.Combine(Path.GetDirectoryName(ThisFile())!, "..", "..", "docs", "configuration.md"));

    private static readonly List<Row> Rows = [.. Docs.Split('\n')
        .Where(static line => line.StartsWith("| `", StringComparison.Ordinal))
        .Select(static line => line.Split('|').Select(static cell => cell.Trim()).ToArray())
        .Select(static cells => new Row(cells[1].Trim('`'), cells[2], cells[4], cells[5]))];

    public static TheoryData<string> Keys => [.. Rows.Select(static row => row.Key)];

    [Fact]
    public void EachKey_IsInTheTable_AndNoOther() => Assert.Equal(KeysOf(typeof(PoolingCallInvokerSettings), "").Order(), Rows.Select(static row => row.Key).Order());

    [Theory]
    [MemberData(nameof(Keys))]
    public void ADefault_IsThatOfTheOptions(string key)
    {
        var row = Rows.Single(row => row.Key == key);
        if (key.Contains("Hedging", StringComparison.Ordinal))
        {
            Assert.Equal(TextOf(ValueOf(new ChannelHedgingStrategyOptions(), key.Split(':')[^1]), key), row.Default);
        }
        else
        {
            Assert.Equal(key.StartsWith("MethodConfigs", StringComparison.Ordinal) ? "" : TextOf(ValueOf(new PoolingCallInvokerOptions(), key), key), row.Default);
        }
    }

    [Theory]
    [MemberData(nameof(Keys))]
    public async Task WhatIsSaidToBeLive_IsTakenUpLive(string key)
    {
        var row = Rows.Single(row => row.Key == key);
        var configuration = new ConfigurationBuilder().AddInMemoryCollection().Build();
        await using var app = new ClientApp(services => services.AddPooledGrpcClient<User.UserClient>("http://localhost", configuration.GetSection("Pools:users")));
        Assert.NotNull(app.Client);
        if (key.Contains("Names", StringComparison.Ordinal))
        {
            configuration["Pools:users:MethodConfigs:0:Idempotent"] = "true";
        }

        if (key.StartsWith("MethodConfigs", StringComparison.Ordinal))
        {
            configuration["Pools:users:MethodConfigs:0:Names:0:Service"] = "user.v1.User";
        }

        configuration[$"Pools:users:{key}"] = row.Example;
        configuration.Reload();
        var entries = app.Logs.GetSnapshot().Where(static entry => entry.Id.Name != "NoSection").ToList();
        Assert.DoesNotContain(entries, static entry => entry.Exception is not null);
        Assert.Equal(row.Live == "yes" ? "OptionsChanged" : "OptionsKept", Assert.Single(entries, static entry => entry.Id.Name is "OptionsChanged" or "OptionsKept").Id.Name);
    }

    [Fact]
    public async Task TheExample_CanBeUsed()
    {
        var json = Docs.Split("```json")[1].Split("```")[0];
        using var stream = new MemoryStream(Encoding.UTF8.GetBytes(json));
        var configuration = new ConfigurationBuilder().AddJsonStream(stream).Build();
        await using var app = new ClientApp(services => services.AddPooledGrpcClient<User.UserClient>("http://localhost", configuration.GetSection("GrpcPools:users"), static options => options.Pool.MaxPoolSize *= 2));
        Assert.NotNull(app.Client);
        var options = app.Services.GetRequiredService<Microsoft.Extensions.Options.IOptionsMonitor<PoolingCallInvokerOptions>>().Get(nameof(User.UserClient));
        Assert.Equal((40, TimeSpan.FromMinutes(15), 2), (options.Pool.MaxPoolSize, options.Pool.PooledChannelLifetime, options.Retry.MaxRetryAttempts));
        Assert.Equal(0, options.MethodConfigs.Single().Retry!.MaxRetryAttempts);
    }

    private static IEnumerable<string> KeysOf(Type settings, string path) => settings.GetProperties().SelectMany(property =>
    {
        var (type, key) = (Nullable.GetUnderlyingType(property.PropertyType) ?? property.PropertyType, $"{path}{property.Name}");
        return type == typeof(string) || type.IsPrimitive ? [key]
            : typeof(IEnumerable).IsAssignableFrom(type) ? KeysOf(type.GetGenericArguments()[0], $"{key}:0:")
            : KeysOf(type, $"{key}:");
    });

    private static object? ValueOf(object? options, string key)
    {
        foreach (var name in key.Split(':'))
        {
            options = name == "Enabled" ? options is not null : options!.GetType().GetProperties().First(property => property.Name == name).GetValue(options);
        }

        return options;
    }

    private static string TextOf(object? value, string key) => value switch
    {
        null => key.EndsWith("Name", StringComparison.Ordinal) ? "" : key.EndsWith("MaxConcurrentCallsPerChannel", StringComparison.Ordinal) ? "Announced" : "Off",
        TimeSpan time => time.TotalSeconds.ToString(CultureInfo.InvariantCulture),
        bool flag => flag ? "true" : "false",
        _ => string.Create(CultureInfo.InvariantCulture, $"{value}"),
    };

    private static string ThisFile([CallerFilePath] string file = "") => file;

    private sealed record Row(string Key, string Default, string Example, string Live);
}

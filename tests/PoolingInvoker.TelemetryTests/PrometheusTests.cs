using System.Text.Json;
using System.Text.RegularExpressions;

namespace PoolingInvoker.TelemetryTests;

/// <summary>The dashboard and the alert rules ask for what an exporter gives.</summary>
public sealed partial class PrometheusTests : IAsyncLifetime
{
    private const string Dashboard = "telemetry/grafana-dashboard.json";
    private const string Alerts = "telemetry/alerts.yml";

    private static readonly Dictionary<string, string[]> Values = new()
    {
        ["pool_reason"] = [.. Enum.GetNames<ChannelPoolEventReason>().Select(SnakeCase)],
        ["pool_channel_state"] = [.. Enum.GetNames<PooledChannelState>().Select(SnakeCase)],
    };

    private Scenario _scenario = null!;
    private IReadOnlyDictionary<string, IReadOnlySet<string>> _series = null!;

    public async ValueTask InitializeAsync()
    {
        await using var prometheus = await Prometheus.StartAsync();
        _scenario = await Scenario.StartAsync();
        _series = await prometheus.ScrapeAsync();
    }

    public ValueTask DisposeAsync() => _scenario.DisposeAsync();

    [Theory]
    [InlineData(Dashboard)]
    [InlineData(Alerts)]
    public void WhatIsAskedFor_IsThere(string file)
    {
        var expressions = ExpressionsOf(file);
        Assert.NotEmpty(expressions);
        foreach (var expression in expressions)
        {
            var metrics = Metrics().Matches(expression);
            Assert.NotEmpty(metrics);
            foreach (Match metric in metrics)
            {
                Assert.True(_series.TryGetValue(metric.Groups["name"].Value, out var labels), $"{metric.Groups["name"]} is not exported: {expression}");
                foreach (Match selector in Selectors().Matches(metric.Groups["selectors"].Value))
                {
                    Assert.Contains(selector.Groups["label"].Value, labels);
                    if (Values.TryGetValue(selector.Groups["label"].Value, out var values))
                    {
                        Assert.Subset(values.ToHashSet(), selector.Groups["value"].Value.Split('|').ToHashSet());
                    }
                }
            }

            var all = metrics.SelectMany(metric => _series[metric.Groups["name"].Value]).ToHashSet();
            Assert.All(Groupings().Matches(expression), grouping => Assert.Subset(all, grouping.Groups["labels"].Value.Split(", ").ToHashSet()));
            Assert.All(Legends().Matches(LegendOf(file, expression)), legend => Assert.Contains(legend.Groups["label"].Value, all));
        }
    }

    [Fact]
    public void TheDashboardShowsAllOfThem()
    {
        var shown = ExpressionsOf(Dashboard).SelectMany(static expression => Metrics().Matches(expression)).Select(static metric => Family(metric.Groups["name"].Value));
        Assert.Equal(_series.Keys.Where(static name => name != "target_info").Select(Family).Distinct().Order(), shown.Distinct().Order());
    }

    [Fact]
    public void EachAlertSaysHowBadItIs_AndWhatToDo()
    {
        var rules = Repository.Read(Alerts).Split("      - alert: ")[1..];
        Assert.Equal(rules.Length, ExpressionsOf(Alerts).Count);
        Assert.All(rules, static rule => Assert.Matches(@"^\w+\n        expr: .+\n(        for: \d+m\n)?        labels:\n          severity: (warning|critical)\n        annotations:\n          summary: "".+""\n          description: "".+""\n*$", rule));
    }

    private static List<string> ExpressionsOf(string file) => file == Alerts
        ? [.. Repository.Read(file).Split('\n').Where(static line => line.StartsWith("        expr: ", StringComparison.Ordinal)).Select(static line => line.Trim()["expr: ".Length..])]
        : [.. Targets().Select(static target => target.GetProperty("expr").GetString()!)];

    private static string LegendOf(string file, string expression) => file == Alerts
        ? string.Empty
        : Targets().First(target => target.GetProperty("expr").GetString() == expression).GetProperty("legendFormat").GetString()!;

    private static IEnumerable<JsonElement> Targets() => JsonDocument.Parse(Repository.Read(Dashboard)).RootElement
        .GetProperty("panels").EnumerateArray()
        .SelectMany(static panel => panel.GetProperty("targets").EnumerateArray());

    private static string Family(string series) => Parts().Replace(series, string.Empty);

    private static string SnakeCase(string name) => JsonNamingPolicy.SnakeCaseLower.ConvertName(name);

    [GeneratedRegex(@"(?<name>(grpc_client_channel_pool|rpc_client)_\w+)(\{(?<selectors>[^}]*)\})?", RegexOptions.ExplicitCapture)]
    private static partial Regex Metrics();

    [GeneratedRegex(@"(?<label>\w+)(=|!=|=~|!~)""(?<value>[^""]*)""", RegexOptions.ExplicitCapture)]
    private static partial Regex Selectors();

    [GeneratedRegex(@"by \((?<labels>[a-z_, ]+)\)", RegexOptions.ExplicitCapture)]
    private static partial Regex Groupings();

    [GeneratedRegex(@"\{\{(?<label>\w+)\}\}", RegexOptions.ExplicitCapture)]
    private static partial Regex Legends();

    [GeneratedRegex("_(bucket|sum|count)$")]
    private static partial Regex Parts();
}

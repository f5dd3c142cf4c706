using System.Diagnostics;
using System.Diagnostics.Metrics;

namespace PoolingInvoker.TelemetryTests;

/// <summary>docs/telemetry.md lists what there is, and no more: names, kinds, units and attributes.</summary>
public sealed class PageTests
{
    private static readonly string[] OfEach = ["pool.name", "server.address", "server.port"];

    [Fact]
    public async Task AllInstruments_AreOnThePage_WithKindAndUnit()
    {
        var instruments = new List<Instrument>();
        using var listener = new MeterListener
        {
            InstrumentPublished = (instrument, _) =>
            {
                if (instrument.Meter.Name == "PoolingInvoker" && instrument.Meter.Scope is null)
                {
                    instruments.Add(instrument);
                }
            },
        };
        listener.Start();
        await using var pool = ChannelPool.ForAddress("http://page:5000");
        Assert.Equal(
            instruments.Select(static one => (one.Name, one.GetType().Name.Split('`')[0].Replace("Observable", string.Empty, StringComparison.Ordinal), one.Unit)).Order(),
            Metrics().Select(static row => (row[0], row[1], (string?)row[2])).Order());
    }

    [Fact]
    public async Task AllAttributesOfMetrics_AreOnThePage()
    {
        using var metrics = new Metrics();
        await using var scenario = await Scenario.StartAsync();
        var measured = metrics.Collect().GroupBy(static point => point.Name).ToDictionary(
            static same => same.Key,
            static same => same.SelectMany(static point => point.Tags.Keys).Except(OfEach).Order());
        Assert.Equal(OfEach, Rows("## Metrics", "| attribute |").Select(static row => row[0]));
        Assert.Equal(
            measured.Select(static one => $"{one.Key}: {string.Join(' ', one.Value)}").Order(),
            Metrics().Select(static row => $"{row[0]}: {string.Join(' ', row[3].Split(", ", StringSplitOptions.RemoveEmptyEntries).Order())}").Order());
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public async Task AllAttributesOfSpans_AreOnThePage(bool isGrpcNetClientHeard)
    {
        using var spans = new Spans(builder => _ = isGrpcNetClientHeard ? builder.AddSource("Grpc.Net.Client") : builder);
        await using (await Scenario.StartAsync())
        {
        }

        var calls = spans.Below(spans.Root);
        var attempts = calls.SelectMany(spans.Below).ToArray();
        Assert.NotEmpty(attempts);
        Assert.Equal(Spans(1), AttributesOf(calls));
        if (isGrpcNetClientHeard)
        {
            Assert.All(attempts, static attempt => Assert.Equal("Grpc.Net.Client.GrpcOut", attempt.OperationName));
            Assert.Equal(Spans(3), AttributesOf(attempts).Where(static name => name.StartsWith("pool.", StringComparison.Ordinal)));
        }
        else
        {
            Assert.All(attempts, static attempt => Assert.Equal($"Attempt.{attempt.GetTagItem("rpc.method")}", attempt.DisplayName));
            Assert.Equal(Spans(2), AttributesOf(attempts));
        }

        static IEnumerable<string> AttributesOf(IEnumerable<Activity> all) => all.SelectMany(static span => span.TagObjects).Select(static tag => tag.Key).Distinct().Order();

        static IEnumerable<string> Spans(int column) => Rows("## Spans", "| attribute |").Where(row => row[column] == "yes").Select(static row => row[0]).Order();
    }

    [Theory]
    [InlineData("pool.attempt.kind", "first", "retry", "hedge")]
    public void AllValues_AreOnThePage(string attribute, params string[] values)
    {
        var row = Assert.Single(Rows("## Spans", "| attribute |"), row => row[0] == attribute);
        Assert.All(values, value => Assert.Contains(value, row[^1], StringComparison.Ordinal));
    }

    private static IEnumerable<string[]> Metrics() => Rows("## Metrics", "| name |");

    // The cells of a table, without their code marks.
    private static IEnumerable<string[]> Rows(string section, string header)
    {
        var page = Repository.Read("docs/telemetry.md");
        var lines = page[page.IndexOf($"{section}\n", StringComparison.Ordinal)..].Split('\n');
        return lines.SkipWhile(line => !line.StartsWith(header, StringComparison.Ordinal)).Skip(2).TakeWhile(static line => line.StartsWith('|'))
            .Select(static line => line.Trim('|').Split('|').Select(static cell => cell.Replace("`", string.Empty, StringComparison.Ordinal).Trim()).ToArray());
    }
}

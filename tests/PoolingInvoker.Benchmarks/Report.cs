using System.Diagnostics;
using System.Globalization;
using System.Runtime.InteropServices;
using System.Text;

namespace PoolingInvoker.Benchmarks;

/// <summary>What a comparison found, as a table, as a chart, and as a part of <c>docs/benchmarks.md</c>.</summary>
internal static class Report
{
    private const string Begin = "<!-- begin of figures: written by the command -->";
    private const string End = "<!-- end of figures -->";

    public static string Table(Result result)
    {
        var scenario = result.Scenario;
        var text = new StringBuilder();
        text.AppendLine(CultureInfo.InvariantCulture, $"| {scenario.Name} | {string.Join(" | ", scenario.Contenders)} | pool by {scenario.Contenders[0]} | goal | reached |");
        text.AppendLine($"|---{string.Concat(scenario.Contenders.Select(static _ => "|---"))}|---|---|---|");
        for (var i = 0; i < scenario.Figures.Count; i++)
        {
            var figure = scenario.Figures[i];
            var cells = result.Medians.Select(row => Number(row[i]));
            var ratio = double.IsFinite(result.Ratio(i)) ? result.Ratio(i).ToString("0.00", CultureInfo.InvariantCulture) : "";
            var reached = figure.IsReached is { } isReached ? isReached(result.Pool(i), result.First(i)) ? "yes" : "**no**" : "";
            text.AppendLine(CultureInfo.InvariantCulture, $"| {figure.Name} | {string.Join(" | ", cells)} | {ratio} | {figure.Goal} | {reached} |");
        }

        return text.ToString();
    }

    /// <summary>Writes the figures into <c>docs/benchmarks.md</c>, and the chart beside it. What else stands there stays.</summary>
    /// <param name="results">What was measured.</param>
    /// <param name="command">The command that did.</param>
    /// <param name="folder">The folder of the docs.</param>
    public static void Write(IReadOnlyList<Result> results, string command, string folder)
    {
        var figures = $"""
            {Begin}

            `{command}`, commit {Commit()}, {Environment.ProcessorCount} processors, {RuntimeInformation.OSDescription}, {RuntimeInformation.FrameworkDescription}.
            Medians of rounds in which the contenders take turns. Servers run in processes of their own.

            ![The pool by the first contender of each table: right of the line the pool is better.](benchmarks.svg)

            {string.Join(Environment.NewLine, results.Select(Table))}
            {End}
            """;
        var file = Path.Combine(folder, "benchmarks.md");
        var text = File.ReadAllText(file);
        var (begin, end) = (text.IndexOf(Begin, StringComparison.Ordinal), text.IndexOf(End, StringComparison.Ordinal));
        File.WriteAllText(file, $"{text[..begin]}{figures}{text[(end + End.Length)..]}");
        File.WriteAllText(Path.Combine(folder, "benchmarks.svg"), Chart(results));
    }

    // How many times better the pool is, on a logarithmic scale.
    private static string Chart(IReadOnlyList<Result> results)
    {
        const int Row = 20;
        const int Middle = 560;
        const int Decade = 110;
        var bars = results.SelectMany(static result => result.Scenario.Figures.Select((figure, i) => (
                Label: $"{result.Scenario.Name}: {figure.Name}",
                Better: figure.MoreIsBetter ? result.Ratio(i) : 1 / result.Ratio(i))))
            .Where(static bar => double.IsFinite(bar.Better) && bar.Better > 0)
            .ToList();
        var svg = new StringBuilder();
        svg.AppendLine(CultureInfo.InvariantCulture, $"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 900 {(bars.Count * Row) + 30}" font-family="sans-serif" font-size="11" fill="#57606a">""");
        svg.AppendLine("<title>How many times better the pool is than the first contender of each table</title>");
        for (var i = 0; i < bars.Count; i++)
        {
            var (label, better) = bars[i];
            var width = Math.Clamp(Math.Log10(better) * Decade, -90, 250);
            var y = (i * Row) + 10;
            svg.AppendLine(CultureInfo.InvariantCulture, $"""<text x="{Middle - 100}" y="{y + 11}" text-anchor="end">{System.Security.SecurityElement.Escape(label)}</text>""");
            svg.AppendLine(CultureInfo.InvariantCulture,
                $"""<rect x="{Middle + Math.Min(width, 0):0.0}" y="{y}" width="{Math.Abs(width):0.0}" height="14" fill="{(better >= 0.98 ? "#1a7f37" : "#bf8700")}"/>""");
            svg.AppendLine(CultureInfo.InvariantCulture, $"""<text x="{Middle + Math.Max(width, 0) + 6:0.0}" y="{y + 11}">{Number(better)} ×</text>""");
        }

        svg.AppendLine(CultureInfo.InvariantCulture, $"""<line x1="{Middle}" x2="{Middle}" y1="4" y2="{(bars.Count * Row) + 14}" stroke="#57606a"/>""");
        return svg.AppendLine("</svg>").ToString();
    }

    private static string Number(double value) => value.ToString(
        Math.Abs(value) switch { >= 1_000 => "#,0", >= 100 => "0", >= 10 => "0.0", _ => "0.##" }, CultureInfo.InvariantCulture);

    private static string Commit()
    {
        using var git = Process.Start(new ProcessStartInfo("git", ["describe", "--always", "--dirty"]) { RedirectStandardOutput = true })!;
        return git.StandardOutput.ReadToEnd().Trim();
    }
}

using System.Text.RegularExpressions;
using Microsoft.AspNetCore.Builder;
using Microsoft.AspNetCore.Hosting;
using Microsoft.AspNetCore.Hosting.Server;
using Microsoft.AspNetCore.Hosting.Server.Features;
using Microsoft.Extensions.DependencyInjection;
using OpenTelemetry.Metrics;

namespace PoolingInvoker.TelemetryTests;

/// <summary>What a Prometheus server would scrape: an app whose exporter is asked over HTTP.</summary>
internal sealed partial class Prometheus : IAsyncDisposable
{
    private readonly WebApplication _application;

    private Prometheus(WebApplication application) => _application = application;

    public static async Task<Prometheus> StartAsync()
    {
        var builder = WebApplication.CreateEmptyBuilder(new WebApplicationOptions());
        builder.Services.AddRoutingCore();
        builder.Services.AddOpenTelemetry().WithMetrics(static metrics => metrics.AddMeter("PoolingInvoker").AddPrometheusExporter());
        builder.WebHost.UseKestrelCore().UseUrls("http://127.0.0.1:0");
        var application = builder.Build();
        application.UseOpenTelemetryPrometheusScrapingEndpoint();
        await application.StartAsync();
        return new Prometheus(application);
    }

    /// <summary>The names of the labels of each series.</summary>
    public async Task<IReadOnlyDictionary<string, IReadOnlySet<string>>> ScrapeAsync()
    {
        using var client = new HttpClient();
        var address = _application.Services.GetRequiredService<IServer>().Features.Get<IServerAddressesFeature>()!.Addresses.Single();
        var text = await client.GetStringAsync(new Uri($"{address}/metrics"));
        return Samples().Matches(text)
            .GroupBy(static sample => sample.Groups["name"].Value)
            .ToDictionary(
                static same => same.Key,
                IReadOnlySet<string> (same) => same.SelectMany(static sample => Labels().Matches(sample.Groups["labels"].Value).Select(static label => label.Groups["name"].Value)).ToHashSet());
    }

    public async ValueTask DisposeAsync()
    {
        await _application.StopAsync();
        await _application.DisposeAsync();
    }

    [GeneratedRegex(@"^(?<name>[a-z_:][a-z0-9_:]*)(\{(?<labels>.*)\})? [0-9.eE+NaInf-]+", RegexOptions.Multiline | RegexOptions.ExplicitCapture)]
    private static partial Regex Samples();

    [GeneratedRegex(@"(?<name>[a-z_][a-z0-9_]*)=""", RegexOptions.ExplicitCapture)]
    private static partial Regex Labels();
}

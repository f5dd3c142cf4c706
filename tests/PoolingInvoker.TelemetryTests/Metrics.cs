using OpenTelemetry;
using OpenTelemetry.Metrics;

namespace PoolingInvoker.TelemetryTests;

/// <summary>The metrics of the pools, as an exporter gets them.</summary>
internal sealed class Metrics : IDisposable
{
    private readonly List<MetricSnapshot> _exported = [];
    private readonly MeterProvider _provider;

    public Metrics() => _provider = Sdk.CreateMeterProviderBuilder().AddMeter("PoolingInvoker").AddInMemoryExporter(_exported).Build();

    /// <summary>Collects, and gives all points of the pools with these names.</summary>
    public IReadOnlyList<Point> Collect(params string[] pools)
    {
        _exported.Clear();
        _provider.ForceFlush();
        return [.. _exported.SelectMany(static metric => metric.MetricPoints.Select(point => Point.Of(metric, point))).Where(point => pools.Length == 0 || pools.Contains(point.Tags["pool.name"]))];
    }

    public void Dispose() => _provider.Dispose();
}

/// <param name="Name">Of the metric.</param>
/// <param name="Unit">Of the metric.</param>
/// <param name="Kind">Of the instrument.</param>
/// <param name="Tags">The attributes of the point.</param>
/// <param name="Value">The value; of a histogram how often it was recorded.</param>
/// <param name="Sum">Of a histogram.</param>
/// <param name="Bounds">Of the buckets of a histogram.</param>
internal sealed record Point(string Name, string Unit, string Kind, IReadOnlyDictionary<string, object?> Tags, double Value, double Sum, IReadOnlyList<double> Bounds)
{
    public static Point Of(MetricSnapshot metric, MetricPoint point)
    {
        var tags = new Dictionary<string, object?>();
        foreach (var tag in point.Tags)
        {
            tags.Add(tag.Key, tag.Value);
        }

        (string Kind, double Value, double Sum) read = metric.MetricType switch
        {
            MetricType.LongSum => ("Counter", point.GetSumLong(), 0),
            MetricType.LongSumNonMonotonic => ("UpDownCounter", point.GetSumLong(), 0),
            MetricType.DoubleGauge => ("Gauge", point.GetGaugeLastValueDouble(), 0),
            _ => ("Histogram", point.GetHistogramCount(), point.GetHistogramSum()),
        };
        List<double> bounds = [];
        if (read.Kind == "Histogram")
        {
            foreach (var bucket in point.GetHistogramBuckets())
            {
                bounds.Add(bucket.ExplicitBound);
            }
        }

        return new Point(metric.Name, metric.Unit, read.Kind, tags, read.Value, read.Sum, bounds);
    }
}

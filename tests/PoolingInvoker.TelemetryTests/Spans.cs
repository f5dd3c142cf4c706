using System.Collections.Concurrent;
using System.Diagnostics;
using OpenTelemetry;
using OpenTelemetry.Trace;
using PoolingInvoker.Testing;

namespace PoolingInvoker.TelemetryTests;

/// <summary>The spans of one trace, as an exporter gets them: those below the root, which is the span of the application until this is disposed.</summary>
internal sealed class Spans : IDisposable
{
    private static readonly ActivitySource Source = new("PoolingInvoker.TelemetryTests");

    private readonly ConcurrentQueue<Activity> _ended = new();
    private readonly TracerProvider _provider;
    private readonly Activity? _before = Activity.Current;

    public Spans(Action<TracerProviderBuilder>? listen = null)
    {
        var builder = Sdk.CreateTracerProviderBuilder()
            .AddSource(Source.Name)
            .AddSource("PoolingInvoker")
            .SetSampler(new AlwaysOnSampler())
            .AddProcessor(new SimpleActivityExportProcessor(new Exporter(_ended)));
        listen?.Invoke(builder);
        _provider = builder.Build();
        Root = Source.StartActivity("of the application")!;
    }

    public Activity Root { get; }

    /// <summary>Those that have ended, in the order in which they began.</summary>
    public IReadOnlyList<Activity> Ended => [.. _ended.Where(span => span.TraceId == Root.TraceId && span != Root).OrderBy(static span => span.StartTimeUtc)];

    /// <summary>The one span of a call, once it has ended.</summary>
    public async Task<Activity> CallAsync()
    {
        await Waiting.Until(() => Ended.Any(span => span.ParentSpanId == Root.SpanId));
        return Assert.Single(Ended, span => span.ParentSpanId == Root.SpanId);
    }

    public async Task<IReadOnlyList<Activity>> AttemptsAsync(int count)
    {
        var call = await CallAsync();
        await Waiting.Until(() => Below(call).Count >= count);
        Assert.Equal(count, Below(call).Count);
        return [.. Below(call).OrderBy(static span => span.GetTagItem("pool.attempt.number"))];
    }

    public IReadOnlyList<Activity> Below(Activity parent) => [.. Ended.Where(span => span.ParentSpanId == parent.SpanId)];

    public void Dispose()
    {
        Root.Dispose();
        Activity.Current = _before;
        _provider.Dispose();
    }

    // Not that of the package: its list is not for several threads.
    private sealed class Exporter(ConcurrentQueue<Activity> ended) : BaseExporter<Activity>
    {
        public override ExportResult Export(in Batch<Activity> batch)
        {
            foreach (var span in batch)
            {
                ended.Enqueue(span);
            }

            return ExportResult.Success;
        }
    }
}

using System.Collections.Concurrent;
using System.Diagnostics.Metrics;

namespace PoolingInvoker;

/// <summary>How long calls take, of each pool by its name: what the meter of the library says while somebody watches.</summary>
internal sealed class Latencies : IDisposable
{
    private const string MeterName = "PoolingInvoker";
    private const string CallDuration = "rpc.client.call.duration"; // in seconds, with its retries
    private const string PoolName = "pool.name";

    private readonly ConcurrentDictionary<string, LatencyWindow> _pools = new();
    private readonly ConcurrentBag<Instrument> _instruments = [];
    private readonly MeterListener _listener = new();
    private Dictionary<string, (double? P50, double? P99)> _taken = [];

    public Latencies()
    {
        _listener.InstrumentPublished = (instrument, listener) =>
        {
            if (instrument.Meter.Name == MeterName && instrument.Name == CallDuration)
            {
                _instruments.Add(instrument);
                listener.EnableMeasurementEvents(instrument);
            }
        };
        _listener.SetMeasurementEventCallback<double>((_, seconds, tags, _) => Add(seconds, tags));
        _listener.Start();
    }

    /// <summary>Takes what has come since the last time, of all pools.</summary>
    public void Take() => _taken = _pools.ToDictionary(static pool => pool.Key, static pool => pool.Value.Take());

    /// <summary>What was taken last of the pools with this name.</summary>
    public (double? P50, double? P99) Taken(string pool) => _taken.GetValueOrDefault(pool);

    // On .NET 8 a listener that is disposed is still told.
    public void Dispose()
    {
        foreach (var instrument in _instruments)
        {
            _listener.DisableMeasurementEvents(instrument);
        }

        _listener.Dispose();
    }

    private void Add(double seconds, ReadOnlySpan<KeyValuePair<string, object?>> tags)
    {
        foreach (var (key, value) in tags)
        {
            if (key == PoolName && value is string pool)
            {
                _pools.GetOrAdd(pool, static _ => new LatencyWindow()).Add(1000 * seconds);
                return;
            }
        }
    }
}

using System.Diagnostics.Metrics;

namespace PoolingInvoker.AspNetCoreTests;

/// <summary>Percentiles of how long calls took.</summary>
public sealed class LatencyTests
{
    [Fact]
    public void WithoutCalls_ThereAreNone() => Assert.Equal((null, null), new LatencyWindow().Take());

    [Theory]
    [InlineData(0.02)]
    [InlineData(1)]
    [InlineData(250)]
    [InlineData(60_000)]
    public void OneCall_IsWithinFivePercent(double milliseconds)
    {
        var window = new LatencyWindow();
        window.Add(milliseconds);
        var (p50, p99) = window.Take();
        Assert.InRange(p50!.Value, milliseconds * 0.95, milliseconds * 1.05);
        Assert.Equal(p50, p99);
    }

    [Fact]
    public void AHundredCalls_HaveTheirMedian_AndTheirNinetyNinth()
    {
        var window = new LatencyWindow();
        for (var call = 1; call <= 100; call++)
        {
            window.Add(call);
        }

        var (p50, p99) = window.Take();
        Assert.InRange(p50!.Value, 47.5, 52.5);
        Assert.InRange(p99!.Value, 94, 104);
        Assert.Equal((null, null), window.Take());
    }

    [Theory]
    [InlineData(0)]
    [InlineData(-1)]
    [InlineData(1e12)]
    public void WhatIsOutOfRange_IsCountedAtItsEnd(double milliseconds)
    {
        var window = new LatencyWindow();
        window.Add(milliseconds);
        Assert.NotNull(window.Take().P50);
    }

    [Fact]
    public void TheMeterOfTheLibrary_IsHeard_PoolByPool()
    {
        var pool = Guid.NewGuid().ToString();
        using var meter = new Meter("PoolingInvoker");
        var duration = meter.CreateHistogram<double>("rpc.client.call.duration", "s");
        using var latencies = new Latencies();
        duration.Record(0.2, new KeyValuePair<string, object?>("pool.name", pool));
        duration.Record(0.5, new KeyValuePair<string, object?>("pool.name", "another"));
        duration.Record(0.7);
        latencies.Take();
        Assert.InRange(latencies.Taken(pool).P50!.Value, 190, 210);

        latencies.Dispose();
        duration.Record(0.2, new KeyValuePair<string, object?>("pool.name", pool));
        latencies.Take();
        Assert.Null(latencies.Taken(pool).P50);
    }
}

using System.Collections.Concurrent;

namespace PoolingInvoker;

/// <summary>One pool as the page shows it: its last minutes, and what is new since the last look. One thread looks at a time.</summary>
internal sealed class PoolPicture(NamedPool pool) : IDisposable
{
    private const int MostEvents = 200;
    private const int LongestError = 2_000; // some servers send pages
    private static readonly TimeSpan Kept = TimeSpan.FromMinutes(5);

    private readonly Queue<Point> _points = new();
    private readonly Queue<Happening> _events = new();
    private readonly ConcurrentQueue<ChannelPoolEvent> _told = new();
    private IDisposable? _listening;
    private ChannelPoolStatistics? _before;
    private long _beforeAt;
    private long _number;
    private PoolFrame _last = new(pool.Name, null, [], [], []);

    public ChannelPool? Pool => pool.Pool;

    /// <summary>All that is kept.</summary>
    public PoolFrame Whole => _last with { Points = [.. _points], Events = [.. _events] };

    /// <summary>Takes the numbers of this moment, with what has happened since the last one.</summary>
    public PoolFrame Look(long at, Latencies latencies)
    {
        if (pool.Pool is not { } seen)
        {
            return _last;
        }

        _listening ??= seen.Listen(_told.Enqueue);
        var now = seen.GetStatistics();
        var point = PointOf(now, at, latencies.Taken(seen.Name));
        _points.Enqueue(point);
        while (_points.Peek().At < at - (long)Kept.TotalMilliseconds)
        {
            _points.Dequeue();
        }

        (_before, _beforeAt) = (now, at);
        return _last = new PoolFrame(
            pool.Name,
            new PoolNow(
                now.Channels, now.MaxPoolSize, now.IdleChannels, now.DrainingChannels, now.CallsInFlight, now.CallsWaiting,
                now.ChannelsCreated, now.ChannelsReplaced, now.ChannelsGivenUp, now.Retries, now.LeaksReclaimed),
            [.. seen.GetChannels().Select(LaneOf)],
            [point],
            Happened(at));
    }

    /// <summary>Nobody looks for a while. What is kept stays; a rate is one since the next look.</summary>
    public void Rest()
    {
        _listening?.Dispose();
        (_listening, _before) = (null, null);
    }

    public void Dispose() => Rest();

    private Point PointOf(ChannelPoolStatistics now, long at, (double? P50, double? P99) latency)
    {
        var seconds = (at - _beforeAt) / 1000d;
        var (rate, retries) = _before is { } before && seconds > 0
            ? (Math.Max(0, now.LeasesTaken - before.LeasesTaken - (now.Retries - before.Retries)) / seconds, (now.Retries - before.Retries) / seconds)
            : ((double?)null, (double?)null);
        return new Point(at, Rounded(rate), Rounded(latency.P50), Rounded(latency.P99), now.CallsInFlight, now.CallsWaiting, Rounded(retries));
    }

    private List<Happening> Happened(long at)
    {
        var fresh = new List<Happening>();
        while (_told.TryDequeue(out var told))
        {
            fresh.Add(new Happening(++_number, at, told.Kind, told.ChannelId, told.Endpoint, Shortened(told.Message)!, Shortened(told.Exception?.Message)));
            _events.Enqueue(fresh[^1]);
            if (_events.Count > MostEvents)
            {
                _events.Dequeue();
            }
        }

        return fresh;
    }

    private static Lane LaneOf(PooledChannelSnapshot channel) => new(
        channel.Id,
        channel.State,
        channel.ConnectivityState?.ToString(),
        channel.Endpoint,
        channel.CallsInFlight,
        channel.Capacity == int.MaxValue ? null : channel.Capacity,
        (long)channel.Age.TotalMilliseconds,
        Shortened(channel.LastError?.Message));

    private static double? Rounded(double? number) => number is { } given ? Math.Round(given, 2) : null;

    private static string? Shortened(string? text) => text?.Length > LongestError ? string.Concat(text.AsSpan(0, LongestError), "…") : text;
}

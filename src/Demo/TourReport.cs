using PoolingInvoker.Demo.Servers;
using Spectre.Console;

namespace PoolingInvoker.Demo;

/// <summary>What the tour has shown.</summary>
internal static class TourReport
{
    /// <returns>The exit code: 0 if the pool lost no call.</returns>
    public static int Write(
        ServerFleet servers, CallLoad bare, (CallLoad Load, ChannelPoolStatistics Pool) pooled, (CallLoad Load, ChannelPoolStatistics Pool) keyed, string story)
    {
        var table = new Table().Border(TableBorder.Minimal).AddColumn(new TableColumn("").NoWrap());
        foreach (var column in (string[])["calls", "failed", "p50\n(ms)", "p99\n(ms)", "servers\nreached", "channels", "replaced"])
        {
            table.AddColumn(new TableColumn(column).RightAligned());
        }

        AddRow("bare channel", bare, "1", "–");
        AddRow("pool", pooled.Load, $"{pooled.Pool.Channels}", $"{pooled.Pool.ChannelsReplaced}");
        AddRow("pool, by key", keyed.Load, $"{keyed.Pool.Channels}", $"{keyed.Pool.ChannelsReplaced}");
        AnsiConsole.Write(table);
        Console.WriteLine(story);
        Console.WriteLine("By key: each caller has a key of its own, whose calls go to one server, and to another while that is down. On average they met so many.");
        foreach (var (load, _) in (IEnumerable<(CallLoad Load, ChannelPoolStatistics)>)[pooled, keyed])
        {
            if (load.Failed > 0)
            {
                Console.WriteLine($"The pool lost {load.Failed:N0} of {load.Calls:N0} idempotent calls. The first error: {load.FirstError?.Message}");
                return 1;
            }
        }

        Console.WriteLine($"The pools lost no call; they sent {pooled.Pool.Retries + keyed.Pool.Retries:N0} a second time.");
        return 0;

        void AddRow(string name, CallLoad load, string channels, string replaced) => table.AddRow(
            name,
            $"{load.Calls:N0}",
            $"{load.Failed:N0}",
            Milliseconds(load.Percentile(0.5)),
            Milliseconds(load.Percentile(0.99)),
            load == keyed.Load ? $"ø {load.ServersACaller:0.0}" : $"{load.ServersReached} of {servers.Names.Count}",
            channels,
            replaced);
    }

    private static string Milliseconds(TimeSpan? time) => time is null ? "–" : $"{time.Value.TotalMilliseconds:0.0}";
}

using PoolingInvoker.Demo.Servers;
using Spectre.Console;

namespace PoolingInvoker.Demo;

/// <summary>What the tour has shown.</summary>
internal static class TourReport
{
    /// <returns>The exit code: 0 if the pool lost no call.</returns>
    public static int Write(ServerFleet servers, CallLoad bare, CallLoad pooled, ChannelPoolStatistics pool, string story)
    {
        var table = new Table().Border(TableBorder.Minimal).AddColumn(new TableColumn("").NoWrap());
        foreach (var column in (string[])["calls", "failed", "p50\n(ms)", "p99\n(ms)", "servers\nreached", "channels", "replaced"])
        {
            table.AddColumn(new TableColumn(column).RightAligned());
        }

        AddRow("bare channel", bare, "1", "–");
        AddRow("pool", pooled, $"{pool.Channels}", $"{pool.ChannelsReplaced}");
        AnsiConsole.Write(table);
        Console.WriteLine(story);
        if (pooled.Failed > 0)
        {
            Console.WriteLine($"The pool lost {pooled.Failed:N0} of {pooled.Calls:N0} idempotent calls. The first error: {pooled.FirstError?.Message}");
            return 1;
        }

        Console.WriteLine($"The pool lost no call; it sent {pool.Retries:N0} a second time.");
        return 0;

        void AddRow(string name, CallLoad load, string channels, string replaced) => table.AddRow(
            name,
            $"{load.Calls:N0}",
            $"{load.Failed:N0}",
            Milliseconds(load.Percentile(0.5)),
            Milliseconds(load.Percentile(0.99)),
            $"{load.ServersReached} of {servers.Names.Count}",
            channels,
            replaced);
    }

    private static string Milliseconds(TimeSpan? time) => time is null ? "–" : $"{time.Value.TotalMilliseconds:0.0}";
}

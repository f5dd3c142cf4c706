using PoolingInvoker.Demo.Web;
using Spectre.Console;

namespace PoolingInvoker.Demo;

/// <summary>The pool as it is now: drawn anew each half second in a terminal, a line for each change elsewhere.</summary>
internal static class LivePicture
{
    private static readonly TimeSpan Interval = TimeSpan.FromSeconds(0.5);

    /// <summary>Draws until it is told to stop.</summary>
    public static async Task DrawAsync(ChannelPool pool, LastReplies replies, CancellationToken stop)
    {
        if (AnsiConsole.Profile is { Out.IsTerminal: true, Capabilities.Ansi: true })
        {
            await AnsiConsole.Live(Text.Empty).StartAsync(live => EachIntervalAsync(() => live.UpdateTarget(Picture(pool, replies)), stop));
        }
        else
        {
            var last = "";
            await EachIntervalAsync(() => last = WriteIfNew(Line(pool, replies), last), stop);
        }
    }

    private static async Task EachIntervalAsync(Action draw, CancellationToken stop)
    {
        using var timer = new PeriodicTimer(Interval);
        try
        {
            do
            {
                draw();
            }
            while (await timer.WaitForNextTickAsync(stop));
        }
        catch (OperationCanceledException)
        {
            // It has been told to stop.
        }
    }

    private static Panel Picture(ChannelPool pool, LastReplies replies)
    {
        var now = pool.GetStatistics();
        var channels = new BarChart()
            .AddItem("channels in use", now.Channels - now.IdleChannels, Color.Green)
            .AddItem("idle", now.IdleChannels, Color.Grey)
            .AddItem("draining", now.DrainingChannels, Color.Yellow);
        var calls = new BarChart()
            .AddItem("calls in flight", now.CallsInFlight, Color.Blue)
            .AddItem("waiting", now.CallsWaiting, Color.Red);
        return new Panel(new Rows(channels, calls, Text.Empty, new Text(Totals(now)), new Text(Servers(replies))))
        {
            Header = new PanelHeader("The pool"),
            Width = Math.Min(AnsiConsole.Profile.Width - 3, 100), // there is space for the ^C that the terminal writes behind it
        };
    }

    private static string Line(ChannelPool pool, LastReplies replies)
    {
        var now = pool.GetStatistics();
        return $"channels {now.Channels}, idle {now.IdleChannels}, draining {now.DrainingChannels}, calls in flight {now.CallsInFlight}, "
            + $"waiting {now.CallsWaiting}; {Totals(now)}; {Servers(replies)}";
    }

    private static string Totals(ChannelPoolStatistics now) =>
        $"created {now.ChannelsCreated}, replaced {now.ChannelsReplaced}, retries {now.Retries}, leaks reclaimed {now.LeaksReclaimed}";

    private static string Servers(LastReplies replies) =>
        replies.NewestFirst is { Count: > 0 } newest ? $"last replies: {string.Join(' ', newest.Select(static reply => reply.Server))}" : "no reply yet";

    private static string WriteIfNew(string line, string last)
    {
        if (line != last)
        {
            Console.WriteLine(line);
        }

        return line;
    }
}

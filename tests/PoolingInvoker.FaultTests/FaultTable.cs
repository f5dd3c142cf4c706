using System.Text;

namespace PoolingInvoker.FaultTests;

/// <summary>docs/faults.md.</summary>
internal static class FaultTable
{
    private const string Introduction = """
        # What a caller sees of faults

        `tests/PoolingInvoker.FaultTests` writes this file: a server that plays HTTP/2 faults (`faults.mjs`), each fault by each kind of call,
        over the pool and over a bare `GrpcChannel` with its default options. The test fails when what it finds is not what is here.

        ```
        dotnet test tests/PoolingInvoker.FaultTests
        ```

        A fault strikes the first attempt of a call, and only that, unless the row says "always". It strikes when the server has the whole
        request (GetName, Rename, ListNames), or where the column says. The connection is in use already, but where the row is one of connecting.
        Where a server is killed or hangs, there is another one behind the same balancer. Where it hangs, calls over the pool have a deadline
        of 8 s and those over a bare channel of 2 s; where it does not answer 1 s. Where it has not looked at the call those over a bare channel
        have a deadline of 5 s, which some of them wait for.

        `GetName`, `ListNames` and `Chat` are idempotent, `Rename` and `ImportNames` are not. The retry of the pool is the preset one, with
        a shorter pause.

        | in a cell | |
        |---|---|
        | OK | the caller got every response, once and in order |
        | Unavailable, Internal … | the status that the call ended with |
        | Unavailable or Internal | which of them depends on whether the channel still writes when the server closes, or reads already. Some take another connection then |
        | a write fails, then OK without it | the caller was told by its write that something was wrong, and completed its requests. The HTTP client below had sent the call again by itself, without its requests |
        | OK without requests, and no write failed | the same, and the caller was told nothing |
        | DeadlineExceeded, where the server had not looked at the call | the same, and no write failed: nobody has the request to which the caller awaits a response |
        | attempt 2 | how many attempts servers saw, if it was more than one. A connection that is refused is seen by none; where a connection is accepted by nobody it is how many were made. The HTTP client below sends what a server refuses again by itself, up to three times for each attempt of the pool. Of a stream of requests those can be the headers alone, which are not counted |
        | ran 1× | how often servers executed the call. They count it when they have the whole request, or the first message of a stream of requests, and do not when they refuse the stream |
        | 1 connection | how many connections were made, where there is no server behind them and no call can run. The pool makes no more than a bare channel until the pause is over after which it dials again (0.1 to 1 s), which does not pass here |
        | – | the fault cannot strike there |

        """;

    public static string Write(IEnumerable<(Fault Fault, IReadOnlyList<Cell?> Pool, IReadOnlyList<Cell?> Bare)> rows)
    {
        var text = new StringBuilder(Introduction).Append('\n');
        Section(text, "Over the pool", rows.Select(static row => (row.Fault, row.Pool)));
        text.Append('\n');
        Section(text, "Over a bare channel", rows.Select(static row => (row.Fault, row.Bare)));
        return text.ToString();
    }

    public static string FilePath()
    {
        var folder = new DirectoryInfo(AppContext.BaseDirectory);
        while (!File.Exists(Path.Combine(folder.FullName, "PoolingInvoker.sln")))
        {
            folder = folder.Parent ?? throw new InvalidOperationException($"There is no PoolingInvoker.sln above {AppContext.BaseDirectory}.");
        }

        return Path.Combine(folder.FullName, "docs", "faults.md");
    }

    private static void Section(StringBuilder text, string title, IEnumerable<(Fault Fault, IReadOnlyList<Cell?> Cells)> rows)
    {
        text.Append($"## {title}\n\n");
        Line(text, "the fault", Column.All.Select(static column => column.Title));
        Line(text, "---", Column.All.Select(static _ => "---"));
        foreach (var (fault, cells) in rows)
        {
            Line(text, fault.Title, cells.Select(static cell => cell?.ToString() ?? "–"));
        }
    }

    private static void Line(StringBuilder text, string first, IEnumerable<string> cells) => text.Append($"| {first} | {string.Join(" | ", cells)} |\n");
}

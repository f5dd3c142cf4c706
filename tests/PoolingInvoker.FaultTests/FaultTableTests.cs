using Grpc.Core;

namespace PoolingInvoker.FaultTests;

/// <summary>Each fault by each kind of call: what the caller sees, as docs/faults.md has it, and the laws that hold in each row.</summary>
[Collection(nameof(FaultServer))] // one after the other: they measure time
[Trait("Tier", "all")]
public sealed class FaultTableTests
{
    // What a bare channel makes of a call that has lost its requests, or whose server hangs, and where it is of two minds. A status that
    // says why is better.
    private static readonly IReadOnlyList<string> SaysLess =
        [FaultRow.WithoutRequests, FaultRow.WithoutRequestsAfterAFailure, FaultRow.UnavailableOrInternal, nameof(StatusCode.DeadlineExceeded)];

    [Fact]
    public async Task EachFaultShowsAsTheTableSays_AndBreaksNoLaw()
    {
        var journal = new Journal();
        await using var server = await FaultServer.StartAsync("server", journal);

        // What waits for time waits beside the others.
        var slow = Fault.All.Where(static fault => fault.IsSlow).ToDictionary(static fault => fault, fault => RunAsync(fault, journal, server));
        var rows = new List<(Fault Fault, IReadOnlyList<Cell?> Pool, IReadOnlyList<Cell?> Bare)>();
        try
        {
            foreach (var fault in Fault.All)
            {
                rows.Add(slow.ContainsKey(fault) ? (fault, [], []) : await RunAsync(fault, journal, server));
            }
        }
        finally
        {
            await Task.WhenAny(Task.WhenAll(slow.Values)); // they have processes to end
        }

        foreach (var (fault, row) in slow)
        {
            rows[rows.FindIndex(candidate => candidate.Fault == fault)] = await row;
        }

        var path = FaultTable.FilePath();
        var written = FaultTable.Write(rows);
        var before = File.Exists(path) ? await File.ReadAllTextAsync(path) : null;
        if (written != before)
        {
            await File.WriteAllTextAsync(path, written);
        }

        List<string> broken = [.. rows.SelectMany(static row => BrokenLaws(row.Fault, row.Pool.Zip(row.Bare)))];
        if (written != before)
        {
            broken.Add("docs/faults.md has been rewritten: look at the difference and commit it.");
        }

        Assert.True(broken.Count == 0, string.Join('\n', broken));
    }

    private static async Task<(Fault Fault, IReadOnlyList<Cell?> Pool, IReadOnlyList<Cell?> Bare)> RunAsync(Fault fault, Journal journal, FaultServer server)
    {
        var pool = FaultRow.RunAsync(fault, journal, server, overPool: true);
        var bare = FaultRow.RunAsync(fault, journal, server, overPool: false);
        return (fault, await pool, await bare);
    }

    private static IEnumerable<string> BrokenLaws(Fault fault, IEnumerable<(Cell? Pool, Cell? Bare)> cells)
    {
        foreach (var (column, (pool, bare)) in Column.All.Zip(cells))
        {
            if (pool is not null)
            {
                foreach (var law in BrokenLaws(fault, column, pool, bare!))
                {
                    yield return $"{fault.Title}: {column.Title}: {law}: {pool}; over a bare channel: {bare}";
                }
            }
        }
    }

    private static IEnumerable<string> BrokenLaws(Fault fault, Column column, Cell pool, Cell bare)
    {
        if (!column.IsIdempotent && pool.Executed > pool.Calls)
        {
            yield return "it is not idempotent, and ran twice";
        }

        if (column.Title == Column.IdempotentUnary && fault is { StrikesOnce: true, WhyGetNameFails: null } && pool.Outcome != "OK")
        {
            yield return "it is idempotent, and failed";
        }

        if (column.Point is Point.Request or Point.BeforeWrite && fault is { StrikesOnce: true, NeverLeft: true } && pool.Outcome != "OK")
        {
            yield return "it never left, and failed";
        }

        if (fault.IsFinal && pool.Attempts > 1)
        {
            yield return "it was not to be sent again";
        }

        if (pool.Outcome != "OK" && pool.Outcome != bare.Outcome && !SaysLess.Contains(bare.Outcome))
        {
            yield return "it is worse off";
        }

        if (pool.Connections > bare.Connections)
        {
            yield return "it took more connections";
        }
    }
}

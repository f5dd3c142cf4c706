namespace PoolingInvoker.FaultTests;

/// <summary>Each fault by each kind of call: what the caller sees, as docs/faults.md has it, and the laws that hold in each row.</summary>
[Collection(nameof(FaultServer))] // one after the other: they measure time
[Trait("Tier", "all")]
public sealed class FaultTableTests
{
    [Fact]
    public async Task EachFaultShowsAsTheTableSays_AndBreaksNoLaw()
    {
        var journal = new Journal();
        await using var server = await FaultServer.StartAsync("server", journal);

        // What waits for time waits beside the others.
        var slow = Fault.All.Where(static fault => fault.IsSlow).ToDictionary(static fault => fault, fault => FaultRow.RunBothAsync(fault, journal, server));
        var rows = new List<(Fault Fault, IReadOnlyList<Cell?> Pool, IReadOnlyList<Cell?> Bare)>();
        try
        {
            foreach (var fault in Fault.All)
            {
                rows.Add(slow.ContainsKey(fault) ? (fault, [], []) : await FaultRow.RunBothAsync(fault, journal, server));
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

        List<string> broken = [.. rows.SelectMany(static row => FaultLaws.Broken(row.Fault, row.Pool.Zip(row.Bare)))];
        if (written != before)
        {
            broken.Add("docs/faults.md has been rewritten: look at the difference and commit it.");
        }

        Assert.True(broken.Count == 0, string.Join('\n', broken));
    }
}

namespace PoolingInvoker.FaultTests;

/// <summary>The rows of the table in which there is no server, which need no node.</summary>
public sealed class NoServerTests
{
    public static TheoryData<string> Faults =>
        [.. Fault.All.Where(static fault => fault.Kind == FaultKind.NoServer).Select(static fault => fault.Title)];

    [Theory]
    [MemberData(nameof(Faults))]
    public async Task NobodyBehindAConnection_BreaksNoLaw(string title)
    {
        var (fault, pool, bare) = await FaultRow.RunBothAsync(Fault.All.Single(fault => fault.Title == title), new Journal(), server: null);
        Assert.Empty(FaultLaws.Broken(fault, pool.Zip(bare)));
        Assert.All(pool, static cell => Assert.NotEqual("OK", cell?.Outcome));
    }
}

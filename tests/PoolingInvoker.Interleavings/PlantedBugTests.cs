namespace PoolingInvoker.Interleavings;

/// <summary>
/// A checker that finds nothing proves nothing unless it would find something: each of the bugs in <c>Bugs/</c>, planted into the sources
/// of the pool one at a time, is found within the budget.
/// </summary>
[Trait("Tier", "all")]
public sealed class PlantedBugTests(ITestOutputHelper output)
{
    // These need two callers that meet between two steps, which no sequence of whole operations has, or a server that says something, or
    // endpoints. In one it takes more luck than these sequences have.
    private static readonly string[] OnlyBetweenSteps =
        ["ClosedTooEarly", "DrainedIsLeased", "JoinsAfterAll", "KeepsItsGrant", "LooksOnce", "MovedTwice", "OpenGate", "RefreshedTwice", "RetiredWhileUsed", "StaleLimit"];

    public static TheoryData<string> All => [.. Subject.PlantedBugs];

    public static TheoryData<string> InSequences => [.. Subject.PlantedBugs.Except(OnlyBetweenSteps)];

    [Fact]
    public void ThereAreBugs()
    {
        Assert.Equal(18, Subject.PlantedBugs.Count());
        Assert.Empty(OnlyBetweenSteps.Except(Subject.PlantedBugs));
    }

    [Theory]
    [MemberData(nameof(All))]
    public void ExplorationFinds(string bug)
    {
        var subject = new Subject(bug);
        var total = 0;
        foreach (var scenario in subject.ScenarioNames)
        {
            var (schedules, _, _, failure) = subject.Explore(scenario, systematic: 500, random: 0, firstSeed: 0);
            total += schedules;
            if (failure is not null)
            {
                output.WriteLine($"Found by schedule {schedules} of its scenario, {total} in all.\n{failure}");
                return;
            }
        }

        Assert.Fail($"{bug} was not found by {total} schedules.");
    }

    [Theory]
    [MemberData(nameof(InSequences))]
    public void TheModelFinds(string bug)
    {
        var (sequences, operations, failure) = new Subject(bug).CheckModel(sequences: 3000, patience: TimeSpan.FromSeconds(0.3), decides: TimeSpan.FromSeconds(10));
        output.WriteLine($"Found by sequence {sequences}, after {operations} operations.\n{failure}");
        Assert.NotNull(failure);
    }
}

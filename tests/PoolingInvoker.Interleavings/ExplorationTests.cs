using System.Diagnostics;

namespace PoolingInvoker.Interleavings;

/// <summary>The pool as it is, under every order of steps that the budget allows.</summary>
public sealed class ExplorationTests(ITestOutputHelper output)
{
    public static TheoryData<string> Scenarios => [.. Subject.Unchanged.ScenarioNames];

    [Theory]
    [MemberData(nameof(Scenarios))]
    public void TheLawsHold(string scenario)
    {
        var since = Stopwatch.GetTimestamp();
        var (schedules, steps, explored, failure) = Subject.Unchanged.Explore(scenario, Budget.Schedules, Budget.Random, Budget.FirstSeed);
        output.WriteLine($"{schedules} schedules, {steps} steps in {Stopwatch.GetElapsedTime(since).TotalSeconds:0.0} s: {explored}.");
        Assert.True(failure is null, failure);
    }

    [Fact]
    public void TheSameIsExploredEachTime()
    {
        var scenario = Subject.Unchanged.ScenarioNames[2];
        Assert.Equal(
            Subject.Unchanged.Explore(scenario, systematic: 1000, random: 200, firstSeed: 7),
            Subject.Unchanged.Explore(scenario, systematic: 1000, random: 200, firstSeed: 7));
    }
}

// Explores a scenario: first every schedule without a preemption, then with one, with two, up to four, until there are no more or the
// budget is spent; then schedules drawn by seeds, which preempt more often. The first law that is broken ends it, with the schedule.
namespace PoolingInvoker.Interleavings;

/// <summary>The door of this assembly: what comes in and goes out is of types that all assemblies share.</summary>
public static class Exploration
{
    private const int MaxPreemptions = 4;

    public static IReadOnlyList<string> ScenarioNames => [.. Scenarios.All.Select(static scenario => scenario.Name)];

    /// <summary>Explores one scenario.</summary>
    /// <returns>How many schedules and steps that were, which ones, and the law that was broken with its schedule, if one was.</returns>
    public static (int Schedules, long Steps, string Explored, string? Failure) Explore(
        string name, int systematic, int random, int firstSeed)
    {
        var scenario = Scenarios.All.Single(scenario => scenario.Name == name);
        var (schedules, steps, seen) = (0, 0L, "nothing");

        string? Fails(IStrategy strategy, string how)
        {
            var stage = new Stage();
            var actors = scenario.Play(stage);
            var run = Scheduler.Run(actors, strategy, stage.Watch);
            schedules++;
            steps += run.Steps;
            var failure = run.Failure;
            if (failure is null)
            {
                try
                {
                    stage.CheckTheEnd();
                }
                catch (LawBrokenException exception)
                {
                    failure = exception;
                }
            }

            return failure is null ? null
                : $"\"{name}\", schedule {schedules} ({how}):\n{run}\n{(failure is LawBrokenException ? failure.Message : failure)}";
        }

        for (var preemptions = 0; preemptions <= MaxPreemptions; preemptions++)
        {
            var strategy = new EverySchedule(preemptions);
            do
            {
                if (schedules == systematic)
                {
                    goto Random;
                }

                if (Fails(strategy, $"with at most {preemptions} preemptions") is { } failure)
                {
                    return (schedules, steps, seen, failure);
                }
            }
            while (strategy.MoveNext());

            if (!strategy.IsBounded)
            {
                return (schedules, steps, "all that there are", null);
            }

            seen = $"all with {preemptions} preemptions";
        }

    Random:
        for (var seed = firstSeed; seed < firstSeed + random; seed++)
        {
            if (Fails(new SeededSchedule(seed), $"seed {seed}") is { } failure)
            {
                return (schedules, steps, seen, failure);
            }
        }

        return (schedules, steps, $"{seen}, and those of the seeds {firstSeed} to {firstSeed + random - 1}", null);
    }
}

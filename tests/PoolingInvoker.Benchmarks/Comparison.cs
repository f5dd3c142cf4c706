using PoolingInvoker.Benchmarks.Scenarios;

namespace PoolingInvoker.Benchmarks;

/// <summary>The medians of a scenario: a row for each contender, in it the figures in their order.</summary>
internal sealed record Result(Scenario Scenario, double[][] Medians)
{
    public double First(int figure) => Medians[0][figure];

    public double Pool(int figure) => Medians[^1][figure];

    public double Ratio(int figure) => Pool(figure) / First(figure);
}

internal static class Comparison
{
    public static IEnumerable<Scenario> All() =>
    [
        new Bytes(),
        new SmallCalls(callers: 1, rateGoal: 0.97, cpuGoal: 1.03),
        new SmallCalls(callers: 64, rateGoal: 0.98, cpuGoal: null),
        new SmallCalls(callers: 512, rateGoal: 1.0, cpuGoal: null),
        new SlowCalls(),
        new ColdBurst(),
        new FirstAnswer(),
        new LeaseByHand(threads: 1, channels: 8),
        new LeaseByHand(threads: 1, channels: 1_000),
        new LeaseByHand(threads: 2, channels: 8),
        new IdleStreams(),
        new LargeMessages(),
        new BesideBulk(),
        new Balanced(),
        new OneKilled(),
        new TwoHung(),
        new FourStreams(),
    ];

    /// <summary>Runs the scenarios that are named, or all.</summary>
    /// <param name="keys">The keys of scenarios; none for all.</param>
    /// <param name="quick">Whether rounds are few and short.</param>
    public static async Task<IReadOnlyList<Result>> RunAsync(IReadOnlyCollection<string> keys, bool quick)
    {
        if (keys.Except(All().Select(static scenario => scenario.Key)).FirstOrDefault() is { } unknown)
        {
            throw new ArgumentException($"There is no scenario '{unknown}'. There are: {string.Join(", ", All().Select(static scenario => scenario.Key))}.");
        }

        var results = new List<Result>();
        foreach (var scenario in All().Where(scenario => keys.Count == 0 || keys.Contains(scenario.Key)))
        {
            await using (scenario)
            {
                Console.Error.WriteLine(scenario.Name);
                await scenario.StartAsync();
                results.Add(new Result(scenario, await MeasureAsync(scenario, quick)));
            }

            Console.Error.WriteLine(Report.Table(results[^1]));
        }

        return results;
    }

    private static async Task<double[][]> MeasureAsync(Scenario scenario, bool quick)
    {
        var rounds = scenario.Rounds(quick);
        var measured = scenario.Contenders.Select(static _ => new List<double[]>()).ToArray();
        for (var round = rounds == 1 ? 0 : -1; round < rounds; round++)
        {
            for (var i = 0; i < measured.Length; i++)
            {
                var figures = await scenario.MeasureAsync(scenario.Contenders[i], quick);
                if (round >= 0) // the first one is for the compiler
                {
                    measured[i].Add(figures);
                }
            }
        }

        return [.. measured.Select(of => Enumerable.Range(0, scenario.Figures.Count).Select(figure => of.Select(one => one[figure]).Order().ElementAt(of.Count / 2)).ToArray())];
    }
}

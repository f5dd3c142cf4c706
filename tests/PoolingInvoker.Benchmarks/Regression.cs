namespace PoolingInvoker.Benchmarks;

/// <summary>Whether the pool has become worse. Allocations are exact; the bounds of times are wide, as a machine may do other things beside.</summary>
internal static class Regression
{
    private static readonly (string Key, int Figure, double Worst)[] Bounds =
    [
        ("bytes", 0, 1.025),
        ("small-1", 1, 1.5),
        ("small-64", 0, 0.6),
        ("small-512", 0, 0.6),
        ("slow", 0, 0.7),
        ("cold", 0, 2.0),
        ("first", 0, 1.6),
        ("large", 0, 0.6),
        ("bulk", 0, 20),
    ];

    /// <returns>The exit code: 0 if all is within the bounds.</returns>
    public static async Task<int> RunAsync()
    {
        var results = await Comparison.RunAsync([.. Bounds.Select(static bound => bound.Key)], quick: true);
        var isWorse = false;
        foreach (var (key, figure, worst) in Bounds)
        {
            var result = results.Single(result => result.Scenario.Key == key);
            var isWithin = result.Scenario.Figures[figure].MoreIsBetter ? result.Ratio(figure) >= worst : result.Ratio(figure) <= worst;
            isWorse |= !isWithin;
            Console.WriteLine($"{(isWithin ? "ok   " : "WORSE")} {result.Scenario.Name}, {result.Scenario.Figures[figure].Name}: {result.Ratio(figure):0.###} × (bound {worst})");
        }

        return isWorse ? 1 : 0;
    }
}

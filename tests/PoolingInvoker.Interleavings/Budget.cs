namespace PoolingInvoker.Interleavings;

/// <summary>
/// How much is checked. What is here is for each change; more for a night comes by the environment:
/// <c>INTERLEAVINGS_SCHEDULES</c> (systematic ones, a scenario), <c>INTERLEAVINGS_SEED</c> and <c>INTERLEAVINGS_RANDOM</c> (the first seed,
/// and how many from there, a scenario), <c>INTERLEAVINGS_MODEL_SECONDS</c>, <c>INTERLEAVINGS_STRESS_SECONDS</c>.
/// </summary>
internal static class Budget
{
    public static int Schedules => FromEnvironment("SCHEDULES", 10_000);

    public static int Random => FromEnvironment("RANDOM", 1000);

    public static int FirstSeed => FromEnvironment("SEED", 1);

    public static int ModelSeconds => FromEnvironment("MODEL_SECONDS", 10);

    public static int StressSeconds => FromEnvironment("STRESS_SECONDS", 10);

    private static int FromEnvironment(string name, int otherwise) =>
        Environment.GetEnvironmentVariable($"INTERLEAVINGS_{name}") is { Length: > 0 } value ? int.Parse(value) : otherwise;
}

using System.Reflection;

namespace PoolingInvoker.Interleavings;

/// <summary>A build of the pool under the scheduler: unchanged, or with a bug planted.</summary>
internal sealed class Subject(string name)
{
    private readonly Assembly _assembly = Assembly.LoadFrom(Path.Combine(AppContext.BaseDirectory, $"PoolingInvoker.{name}.dll"));

    public static Subject Unchanged { get; } = new("Unchanged");

    public static IEnumerable<string> PlantedBugs => typeof(Subject).Assembly.GetManifestResourceNames()
        .Where(static name => name.EndsWith(".patch", StringComparison.Ordinal))
        .Select(static name => Path.GetFileNameWithoutExtension(name))
        .Order(StringComparer.Ordinal);

    public IReadOnlyList<string> ScenarioNames =>
        (IReadOnlyList<string>)Door("Exploration").GetProperty("ScenarioNames")!.GetValue(null)!;

    public (int Schedules, long Steps, string Explored, string? Failure) Explore(
        string scenario, int systematic, int random, int firstSeed) =>
        ((int, long, string, string?))Door("Exploration").GetMethod("Explore")!.Invoke(null, [scenario, systematic, random, firstSeed])!;

    public (long Sequences, long Operations, string? Failure) CheckModel(long sequences, TimeSpan patience, TimeSpan decides) =>
        ((long, long, string?))Door("ModelCheck").GetMethod("Check")!.Invoke(null, [-1, sequences, patience, decides])!;

    private Type Door(string name) => _assembly.GetType($"PoolingInvoker.Interleavings.{name}", throwOnError: true)!;
}

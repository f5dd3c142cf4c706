using System.Globalization;

namespace PoolingInvoker;

/// <summary>What differs between two lists of options, each of which is a name and a value, in words.</summary>
internal static class OptionChanges
{
    public static string Between(IReadOnlyList<(string Name, object? Value)> before, IReadOnlyList<(string Name, object? Value)> after)
    {
        var (old, now) = (before.ToDictionary(), after.ToDictionary());
        var changed = old.Keys.Union(now.Keys)
            .Select(name => (Name: name, Before: TextOf(old, name), After: TextOf(now, name)))
            .Where(static change => change.Before != change.After)
            .Select(static change => $"{change.Name} {change.Before} → {change.After}");
        return string.Join(", ", changed);
    }

    private static string TextOf(Dictionary<string, object?> options, string name) =>
        !options.TryGetValue(name, out var value) ? "(not set)"
        : value is null ? "null"
        : value is TimeSpan time && time == Timeout.InfiniteTimeSpan ? "Infinite"
        : string.Create(CultureInfo.InvariantCulture, $"{value}");
}

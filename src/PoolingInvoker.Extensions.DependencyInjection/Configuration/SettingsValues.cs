using System.Globalization;
using Microsoft.Extensions.Options;

namespace PoolingInvoker;

/// <summary>Reads values that are words, numbers and times, and keeps what is wrong with them.</summary>
internal sealed class SettingsValues(List<string> failures, string path = "")
{
    public const string Infinite = "Infinite";

    private const string Seconds = "a number of seconds, as in 30 or 0.5, or hh:mm:ss, as in 00:00:30";

    public SettingsValues In(string key) => new(failures, KeyOf(path, key));

    /// <summary>The key of what is below another.</summary>
    public static string KeyOf(string path, string key) => path.Length == 0 ? key : $"{path}:{key}";

    public void Fail(string key, string complaint) => failures.Add($"{KeyOf(path, key)} {complaint}");

    public void ThrowIfFailed(string? name = null)
    {
        if (failures.Count > 0)
        {
            throw new OptionsValidationException(name ?? Options.DefaultName, typeof(PoolingCallInvokerOptions), failures);
        }
    }

    public TimeSpan Time(string key, string? text, TimeSpan otherwise) => text is null ? otherwise : Parse(text) ?? Refuse(key, text, $"{Seconds}.", otherwise);

    public TimeSpan TimeOrInfinite(string key, string? text, TimeSpan otherwise) => text is null ? otherwise
        : Is(text, Infinite) ? Timeout.InfiniteTimeSpan
        : Parse(text) ?? Refuse(key, text, $"{Seconds}, or {Infinite}.", otherwise);

    /// <summary>A number of calls, or a word in its place.</summary>
    public int? CountOr(string word, string key, string? text, int? otherwise) => text is null ? otherwise
        : Is(text, word) ? null
        : int.TryParse(text, NumberStyles.Integer, CultureInfo.InvariantCulture, out var count) ? count
        : Refuse(key, text, $"a whole number, or {word}.", otherwise);

    public T OneOf<T>(string key, string? text, T otherwise)
        where T : struct, Enum => text is null ? otherwise
        : Enum.GetNames<T>().FirstOrDefault(name => Is(text, name)) is { } known ? Enum.Parse<T>(known)
        : Refuse(key, text, $"one of {string.Join(", ", Enum.GetNames<T>())}.", otherwise);

    private T Refuse<T>(string key, string text, string allowed, T otherwise)
    {
        Fail(key, $"is '{text}'. It must be {allowed}");
        return otherwise;
    }

    private static bool Is(string text, string word) => text.Equals(word, StringComparison.OrdinalIgnoreCase);

    // A TimeSpan takes "30" for days, and "00:30" for minutes.
    private static TimeSpan? Parse(string text) =>
        double.TryParse(text, NumberStyles.AllowDecimalPoint | NumberStyles.AllowLeadingSign, CultureInfo.InvariantCulture, out var seconds)
            ? Math.Abs(seconds) < TimeSpan.MaxValue.TotalSeconds ? TimeSpan.FromSeconds(seconds) : null
            : text.Count(static letter => letter == ':') == 2 && TimeSpan.TryParseExact(text, "c", CultureInfo.InvariantCulture, out var time) ? time
            : null;
}

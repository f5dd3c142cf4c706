using System.Globalization;
using System.Numerics;
using Microsoft.Extensions.Configuration;

namespace PoolingInvoker;

/// <summary>
/// Reads a section of a configuration by its keys, and keeps what is wrong with it: values that are of another kind, and keys that nobody has
/// asked for. The configuration binder cannot tell a null from what is missing, and cannot be used in native code without a generator in the app.
/// </summary>
internal sealed class SettingsSection
{
    private readonly IReadOnlyList<IConfigurationSection> _children; // in the order of their keys
    private readonly List<string> _known = [];
    private readonly List<string> _failures;
    private readonly string _path;

    public SettingsSection(IConfiguration section, List<string> failures)
    {
        _children = [.. section.GetChildren()];
        (_failures, _path) = (failures, PathOf(section));
    }

    public static string PathOf(IConfiguration section) => (section as IConfigurationSection)?.Path ?? string.Empty;

    /// <param name="key">The key.</param>
    /// <param name="forNull">What a null stands for. Without it a null is refused.</param>
    public string? Text(string key, string? forNull = null)
    {
        if (Find(key) is not { } child)
        {
            return null;
        }

        if (HasChildren(child))
        {
            Fail(child, "is a section. It must be a value.");
            return null;
        }

        if (!string.IsNullOrEmpty(child.Value))
        {
            return child.Value.Trim();
        }

        if (forNull is null)
        {
            Fail(child, "is empty. Give it a value, or leave it out.");
        }

        return forNull;
    }

    public T? Number<T>(string key)
        where T : struct, INumber<T>
    {
        if (Text(key) is not { } text)
        {
            return null;
        }

        var isWhole = T.CreateTruncating(0.5) == T.Zero;
        if (T.TryParse(text, isWhole ? NumberStyles.AllowLeadingSign : NumberStyles.Float, CultureInfo.InvariantCulture, out var number))
        {
            return number;
        }

        var range = isWhole && text.TrimStart('-').All(char.IsAsciiDigit) ? ", and not as large as that" : string.Empty;
        Fail(Find(key)!, $"is '{text}'. It must be a {(isWhole ? "whole " : string.Empty)}number{range}.");
        return null;
    }

    public bool? Flag(string key)
    {
        if (Text(key) is not { } text)
        {
            return null;
        }

        if (bool.TryParse(text, out var flag))
        {
            return flag;
        }

        Fail(Find(key)!, $"is '{text}'. It must be true or false.");
        return null;
    }

    /// <summary>Whether there is a null in the place of a section, or the word that says the same.</summary>
    public bool IsOff(string key) => Find(key) is { } child && !HasChildren(child) && (string.IsNullOrEmpty(child.Value) || child.Value.Equals("Off", StringComparison.OrdinalIgnoreCase));

    public SettingsSection? Section(string key)
    {
        if (Find(key) is not { } child)
        {
            return null;
        }

        if (!string.IsNullOrEmpty(child.Value))
        {
            Fail(child, $"is '{child.Value}'. It must be a section.");
            return null;
        }

        return new SettingsSection(child, _failures);
    }

    public IEnumerable<T> List<T>(string key, Func<SettingsSection, T> read) =>
        Section(key) is { } list ? [.. list._children.Select(child => read(new SettingsSection(child, _failures)))] : [];

    /// <summary>All keys that there may be have been asked for: others are refused.</summary>
    public T Whole<T>(T read)
    {
        foreach (var child in _children)
        {
            if (!_known.Contains(child.Key, StringComparer.OrdinalIgnoreCase))
            {
                Fail(child, $"is not known. {(_path.Length == 0 ? "The section" : _path)} may have {string.Join(", ", _known)}.");
            }
        }

        return read;
    }

    private IConfigurationSection? Find(string key)
    {
        if (!_known.Contains(key))
        {
            _known.Add(key);
        }

        return _children.FirstOrDefault(child => child.Key.Equals(key, StringComparison.OrdinalIgnoreCase));
    }

    private void Fail(IConfigurationSection child, string complaint) => _failures.Add($"{child.Path} {complaint}");

    private static bool HasChildren(IConfigurationSection child) => child.GetChildren().Any();
}

using Microsoft.Extensions.Configuration;
using Microsoft.Extensions.Options;
using Microsoft.Extensions.Primitives;

namespace PoolingInvoker;

/// <summary>A section of the configuration that a client's pool has its options from.</summary>
internal sealed class PoolSection(string client, IConfiguration section) : IOptionsChangeTokenSource<PoolingCallInvokerOptions>
{
    public string Name => client;
    public string Path { get; } = SettingsSection.PathOf(section);
    public bool Exists => section.GetChildren().Any();

    public IChangeToken GetChangeToken() => section.GetReloadToken();

    /// <summary>Whether it says something of the key, which is relative to it.</summary>
    public bool Has(string key) => section.GetSection(key).Exists();

    public void Configure(PoolingCallInvokerOptions options)
    {
        List<string> failures = [];
        var settings = PoolingCallInvokerSettings.Read(new SettingsSection(section, failures));
        SettingsValues values = new(failures, Path);
        settings.Apply(options, values);
        values.ThrowIfFailed(client);
    }
}

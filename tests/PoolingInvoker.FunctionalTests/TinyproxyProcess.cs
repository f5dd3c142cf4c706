using PoolingInvoker.Testing;

namespace PoolingInvoker.FunctionalTests;

/// <summary>A tinyproxy, which wants a name and a password.</summary>
public sealed class TinyproxyProcess : ProxyProcess
{
    private TinyproxyProcess(int port)
        : base("tinyproxy", port)
    {
    }

    /// <param name="name">The name.</param>
    /// <param name="password">The password.</param>
    /// <param name="onLine">Is told each line of its log.</param>
    public static Task<TinyproxyProcess> StartAsync(string name, string password, Action<string> onLine) =>
        StartAsync(static port => new TinyproxyProcess(port), proxy => proxy.TryStartAsync(name, password, onLine));

    private async Task<bool> TryStartAsync(string name, string password, Action<string> onLine)
    {
        var configuration = Path.Combine(Folder.FullName, "tinyproxy.conf");
        await File.WriteAllTextAsync(configuration, $"""
            Listen {Address.Host}
            Port {Address.Port}
            BasicAuth {name} {password}
            LogLevel Info

            """);
        var listens = new TaskCompletionSource(TaskCreationOptions.RunContinuationsAsynchronously);
        var reading = Start("tinyproxy-bin", ["-d", "-c", configuration], line =>
        {
            onLine(line);
            if (line.Contains("Accepting connections", StringComparison.Ordinal))
            {
                listens.TrySetResult();
            }
        });
        await Task.WhenAny(listens.Task, reading).Soon();
        return listens.Task.IsCompleted;
    }
}

using System.ComponentModel;
using System.Diagnostics;
using System.Globalization;
using System.Net;
using PoolingInvoker.Testing;

namespace PoolingInvoker.RotationTests;

/// <summary>
/// Hosts of their own: network namespaces, each with an address and a cable (a veth pair) to this one. Their names have the id of this
/// process in them. All are gone when this is disposed; what a run that was killed has left behind goes when the next one begins.
/// </summary>
internal sealed class NetworkNamespaces : IAsyncDisposable
{
    private const string NamePrefix = "pooling-";
    private const string CablePrefix = "pool"; // the name of an interface has 15 characters at the most
    private const string Inside = "eth0";
    private const int NetAdmin = 12;
    private const int SysAdmin = 21;

    private readonly List<(string Id, IPAddress Address)> _hosts = [];

    private NetworkNamespaces()
    {
    }

    /// <summary>The addresses of the hosts.</summary>
    public IReadOnlyList<IPAddress> Addresses => [.. _hosts.Select(static host => host.Address)];

    /// <summary>Why this user may not make any, or null if it may.</summary>
    public static string? WhyNot()
    {
        if (!OperatingSystem.IsLinux())
        {
            return "There are network namespaces on Linux alone.";
        }

        const string Line = "CapEff:";
        var effective = ulong.Parse(
            File.ReadLines("/proc/self/status").First(static line => line.StartsWith(Line, StringComparison.Ordinal)).AsSpan(Line.Length).Trim(),
            NumberStyles.HexNumber,
            CultureInfo.InvariantCulture);
        List<string> missing = [];
        if ((effective & (1UL << NetAdmin)) == 0)
        {
            missing.Add("CAP_NET_ADMIN");
        }

        if ((effective & (1UL << SysAdmin)) == 0)
        {
            missing.Add("CAP_SYS_ADMIN");
        }

        return missing.Count == 0 ? null : $"This process may not make network namespaces: it has no {string.Join(" and no ", missing)}. Run it as root, in a container with these capabilities.";
    }

    public static async Task<NetworkNamespaces> StartAsync(int count)
    {
        await RemoveLeftoversAsync();
        var namespaces = new NetworkNamespaces();
        try
        {
            var network = await FreeNetworkAsync();
            for (var i = 0; i < count; i++)
            {
                await namespaces.AddAsync(network, i);
            }

            return namespaces;
        }
        catch
        {
            await namespaces.DisposeAsync();
            throw;
        }
    }

    /// <summary>What has a program run on a host, which takes its place.</summary>
    public IReadOnlyList<string> On(int host) => ["ip", "netns", "exec", NamePrefix + _hosts[host].Id];

    /// <summary>Pulls the cable of a host: nothing comes or goes, and nobody is told.</summary>
    public Task CutAsync(int host) => RunAsync("-netns", NamePrefix + _hosts[host].Id, "link", "set", Inside, "down");

    public Task HealAsync(int host) => RunAsync("-netns", NamePrefix + _hosts[host].Id, "link", "set", Inside, "up");

    public async ValueTask DisposeAsync()
    {
        foreach (var (id, _) in _hosts)
        {
            await RemoveAsync(id);
        }

        _hosts.Clear();
    }

    // Two addresses for each: this end of the cable has the one, and the host has the other.
    private async Task AddAsync(string network, int index)
    {
        var id = $"{Environment.ProcessId}-{index + 1}";
        var (name, cable) = (NamePrefix + id, CablePrefix + id);
        var address = $"{network}.{(4 * index) + 2}";
        _hosts.Add((id, IPAddress.Parse(address)));
        await RunAsync("netns", "add", name);
        await RunAsync("link", "add", cable, "type", "veth", "peer", "name", Inside, "netns", name);
        await RunAsync("address", "add", $"{network}.{(4 * index) + 1}/30", "dev", cable);
        await RunAsync("link", "set", cable, "up");
        await RunAsync("-netns", name, "address", "add", $"{address}/30", "dev", Inside);
        await RunAsync("-netns", name, "link", "set", Inside, "up");
        await RunAsync("-netns", name, "link", "set", "lo", "up");
    }

    // A namespace stays as long as somebody is in it, and for a while the connections that they had: so the cable goes first.
    private static async Task RemoveAsync(string id)
    {
        if ((await CablesAsync()).Contains(CablePrefix + id))
        {
            await RunAsync("link", "delete", CablePrefix + id);
        }

        var name = NamePrefix + id;
        if (!(await NamesAsync()).Contains(name))
        {
            return;
        }

        foreach (var inside in Lines(await RunAsync("netns", "pids", name)))
        {
            try
            {
                using var process = Process.GetProcessById(int.Parse(inside, CultureInfo.InvariantCulture));
                process.Kill();
                await process.WaitForExitAsync().Soon();
            }
            catch (Exception exception) when (exception is ArgumentException or InvalidOperationException or Win32Exception)
            {
                // It has ended by itself.
            }
        }

        await RunAsync("netns", "delete", name);
    }

    private static async Task RemoveLeftoversAsync()
    {
        var names = (await NamesAsync()).Where(static name => name.StartsWith(NamePrefix, StringComparison.Ordinal)).Select(static name => name[NamePrefix.Length..]);
        var cables = (await CablesAsync()).Where(static name => name.StartsWith(CablePrefix, StringComparison.Ordinal)).Select(static name => name[CablePrefix.Length..]);
        foreach (var id in names.Union(cables).Where(IsLeftover).ToList())
        {
            await RemoveAsync(id);
        }
    }

    private static async Task<IReadOnlyList<string>> NamesAsync() => [.. Lines(await RunAsync("netns", "list")).Select(static line => line.Split(' ')[0])];

    // A line is "7: name@if2: <BROADCAST,…", and so on.
    private static async Task<IReadOnlyList<string>> CablesAsync() =>
        [.. Lines(await RunAsync("-oneline", "link", "show", "type", "veth")).Select(static line => line.Split(' ')[1].Split('@', ':')[0])];

    private static string[] Lines(string text) => text.Split('\n', StringSplitOptions.RemoveEmptyEntries);

    // Of a process that is not there any more, or that had the id that is this one's now.
    private static bool IsLeftover(string id) =>
        int.TryParse(id.Split('-')[0], NumberStyles.None, CultureInfo.InvariantCulture, out var owner)
        && (owner == Environment.ProcessId || !Directory.Exists($"/proc/{owner}"));

    private static async Task<string> FreeNetworkAsync()
    {
        var taken = await RunAsync("-4", "-oneline", "address", "show") + await RunAsync("-4", "route", "show");
        for (var i = 0; i < 256; i++)
        {
            var network = $"10.203.{(Environment.ProcessId + i) % 256}";
            if (!taken.Contains($"{network}.", StringComparison.Ordinal))
            {
                return network;
            }
        }

        throw new InvalidOperationException("All networks from 10.203.0.0/24 to 10.203.255.0/24 are in use here.");
    }

    private static async Task<string> RunAsync(params string[] arguments)
    {
        Process process;
        try
        {
            process = Process.Start(new ProcessStartInfo("ip", arguments) { RedirectStandardOutput = true, RedirectStandardError = true })!;
        }
        catch (Win32Exception exception)
        {
            throw new InvalidOperationException("There is no ip on the PATH. The package iproute2 has it, which ./test.sh installs on Debian.", exception);
        }

        using (process)
        {
            var writing = process.StandardOutput.ReadToEndAsync();
            var complaining = process.StandardError.ReadToEndAsync();
            await process.WaitForExitAsync().Soon();
            return process.ExitCode == 0
                ? await writing.Soon()
                : throw new InvalidOperationException(
                    $"'ip {string.Join(' ', arguments)}' failed: {(await complaining.Soon()).Trim()}. This process has the capabilities for it, so something else is in the way.");
        }
    }
}

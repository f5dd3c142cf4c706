using System.Diagnostics;
using System.Globalization;
using BenchmarkDotNet.Running;
using PoolingInvoker.Demo.Servers;

namespace PoolingInvoker.Benchmarks;

/// <summary>
/// <c>calls</c>, <c>bytes</c> and <c>bulk</c> compare calls through the pool with calls on bare channels, against one server; whatever else is
/// given goes to BenchmarkDotNet, as in <c>--filter *</c>.
/// </summary>
internal static class Program
{
    public static async Task Main(string[] args)
    {
        switch (args)
        {
            case ["calls", .. var rounds]:
                await WithServerAsync(server => CallComparison.RunAsync(server, rounds.Length > 0 ? int.Parse(rounds[0], CultureInfo.InvariantCulture) : 5));
                break;
            case ["bytes"]:
                await WithServerAsync(ByteComparison.RunAsync);
                break;
            case ["bulk"]:
                await WithServerAsync(BulkComparison.RunAsync);
                break;
            default:
                BenchmarkSwitcher.FromAssembly(typeof(Program).Assembly).Run(args);
                break;
        }
    }

    private static async Task WithServerAsync(Func<Uri, Task> run)
    {
        var journal = Path.GetTempFileName();
        using var server = Process.Start(new ProcessStartInfo("dotnet", [typeof(UserServer).Assembly.Location, "serve", "one", "0", journal]) { RedirectStandardOutput = true })!;
        try
        {
            await run(new Uri((await server.StandardOutput.ReadLineAsync())!));
        }
        finally
        {
            server.Kill();
            await server.WaitForExitAsync();
            File.Delete(journal);
        }
    }
}

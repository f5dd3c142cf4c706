using BenchmarkDotNet.Running;

namespace PoolingInvoker.Benchmarks;

/// <summary>
/// <c>calls</c> compares calls through the pool with calls on bare channels, side by side against one server; whatever else is given goes to
/// BenchmarkDotNet, as in <c>--filter *</c>.
/// </summary>
internal static class Program
{
    public static async Task Main(string[] args)
    {
        if (args is ["calls", ..])
        {
            await CallComparison.RunAsync(rounds: args.Length > 1 ? int.Parse(args[1], System.Globalization.CultureInfo.InvariantCulture) : 5);
        }
        else
        {
            BenchmarkSwitcher.FromAssembly(typeof(Program).Assembly).Run(args);
        }
    }
}

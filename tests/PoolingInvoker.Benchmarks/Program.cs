using BenchmarkDotNet.Running;

namespace PoolingInvoker.Benchmarks;

internal static class Program
{
    private const string Usage = """
        micro [OPTIONS OF BENCHMARKDOTNET]     leases and frames, in this process: time, bytes, contention
        compare [--quick] [--write] [KEY ...]  the pool beside what users have without it; --write puts it into docs/benchmarks.md
        regress                                whether the pool has become worse; the exit code is 1 if so
        """;

    public static async Task<int> Main(string[] args)
    {
        switch (args)
        {
            case ["micro", .. var options]:
                BenchmarkSwitcher.FromAssembly(typeof(Program).Assembly).Run(options.Length > 0 ? options : ["--filter", "*"]);
                return 0;
            case ["compare", .. var rest]:
                return await CompareAsync(rest);
            case ["regress"]:
                return await Regression.RunAsync();
            case ["child", var what, var contender, var address]:
                await Child.MainAsync(what, contender, new Uri(address));
                return 0;
            default:
                Console.Error.WriteLine(Usage);
                return 2;
        }
    }

    private static async Task<int> CompareAsync(string[] args)
    {
        var keys = args.Where(static arg => !arg.StartsWith("--", StringComparison.Ordinal)).ToArray();
        IReadOnlyList<Result> results;
        try
        {
            results = await Comparison.RunAsync(keys, quick: args.Contains("--quick"));
        }
        catch (ArgumentException exception)
        {
            Console.Error.WriteLine(exception.Message);
            return 2;
        }

        if (args.Contains("--write"))
        {
            Report.Write(results, $"dotnet run -c Release --project tests/PoolingInvoker.Benchmarks -- compare {string.Join(' ', args)}", "docs");
        }
        else
        {
            Console.WriteLine(string.Join(Environment.NewLine, results.Select(Report.Table)));
        }

        return 0;
    }
}

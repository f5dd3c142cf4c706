using System.Runtime.CompilerServices;

namespace PoolingInvoker.TelemetryTests;

internal static class Repository
{
    public static string Read(string file, [CallerFilePath] string here = "") =>
        File.ReadAllText(Path.Combine(Path.GetDirectoryName(here)!, "..", "..", file));
}

namespace PoolingInvoker.Testing;

/// <summary>What this process allocates. Nothing else is to run meanwhile.</summary>
internal static class AllocatedBytes
{
    public static async Task<double> OfEachAsync(int calls, Func<Task> call)
    {
        var before = GC.GetTotalAllocatedBytes(precise: true);
        for (var i = 0; i < calls; i++)
        {
            await call().ConfigureAwait(false);
        }

        return (GC.GetTotalAllocatedBytes(precise: true) - before) / (double)calls;
    }
}

using Grpc.Core;

namespace PoolingInvoker.FaultTests;

/// <summary>What holds in each row of the table.</summary>
internal static class FaultLaws
{
    // What a bare channel makes of a call that has lost its requests, or whose server hangs, and where it is of two minds. A status that
    // says why is better.
    private static readonly IReadOnlyList<string> SaysLess =
        [FaultRow.WithoutRequests, FaultRow.WithoutRequestsAfterAFailure, FaultRow.UnavailableOrInternal, nameof(StatusCode.DeadlineExceeded)];

    public static IEnumerable<string> Broken(Fault fault, IEnumerable<(Cell? Pool, Cell? Bare)> cells)
    {
        foreach (var (column, (pool, bare)) in Column.All.Zip(cells))
        {
            if (pool is not null)
            {
                foreach (var law in Broken(fault, column, pool, bare!))
                {
                    yield return $"{fault.Title}: {column.Title}: {law}: {pool}; over a bare channel: {bare}";
                }
            }
        }
    }

    private static IEnumerable<string> Broken(Fault fault, Column column, Cell pool, Cell bare)
    {
        if (!column.IsIdempotent && pool.Executed > pool.Calls)
        {
            yield return "it is not idempotent, and ran twice";
        }

        if (column.Title == Column.IdempotentUnary && fault is { StrikesOnce: true, WhyGetNameFails: null } && pool.Outcome != "OK")
        {
            yield return "it is idempotent, and failed";
        }

        if (column.Point is Point.Request or Point.BeforeWrite && fault is { StrikesOnce: true, NeverLeft: true } && pool.Outcome != "OK")
        {
            yield return "it never left, and failed";
        }

        if (fault.IsFinal && pool.Attempts > 1)
        {
            yield return "it was not to be sent again";
        }

        if (pool.Outcome != "OK" && pool.Outcome != bare.Outcome && !SaysLess.Contains(bare.Outcome))
        {
            yield return "it is worse off";
        }

        if (pool.Connections > bare.Connections)
        {
            yield return "it took more connections";
        }
    }
}

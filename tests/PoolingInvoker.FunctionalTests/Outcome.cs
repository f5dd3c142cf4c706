using Grpc.Core;
using PoolingInvoker.Testing;

namespace PoolingInvoker.FunctionalTests;

/// <summary>How a call ended, as its caller sees it.</summary>
/// <param name="Status">The status.</param>
/// <param name="Detail">The text of it.</param>
/// <param name="Cause">The types of the exceptions that the status carries, from the outermost to the innermost.</param>
internal sealed record Outcome(StatusCode Status, string Detail, string Cause)
{
    public static async Task<Outcome> OfAsync(Func<Task> call)
    {
        try
        {
            await call().Soon();
            return new Outcome(StatusCode.OK, "", "");
        }
        catch (RpcException exception)
        {
            return new Outcome(exception.StatusCode, exception.Status.Detail, string.Join(" <- ", Causes(exception)));
        }
    }

    private static IEnumerable<string> Causes(RpcException exception)
    {
        for (var cause = exception.Status.DebugException; cause is not null; cause = cause.InnerException)
        {
            yield return cause.GetType().Name;
        }
    }
}

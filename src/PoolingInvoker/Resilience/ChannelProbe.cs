using Grpc.Core;

namespace PoolingInvoker;

/// <summary>A small call of the user's that shows whether a server answers on a channel. That it answers counts, not what.</summary>
internal static class ChannelProbe
{
    /// <summary>Whether the call is answered before the token fires.</summary>
    public static async Task<bool> IsAnsweredAsync(Func<CallInvoker, CancellationToken, Task> probe, CallInvoker invoker, CancellationToken cancellationToken)
    {
        try
        {
            var answering = probe(invoker, cancellationToken);
            answering.Observe(); // it may go on for longer than it is waited for
            await answering.WaitAsync(cancellationToken).ConfigureAwait(false);
            return true;
        }
        catch (Exception exception) // Whatever it throws, it says whether a server has spoken.
        {
            return CallFaults.Judge(exception).Origin == FaultOrigin.Server;
        }
    }
}

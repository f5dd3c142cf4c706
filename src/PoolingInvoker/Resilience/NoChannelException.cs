using Grpc.Core;

namespace PoolingInvoker;

/// <summary>
/// How an attempt ends that got no channel, so that nothing was sent. It looks like any other failure to the predicates of a pipeline;
/// the caller gets a plain <see cref="RpcException"/> with the same status.
/// </summary>
internal sealed class NoChannelException(Status status) : RpcException(status)
{
    /// <summary>Gets whether another attempt could get one.</summary>
    public bool IsTransient => StatusCode == StatusCode.Unavailable;
}

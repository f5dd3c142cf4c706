namespace PoolingInvoker;

/// <summary>How an attempt ends that got no channel. The caller gets a plain <see cref="RpcException"/> with the same status.</summary>
internal sealed class NoChannelException(Status status) : RpcException(status)
{
    public bool IsTransient => StatusCode == StatusCode.Unavailable;
}

namespace PoolingInvoker;

internal enum PooledChannelState
{
    /// <summary>Takes calls.</summary>
    Active,

    /// <summary>Takes no new call: its replacement is being made. Becomes Draining, or Active again if none could be made.</summary>
    Replacing,

    /// <summary>Takes no new call, ever, and closes with its last one.</summary>
    Draining,

    /// <summary>Disposed, or about to be by the thread that closed it.</summary>
    Closed,
}

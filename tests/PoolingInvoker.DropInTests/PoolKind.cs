namespace PoolingInvoker.DropInTests;

/// <summary>How the pool is set up under the code that is tried on it.</summary>
public enum PoolKind
{
    /// <summary>As it comes.</summary>
    Default,

    /// <summary>Each call has a channel to itself.</summary>
    Exclusive,

    /// <summary>Each call goes through a Polly pipeline of the user's from its start.</summary>
    OwnPipeline,

    /// <summary>The first call waits for a channel: it has none when its headers are asked for, nor when it is first read or written.</summary>
    FullAtFirst,
}

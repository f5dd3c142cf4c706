namespace PoolingInvoker;

/// <summary>Whose doing it was that an attempt failed.</summary>
internal enum FaultOrigin
{
    /// <summary>The caller's: it ended the call, let its deadline pass, or its callbacks threw. No other attempt would end otherwise.</summary>
    Caller,

    /// <summary>The server's, or that of a proxy before it, over a connection that works: it answered, or reset the stream.</summary>
    Server,

    /// <summary>The channel's: there was no connection, or it broke.</summary>
    Channel,
}

/// <summary>How far a request got.</summary>
internal enum RequestFate
{
    /// <summary>It provably reached no method of a server: sending it again cannot run it twice.</summary>
    NeverLeft,

    /// <summary>It was sent: whether it was processed is not known.</summary>
    MayHaveBeenProcessed,
}

/// <summary>What an outcome says: whose doing it was, how far the request got, and whether another attempt could end otherwise.</summary>
internal readonly record struct CallFault(FaultOrigin Origin, RequestFate Fate, bool IsTransient);

namespace PoolingInvoker;

/// <summary>Whose doing it was that an attempt failed.</summary>
internal enum FaultOrigin
{
    Caller, // it ended the call, let its deadline pass, or its callbacks threw: no other attempt would end otherwise
    Server, // or a proxy before it, over a connection that works: it answered, or reset the stream
    Channel, // there was no connection, or it broke
}

/// <summary>What an outcome says.</summary>
/// <param name="Origin">Whose doing it was.</param>
/// <param name="NeverLeft">Whether the request provably reached no method of a server: sending it again cannot run it twice.</param>
/// <param name="IsTransient">Whether another attempt could end otherwise: the transport failed, or the server is not available.</param>
internal readonly record struct CallFault(FaultOrigin Origin, bool NeverLeft, bool IsTransient);

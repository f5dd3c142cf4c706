namespace PoolingInvoker;

/// <summary>A gRPC client that has a pool, by its name in the client factory.</summary>
internal sealed record PooledClient(string Name);

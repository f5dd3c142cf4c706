namespace PoolingInvoker;

/// <summary>Is told what the endpoints of a pool are. Does not throw.</summary>
internal interface IEndpointListener
{
    /// <summary>The endpoints are these from now on: distinct ones, at least one, and not the last ones.</summary>
    void EndpointsChanged(IReadOnlyList<ChannelEndpoint> endpoints);

    /// <summary>The endpoints could not be resolved, or what they were resolved from cannot be watched.</summary>
    void ResolutionFailed(Exception error);
}

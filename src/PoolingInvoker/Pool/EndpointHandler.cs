namespace PoolingInvoker;

/// <summary>
/// Sends the requests of a channel that does not speak HTTP/2 to one endpoint of its name. To the server, and for TLS, they are to the name; a
/// proxy is asked for the endpoint, as it is for connections of HTTP/2.
/// </summary>
internal sealed class EndpointHandler(HttpMessageHandler inner, Uri name, Uri endpoint) : DelegatingHandler(inner)
{
    protected override Task<HttpResponseMessage> SendAsync(HttpRequestMessage request, CancellationToken cancellationToken)
    {
        if (request.RequestUri is { } uri && uri.Authority == name.Authority)
        {
            request.Headers.Host ??= name.Authority;
            request.RequestUri = new UriBuilder(uri) { Host = endpoint.Host, Port = endpoint.Port }.Uri;
        }

        return base.SendAsync(request, cancellationToken);
    }
}

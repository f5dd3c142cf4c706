namespace PoolingInvoker;

/// <summary>
/// Sends the requests of a channel to one endpoint of its name. With a host they are to that, for the server and for TLS: a channel that does
/// not speak HTTP/2 keeps its name so, and a proxy is asked for the endpoint, as it is for connections of HTTP/2.
/// </summary>
internal sealed class EndpointHandler(HttpMessageHandler inner, Uri name, Uri endpoint, string? host) : DelegatingHandler(inner)
{
    protected override Task<HttpResponseMessage> SendAsync(HttpRequestMessage request, CancellationToken cancellationToken)
    {
        if (request.RequestUri is { } uri && uri.Authority == name.Authority)
        {
            request.Headers.Host ??= host;
            request.RequestUri = new UriBuilder(uri) { Scheme = endpoint.Scheme, Host = endpoint.Host, Port = endpoint.Port }.Uri;
        }

        return base.SendAsync(request, cancellationToken);
    }
}

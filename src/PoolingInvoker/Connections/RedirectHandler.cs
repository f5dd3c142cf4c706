using System.Net;

namespace PoolingInvoker;

/// <summary>
/// Follows redirects as <see cref="SocketsHttpHandler"/> does (RFC 9110, section 15.4), and below the handlers of the user's as it does: they
/// see the request and its last response, and what they add for one server is not sent to another. A stream of requests is not sent again: it
/// gets the redirect for its answer.
/// </summary>
internal class RedirectHandler(HttpMessageHandler inner, int redirections) : DelegatingHandler(inner)
{
    protected static readonly AsyncLocal<bool> IsStream = new();

    /// <summary>Takes the redirects from a handler, which follows them for all requests or for none, and says how many it would follow.</summary>
    public static int TakeFrom(SocketsHttpHandler handler)
    {
        var redirections = handler.AllowAutoRedirect ? handler.MaxAutomaticRedirections : 0;
        handler.AllowAutoRedirect = false;
        return redirections;
    }

    protected override async Task<HttpResponseMessage> SendAsync(HttpRequestMessage request, CancellationToken cancellationToken)
    {
        try
        {
            var response = await SendOnAsync(request, cancellationToken).ConfigureAwait(false);
            return IsStream.Value ? response : await FollowAsync(request, response, cancellationToken).ConfigureAwait(false);
        }
        catch (Exception exception) when (TransportExceptions.Note(exception))
        {
            throw;
        }
    }

    protected Task<HttpResponseMessage> SendOnAsync(HttpRequestMessage request, CancellationToken cancellationToken) => base.SendAsync(request, cancellationToken);

    protected async Task<HttpResponseMessage> FollowAsync(HttpRequestMessage request, HttpResponseMessage response, CancellationToken cancellationToken)
    {
        for (var left = redirections; left > 0 && Redirection(request.RequestUri!, response) is { } location; left--)
        {
            if (response.StatusCode is not (HttpStatusCode.TemporaryRedirect or HttpStatusCode.PermanentRedirect))
            {
                (request.Method, request.Content) = (HttpMethod.Get, null);
            }

            response.Dispose();
            (request.RequestUri, request.Headers.Authorization) = (location, null);
            response = await SendOnAsync(request, cancellationToken).ConfigureAwait(false);
        }

        return response;
    }

    private static Uri? Redirection(Uri from, HttpResponseMessage response) =>
        (int)response.StatusCode is (>= 300 and <= 303) or 307 or 308 && response.Headers.Location is { } location
        && new Uri(from, location) is var to
        && (to.Scheme == Uri.UriSchemeHttps || (to.Scheme == Uri.UriSchemeHttp && from.Scheme == Uri.UriSchemeHttp)) ? to : null;
}

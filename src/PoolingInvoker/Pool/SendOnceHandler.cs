using System.Net;

namespace PoolingInvoker;

/// <summary>
/// A handler sends a request again by itself when the server has refused its stream, at a redirect, and at a 401 for which it has credentials.
/// The content of a stream of requests cannot be sent twice: it would come to the server without what was written before, and the call could
/// end in good order. So a stream of requests gets the redirect or the 401 for its answer, and where it was refused it fails as what it is,
/// and whoever has kept the requests sends them again. All other requests are sent again as by the handler.
/// </summary>
internal sealed class SendOnceHandler : DelegatingHandler
{
    private static readonly AsyncLocal<bool> IsStream = new();

    private readonly int _redirections;
    private readonly bool _hasCredentials;
    private readonly RefusalDelivery _refusals;

    /// <param name="inner">The outermost handler of the channel.</param>
    /// <param name="transport">The innermost one, before its first request.</param>
    /// <param name="refusals">Hands out the responses that end a call.</param>
    public SendOnceHandler(HttpMessageHandler inner, SocketsHttpHandler transport, RefusalDelivery refusals)
        : base(inner)
    {
        _refusals = refusals;

        // The handler follows redirects for all requests or for none.
        _redirections = transport.AllowAutoRedirect ? transport.MaxAutomaticRedirections : 0;
        transport.AllowAutoRedirect = false;
        if (transport.Credentials is { } credentials)
        {
            _hasCredentials = true;
            transport.Credentials = new CredentialsOfOthers(credentials);
        }
    }

    protected override async Task<HttpResponseMessage> SendAsync(HttpRequestMessage request, CancellationToken cancellationToken)
    {
        // Grpc.Net.Client has a type of its own for the content of streams.
        var follows = true;
        if (request.Content is { } content && content.GetType().Name.StartsWith("PushStreamContent", StringComparison.Ordinal))
        {
            follows = false;
            request.Content = new SendOnceContent(content);
            if (_hasCredentials)
            {
                IsStream.Value = true;
            }
        }

        var response = await base.SendAsync(request, cancellationToken).ConfigureAwait(false);
        return EndsCall(response)
            ? await EndAsync(request, response, follows ? _redirections : 0, cancellationToken).ConfigureAwait(false)
            : response;
    }

    private static bool EndsCall(HttpResponseMessage response) =>
        response.StatusCode != HttpStatusCode.OK || response.Headers.NonValidated.Contains("grpc-status");

    // Follows redirects as SocketsHttpHandler does (RFC 9110, section 15.4), and hands out what ends the call.
    private async Task<HttpResponseMessage> EndAsync(HttpRequestMessage request, HttpResponseMessage response, int redirections, CancellationToken cancellationToken)
    {
        for (; redirections > 0 && Redirection(request.RequestUri!, response) is { } location; redirections--)
        {
            if (response.StatusCode is not (HttpStatusCode.TemporaryRedirect or HttpStatusCode.PermanentRedirect))
            {
                (request.Method, request.Content) = (HttpMethod.Get, null);
            }

            response.Dispose();
            (request.RequestUri, request.Headers.Authorization) = (location, null);
            response = await base.SendAsync(request, cancellationToken).ConfigureAwait(false);
        }

        if (EndsCall(response))
        {
            await _refusals;
        }

        return response;
    }

    private static Uri? Redirection(Uri from, HttpResponseMessage response)
    {
        if ((int)response.StatusCode is not ((>= 300 and <= 303) or 307 or 308) || response.Headers.Location is not { } location)
        {
            return null;
        }

        var to = new Uri(from, location);
        return to.Scheme == Uri.UriSchemeHttps || (to.Scheme == Uri.UriSchemeHttp && from.Scheme == Uri.UriSchemeHttp) ? to : null;
    }

    // With none the handler gives the 401 for an answer.
    private sealed class CredentialsOfOthers(ICredentials inner) : ICredentials
    {
        public NetworkCredential? GetCredential(Uri uri, string authType) => IsStream.Value ? null : inner.GetCredential(uri, authType);
    }

    private sealed class SendOnceContent : HttpContent
    {
        private const long RefusedStream = 7; // RFC 9113, section 7

        private readonly HttpContent _inner;
        private bool _isSent;

        public SendOnceContent(HttpContent inner)
        {
            _inner = inner;
            foreach (var (name, values) in inner.Headers.NonValidated)
            {
                Headers.TryAddWithoutValidation(name, values);
            }
        }

        protected override Task SerializeToStreamAsync(Stream stream, TransportContext? context) => SerializeToStreamAsync(stream, context, CancellationToken.None);

        protected override Task SerializeToStreamAsync(Stream stream, TransportContext? context, CancellationToken cancellationToken)
        {
            if (_isSent)
            {
                const string Message = "The server refused the stream, and its requests cannot be sent again below the pool.";
                throw new HttpRequestException(HttpRequestError.HttpProtocolError, Message, new HttpProtocolException(RefusedStream, Message, innerException: null));
            }

            _isSent = true;
            return _inner.CopyToAsync(stream, context, cancellationToken);
        }

        protected override bool TryComputeLength(out long length)
        {
            length = -1;
            return false;
        }

        protected override void Dispose(bool disposing)
        {
            if (disposing)
            {
                _inner.Dispose();
            }

            base.Dispose(disposing);
        }
    }
}

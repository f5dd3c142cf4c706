using System.Net;
using System.Runtime.CompilerServices;

namespace PoolingInvoker;

/// <summary>
/// A handler sends a request again by itself when the server has refused its stream, at a redirect, and at a 401 for which it has credentials.
/// The content of a stream of requests cannot be sent twice: it would come to the server without what was written before, and the call could
/// end in good order. So a stream of requests gets the redirect or the 401 for its answer, and where it was refused it fails as what it is,
/// and whoever has kept the requests sends them again. All other requests are sent again as by the handler.
/// </summary>
internal sealed class SendOnceHandler : RedirectHandler
{
    [ThreadStatic]
    private static string? _begins; // the method of the call that begins on this thread

    [ThreadStatic]
    private static Task<HttpResponseMessage>? _response;

    private readonly bool _isInnermost; // of the library's handlers: those of the user's are not below it
    private readonly bool _tells; // those below it which requests are a stream
    private readonly RefusalDelivery _refusals;

    // From the outermost handler of the channel to the innermost. Where the number of redirections is null another handler follows them.
    public SendOnceHandler(HttpMessageHandler inner, SocketsHttpHandler transport, int? redirections, RefusalDelivery refusals)
        : base(inner, redirections ?? 0)
    {
        _refusals = refusals;
        _isInnermost = redirections is not null;
        _tells = !_isInnermost || transport.Credentials is not null;
        transport.Credentials = transport.Credentials is { } credentials ? new CredentialsOfOthers(credentials) : null;
    }

    /// <summary>
    /// What the call gets that began on this thread with <see cref="Begin"/>: from it shows when the headers come, which to ask the call for would
    /// keep with it. Null where the request has yet to be sent, as behind call credentials.
    /// </summary>
    public static Task<HttpResponseMessage>? Response => _response;

    /// <summary>A call of this method begins on this thread; or, with null, has begun.</summary>
    public static void Begin(string? method) => (_begins, _response) = (method, null);

    /// <summary>Whether there are headers, and not those of a refusal.</summary>
    public static bool IsAnswer(Task<HttpResponseMessage> response) => response.IsCompletedSuccessfully && !EndsCall(response.Result);

    protected override Task<HttpResponseMessage> SendAsync(HttpRequestMessage request, CancellationToken cancellationToken)
    {
        var response = SendOnceAsync(request, cancellationToken);
        if (_begins is { } method && request.RequestUri?.AbsolutePath == method) // and not one for a token, say, which comes before
        {
            _response = response;
        }

        return response;
    }

    private async Task<HttpResponseMessage> SendOnceAsync(HttpRequestMessage request, CancellationToken cancellationToken)
    {
        ChannelSpans.LeaveOutUnheard();

        if (HasStream(request))
        {
            request.Content = new SendOnceContent(request.Content!);
            if (_tells)
            {
                IsStream.Value = true;
            }
        }

        try
        {
            var response = await SendOnAsync(request, cancellationToken).ConfigureAwait(false);
            (request.Content as SendOnceContent)?.LeaveTo(request);
            return EndsCall(response) ? await EndAsync(request, response, cancellationToken).ConfigureAwait(false) : response;
        }
        catch (Exception exception) when (_isInnermost && TransportExceptions.Note(exception))
        {
            throw;
        }
    }

    // Grpc.Net.Client has a type of its own for the content of streams.
    private static bool HasStream(HttpRequestMessage request) =>
        request.Content is { } content && content.GetType().Name.StartsWith("PushStreamContent", StringComparison.Ordinal);

    private static bool EndsCall(HttpResponseMessage response) =>
        response.StatusCode != HttpStatusCode.OK || response.Headers.NonValidated.Contains("grpc-status");

    private async Task<HttpResponseMessage> EndAsync(HttpRequestMessage request, HttpResponseMessage response, CancellationToken token)
    {
        var last = HasStream(request) ? response : await FollowAsync(request, response, token).ConfigureAwait(false);
        if (EndsCall(last))
        {
            await _refusals;
        }

        return last;
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

        /// <summary>No handler sends the request again that has its response. A stream may last long, and the inner content says as much.</summary>
        public void LeaveTo(HttpRequestMessage request)
        {
            try
            {
                request.Content = _inner;
            }
            catch (ObjectDisposedException)
            {
                // The call has ended.
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
            return SendOf(_inner, stream, context, cancellationToken);
        }

        // As the handler sends a content. CopyToAsync has a task of its own, which would last as long as the requests do, and wraps what is thrown.
        [UnsafeAccessor(UnsafeAccessorKind.Method, Name = nameof(SerializeToStreamAsync))]
        private static extern Task SendOf(HttpContent content, Stream stream, TransportContext? context, CancellationToken cancellationToken);

        protected override bool TryComputeLength(out long length)
        {
            length = -1;
            return false;
        }

        protected override void Dispose(bool disposing)
        {
            _inner.Dispose();
            base.Dispose(disposing);
        }
    }
}

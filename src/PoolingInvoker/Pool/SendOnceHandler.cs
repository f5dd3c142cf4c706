using System.Net;

namespace PoolingInvoker;

/// <summary>
/// Below a channel the handler sends a request again by itself when the server has refused its stream. The content of a stream of requests
/// cannot be sent twice: it would come to the server without what was written before, and the call could end in good order. So a second
/// time it fails, as what it is, and whoever has kept the requests sends them again.
/// </summary>
internal sealed class SendOnceHandler(HttpMessageHandler inner) : DelegatingHandler(inner)
{
    protected override Task<HttpResponseMessage> SendAsync(HttpRequestMessage request, CancellationToken cancellationToken)
    {
        // Grpc.Net.Client has a type of its own for the content of streams.
        if (request.Content is { } content && content.GetType().Name.StartsWith("PushStreamContent", StringComparison.Ordinal))
        {
            request.Content = new SendOnceContent(content);
        }

        return base.SendAsync(request, cancellationToken);
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

using System.Buffers.Binary;
using System.Collections.Concurrent;
using System.IO.Pipelines;
using System.Net;
using Google.Protobuf;
using Grpc.Core;
using Grpc.Net.Client;
using Microsoft.Extensions.ObjectPool;
using PoolingInvoker.Protos;

namespace PoolingInvoker.Tests;

/// <summary>
/// What answers below the channels of a test: one HTTP exchange after another, as the test scripts them. It is also the policy that
/// makes the channels, each over a handler of its own, which cannot tell its state. Like a real handler it wants no context of a caller.
/// </summary>
internal sealed class ScriptedServer : IPooledObjectPolicy<GrpcChannel>
{
    private readonly ConcurrentQueue<Exchange> _script = new();
    private readonly ConcurrentQueue<(int Channel, HttpRequestMessage Request)> _requests = new();
    private readonly ConcurrentQueue<SentRequest> _sent = new();
    private int _channels;

    /// <summary>The exchanges so far, each with the number of its channel.</summary>
    public IReadOnlyList<(int Channel, HttpRequestMessage Request)> Requests => [.. _requests];

    /// <summary>What has been sent of each of <see cref="Requests"/>.</summary>
    public IReadOnlyList<SentRequest> Sent => [.. _sent];

    public Action<GrpcChannelOptions>? ConfigureChannel { get; set; }

    public ScriptedServer Then(Func<CancellationToken, Task<HttpResponseMessage>> answer) => Then((_, token) => answer(token), Task.CompletedTask);

    /// <summary>What has not been asked for is not to come.</summary>
    public void Forget() => _script.Clear();

    public ScriptedServer ThenReply(params IMessage[] messages) => Then(_ => Task.FromResult(Reply(messages)));

    /// <summary>Nothing before <paramref name="until"/>, and then these messages.</summary>
    public ScriptedServer ThenReplyAfter(Task until, params IMessage[] messages) => Then(async token =>
    {
        await until.WaitAsync(token).ConfigureAwait(false);
        return Reply(messages);
    });

    /// <summary>These messages, when all requests are here.</summary>
    public ScriptedServer ThenReplyAfterRequests(params IMessage[] messages) => Then(
        async (sending, _) =>
        {
            await sending.ConfigureAwait(false);
            return Reply(messages);
        },
        Task.CompletedTask);

    /// <summary>A message, and another one after a pause, during which no requests are taken, so that a write waits, or as many as come.</summary>
    public ScriptedServer ThenPause(IMessage before, Task pause, IMessage after, bool takesRequests = false) => Then(
        (_, _) =>
        {
            var body = new Pipe();
            _ = WriteAsync(body.Writer);
            return Task.FromResult(Reply(new StreamContent(body.Reader.AsStream())));

            async Task WriteAsync(PipeWriter writer)
            {
                await writer.WriteAsync(Frames([before]), CancellationToken.None).ConfigureAwait(false);
                await pause.ConfigureAwait(false);
                await writer.WriteAsync(Frames([after]), CancellationToken.None).ConfigureAwait(false);
                await writer.CompleteAsync().ConfigureAwait(false);
            }
        },
        takesRequests ? Task.CompletedTask : pause);

    public ScriptedServer ThenName(string name) => ThenReply(new GetNameReply { Name = name });

    public ScriptedServer ThenStatus(StatusCode status, params (string Name, string Value)[] trailers) => Then(_ => Task.FromResult(TrailersOnly(status, trailers)));

    /// <summary>Headers, and then a status.</summary>
    public ScriptedServer ThenStatusInTrailers(StatusCode status) => Then(_ =>
    {
        var response = Reply([]);
        response.TrailingHeaders.Clear();
        response.TrailingHeaders.Add("grpc-status", $"{(int)status}");
        return Task.FromResult(response);
    });

    /// <summary>A status after <paramref name="until"/>.</summary>
    public ScriptedServer ThenStatusAfter(Task until, StatusCode status, params (string Name, string Value)[] trailers) => Then(async token =>
    {
        await until.WaitAsync(token).ConfigureAwait(false);
        return TrailersOnly(status, trailers);
    });

    /// <summary>A name, and a header beside it.</summary>
    public ScriptedServer ThenNameWithHeader(string name, string header, string value) => Then(_ =>
    {
        var response = Reply([new GetNameReply { Name = name }]);
        response.Headers.Add(header, value);
        return Task.FromResult(response);
    });

    public ScriptedServer ThenThrow(Exception exception) => Then(_ => Task.FromException<HttpResponseMessage>(exception));

    /// <summary>The connection could not be made.</summary>
    public ScriptedServer ThenRefuse() =>
        ThenThrow(new HttpRequestException(HttpRequestError.ConnectionError, "refused", new System.Net.Sockets.SocketException(111)));

    /// <summary>The connection broke when the request was on its way.</summary>
    public ScriptedServer ThenBreak() => ThenThrow(Broken());

    /// <summary>Requests are taken, and <paramref name="when"/> it is said the connection breaks, or the exchange fails in another way.</summary>
    /// <param name="when">The moment.</param>
    /// <param name="failure">How it fails.</param>
    /// <param name="taken">When each write is taken; null for at once.</param>
    public ScriptedServer ThenBreakWhen(Task when, Exception? failure = null, Func<int, Task>? taken = null) => Then(
        async (_, token) =>
        {
            await when.WaitAsync(token).ConfigureAwait(false);
            throw failure ?? Broken();
        },
        taken ?? (static _ => Task.CompletedTask));

    /// <summary>These messages after <paramref name="until"/>, and each write is taken when <paramref name="taken"/> says so.</summary>
    public ScriptedServer ThenReplyAfter(Task until, Func<int, Task> taken, params IMessage[] messages) => Then(
        async (_, token) =>
        {
            await until.WaitAsync(token).ConfigureAwait(false);
            return Reply(messages);
        },
        taken);

    /// <summary>No answer until the call is cancelled.</summary>
    public ScriptedServer ThenHang() => Then(NoResponse, Task.CompletedTask);

    /// <summary>Headers, and no message until the call is cancelled, which the transport then tells as its own failure.</summary>
    public ScriptedServer ThenHangAndAbort() => Then(static _ => Task.FromResult(Reply(new StreamContent(new AbortedStream()))));

    /// <summary>No answer until the call is cancelled, and no request is taken: a write waits.</summary>
    public ScriptedServer ThenTakeNothing() => Then(NoResponse, new TaskCompletionSource().Task);

    /// <summary>The connection breaks: to who writes at once, and to who waits for the response after <paramref name="until"/>.</summary>
    public ScriptedServer ThenBreakUnderTheWriter(Task until) => Then(
        async (_, token) =>
        {
            await until.WaitAsync(token).ConfigureAwait(false);
            throw Broken();
        },
        Task.FromException(new IOException("broken")));

    /// <summary>Headers, these messages, and then the connection breaks.</summary>
    public ScriptedServer ThenBreakAfter(params IMessage[] messages) => Then(_ =>
    {
        var response = Headers();
        response.Content = new StreamContent(new BreakingStream(Frames(messages)));
        response.Content.Headers.ContentType = new("application/grpc");
        return Task.FromResult(response);
    });

    public GrpcChannel Create()
    {
        var options = new GrpcChannelOptions { HttpHandler = new Handler(this, Interlocked.Increment(ref _channels)), DisposeHttpClient = true };
        ConfigureChannel?.Invoke(options);
        return GrpcChannel.ForAddress("http://scripted", options);
    }

    public bool Return(GrpcChannel obj) => true;

    private static HttpRequestException Broken() =>
        new(HttpRequestError.ResponseEnded, "broken", new HttpIOException(HttpRequestError.ResponseEnded));

    private static async Task<HttpResponseMessage> NoResponse(Task sending, CancellationToken cancellationToken)
    {
        await Task.Delay(Timeout.InfiniteTimeSpan, TimeProvider.System, cancellationToken).ConfigureAwait(false);
        throw new InvalidOperationException();
    }

    private static HttpResponseMessage Headers() => new(HttpStatusCode.OK) { Version = HttpVersion.Version20 };

    private static HttpResponseMessage Reply(IMessage[] messages) => Reply(new ByteArrayContent(Frames(messages)));

    private static HttpResponseMessage Reply(HttpContent content)
    {
        var response = Headers();
        response.Content = content;
        response.Content.Headers.ContentType = new("application/grpc");
        response.TrailingHeaders.Add("grpc-status", "0");
        return response;
    }

    private static HttpResponseMessage TrailersOnly(StatusCode status, (string Name, string Value)[] trailers)
    {
        var response = Reply([]);
        response.TrailingHeaders.Clear();
        response.Headers.Add("grpc-status", $"{(int)status}");
        response.Headers.Add("grpc-message", "scripted");
        Array.ForEach(trailers, trailer => response.Headers.Add(trailer.Name, trailer.Value));
        return response;
    }

    private static byte[] Frames(IMessage[] messages)
    {
        var stream = new MemoryStream();
        Span<byte> prefix = stackalloc byte[5];
        prefix.Clear();
        foreach (var message in messages)
        {
            BinaryPrimitives.WriteInt32BigEndian(prefix[1..], message.CalculateSize());
            stream.Write(prefix);
            message.WriteTo(stream);
        }

        return stream.ToArray();
    }

    private ScriptedServer Then(Func<Task, CancellationToken, Task<HttpResponseMessage>> answer, Task taken) => Then(answer, _ => taken);

    private ScriptedServer Then(Func<Task, CancellationToken, Task<HttpResponseMessage>> answer, Func<int, Task> taken)
    {
        _script.Enqueue(new Exchange(answer, taken));
        return this;
    }

    /// <summary>What happens to one request.</summary>
    /// <param name="Answer">Gives the response; it is told when all of the request has been sent.</param>
    /// <param name="Taken">When each write is taken, by its number from 0: the write waits for it, and fails if it does.</param>
    private sealed record Exchange(Func<Task, CancellationToken, Task<HttpResponseMessage>> Answer, Func<int, Task> Taken);

    private sealed class Handler(ScriptedServer server, int channel) : HttpMessageHandler
    {
        protected override async Task<HttpResponseMessage> SendAsync(HttpRequestMessage request, CancellationToken cancellationToken)
        {
            var sent = new SentRequest();
            server._sent.Enqueue(sent);
            server._requests.Enqueue((channel, request));
            if (!server._script.TryDequeue(out var exchange))
            {
                throw new InvalidOperationException("The script is over: no further request was expected.");
            }

            // As the real handler does, the request is sent while the response is waited for.
            var sending = SendBodyAsync(request.Content!, new Connection(exchange.Taken, sent), sent, cancellationToken);
            try
            {
                return await exchange.Answer(sending, cancellationToken).ConfigureAwait(false);
            }
            finally
            {
                _ = sending.ContinueWith(static task => task.Exception, TaskScheduler.Default);
            }
        }

        private static async Task SendBodyAsync(HttpContent content, Connection connection, SentRequest sent, CancellationToken cancellationToken)
        {
            await content.CopyToAsync(connection, cancellationToken).ConfigureAwait(false);
            sent.Complete();
        }
    }

    private sealed class Connection(Func<int, Task> taken, SentRequest sent) : MemoryStream
    {
        public override async ValueTask WriteAsync(ReadOnlyMemory<byte> buffer, CancellationToken cancellationToken = default)
        {
            await taken(sent.Begin()).WaitAsync(cancellationToken).ConfigureAwait(false);
            sent.Add(buffer.Span);
        }
    }

    private sealed class AbortedStream : MemoryStream
    {
        public override async ValueTask<int> ReadAsync(Memory<byte> buffer, CancellationToken cancellationToken = default)
        {
            await Task.Delay(Timeout.InfiniteTimeSpan, TimeProvider.System, cancellationToken).ConfigureAwait(ConfigureAwaitOptions.SuppressThrowing);
            throw new IOException("The request was aborted.");
        }
    }

    private sealed class BreakingStream(byte[] content) : MemoryStream(content)
    {
        public override async ValueTask<int> ReadAsync(Memory<byte> buffer, CancellationToken cancellationToken = default) =>
            await base.ReadAsync(buffer, cancellationToken).ConfigureAwait(false) is var read && (read > 0 || buffer.Length == 0) ? read : throw new HttpIOException(HttpRequestError.ResponseEnded);
    }
}

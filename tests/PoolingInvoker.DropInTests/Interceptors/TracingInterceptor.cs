using Grpc.Core;
using Grpc.Core.Interceptors;

namespace PoolingInvoker.DropInTests.Interceptors;

/// <summary>
/// An interceptor as applications have them: leaves its name in the request, waits for the headers, and wraps all that goes on and
/// comes back, so that it can write it down.
/// </summary>
internal sealed class TracingInterceptor(string name) : Interceptor
{
    public Transcript Trace { get; } = new();

    public override TResponse BlockingUnaryCall<TRequest, TResponse>(
        TRequest request, ClientInterceptorContext<TRequest, TResponse> context, BlockingUnaryCallContinuation<TRequest, TResponse> continuation)
    {
        Trace.Add($"{context.Method.Name}, blocking");
        try
        {
            var response = continuation(request, Marked(context));
            Trace.Add($"response {response}");
            return response;
        }
        catch (RpcException exception)
        {
            Trace.Add($"failed: {Transcript.Describe(exception)}");
            throw;
        }
    }

    public override AsyncUnaryCall<TResponse> AsyncUnaryCall<TRequest, TResponse>(
        TRequest request, ClientInterceptorContext<TRequest, TResponse> context, AsyncUnaryCallContinuation<TRequest, TResponse> continuation)
    {
        Trace.Add(context.Method.Name);
        var call = continuation(request, Marked(context));
        var headers = HeadersAsync(call.ResponseHeadersAsync);
        return new AsyncUnaryCall<TResponse>(
            ResponseAsync(headers, call.ResponseAsync, call.GetStatus, call.GetTrailers), headers, call.GetStatus, call.GetTrailers, call.Dispose);
    }

    public override AsyncClientStreamingCall<TRequest, TResponse> AsyncClientStreamingCall<TRequest, TResponse>(
        ClientInterceptorContext<TRequest, TResponse> context, AsyncClientStreamingCallContinuation<TRequest, TResponse> continuation)
    {
        Trace.Add(context.Method.Name);
        var call = continuation(Marked(context));
        var headers = HeadersAsync(call.ResponseHeadersAsync);
        return new AsyncClientStreamingCall<TRequest, TResponse>(
            new Writer<TRequest>(this, call.RequestStream),
            ResponseAsync(headers, call.ResponseAsync, call.GetStatus, call.GetTrailers),
            headers,
            call.GetStatus,
            call.GetTrailers,
            call.Dispose);
    }

    public override AsyncServerStreamingCall<TResponse> AsyncServerStreamingCall<TRequest, TResponse>(
        TRequest request, ClientInterceptorContext<TRequest, TResponse> context, AsyncServerStreamingCallContinuation<TRequest, TResponse> continuation)
    {
        Trace.Add(context.Method.Name);
        var call = continuation(request, Marked(context));
        var headers = HeadersAsync(call.ResponseHeadersAsync);
        return new AsyncServerStreamingCall<TResponse>(
            new Reader<TResponse>(this, headers, call.ResponseStream, call.GetStatus, call.GetTrailers), headers, call.GetStatus, call.GetTrailers, call.Dispose);
    }

    public override AsyncDuplexStreamingCall<TRequest, TResponse> AsyncDuplexStreamingCall<TRequest, TResponse>(
        ClientInterceptorContext<TRequest, TResponse> context, AsyncDuplexStreamingCallContinuation<TRequest, TResponse> continuation)
    {
        Trace.Add(context.Method.Name);
        var call = continuation(Marked(context));
        var headers = HeadersAsync(call.ResponseHeadersAsync);
        return new AsyncDuplexStreamingCall<TRequest, TResponse>(
            new Writer<TRequest>(this, call.RequestStream),
            new Reader<TResponse>(this, headers, call.ResponseStream, call.GetStatus, call.GetTrailers),
            headers,
            call.GetStatus,
            call.GetTrailers,
            call.Dispose);
    }

    private ClientInterceptorContext<TRequest, TResponse> Marked<TRequest, TResponse>(ClientInterceptorContext<TRequest, TResponse> context)
        where TRequest : class
        where TResponse : class
    {
        var headers = new Metadata();
        foreach (var entry in context.Options.Headers ?? [])
        {
            headers.Add(entry);
        }

        headers.Add("way", name);
        return new ClientInterceptorContext<TRequest, TResponse>(context.Method, context.Host, context.Options.WithHeaders(headers));
    }

    private async Task<Metadata> HeadersAsync(Task<Metadata> headers)
    {
        var seen = new Metadata();
        foreach (var entry in await headers)
        {
            seen.Add(entry);
        }

        seen.Add("seen-by", name);
        return seen;
    }

    private async Task<TResponse> ResponseAsync<TResponse>(Task<Metadata> headers, Task<TResponse> response, Func<Status> getStatus, Func<Metadata> getTrailers)
    {
        try
        {
            Trace.Add($"headers {Transcript.Describe(await headers)}");
            var message = await response;
            Trace.Add($"response {message}");
            return message;
        }
        catch (RpcException exception)
        {
            Trace.Add($"failed: {Transcript.Describe(exception)}");
            throw;
        }
        finally
        {
            Trace.Step("status", () => Transcript.Describe(getStatus()));
            Trace.Step("trailers", () => Transcript.Describe(getTrailers()));
        }
    }

    private sealed class Writer<T>(TracingInterceptor interceptor, IClientStreamWriter<T> inner) : IClientStreamWriter<T>
    {
        public WriteOptions? WriteOptions
        {
            get => inner.WriteOptions;
            set => inner.WriteOptions = value;
        }

        public Task WriteAsync(T message)
        {
            interceptor.Trace.Add($"write {message}");
            return inner.WriteAsync(message);
        }

        public async Task CompleteAsync()
        {
            interceptor.Trace.Add("complete");
            await inner.CompleteAsync();
        }
    }

    private sealed class Reader<T>(
        TracingInterceptor interceptor, Task<Metadata> headers, IAsyncStreamReader<T> inner, Func<Status> getStatus, Func<Metadata> getTrailers) : IAsyncStreamReader<T>
    {
        public T Current => inner.Current;

        public async Task<bool> MoveNext(CancellationToken cancellationToken)
        {
            try
            {
                interceptor.Trace.Add($"headers {Transcript.Describe(await headers)}");
                var more = await inner.MoveNext(cancellationToken);
                interceptor.Trace.Add(more ? $"read {inner.Current}" : $"end, {Transcript.Describe(getStatus())}, {Transcript.Describe(getTrailers())}");
                return more;
            }
            catch (RpcException exception)
            {
                interceptor.Trace.Add($"failed: {Transcript.Describe(exception)}");
                throw;
            }
        }
    }
}

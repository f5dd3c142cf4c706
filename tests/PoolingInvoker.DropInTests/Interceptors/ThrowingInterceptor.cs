using Grpc.Core;
using Grpc.Core.Interceptors;

namespace PoolingInvoker.DropInTests.Interceptors;

/// <summary>Where the interceptor throws.</summary>
public enum Where
{
    /// <summary>Before it goes on.</summary>
    BeforeTheCall,

    /// <summary>When it has started the call, which nobody has then.</summary>
    AfterTheStart,

    /// <summary>When the headers are there.</summary>
    OnTheHeaders,
}

/// <summary>An interceptor with a fault.</summary>
internal sealed class ThrowingInterceptor(Where where) : Interceptor
{
    public override TResponse BlockingUnaryCall<TRequest, TResponse>(
        TRequest request, ClientInterceptorContext<TRequest, TResponse> context, BlockingUnaryCallContinuation<TRequest, TResponse> continuation)
    {
        ThrowIf(Where.BeforeTheCall);
        var response = continuation(request, context);
        ThrowIf(where);
        return response;
    }

    public override AsyncUnaryCall<TResponse> AsyncUnaryCall<TRequest, TResponse>(
        TRequest request, ClientInterceptorContext<TRequest, TResponse> context, AsyncUnaryCallContinuation<TRequest, TResponse> continuation)
    {
        ThrowIf(Where.BeforeTheCall);
        var call = continuation(request, context);
        ThrowIf(Where.AfterTheStart);
        return new AsyncUnaryCall<TResponse>(AfterHeadersAsync(call.ResponseHeadersAsync, call.ResponseAsync), call.ResponseHeadersAsync, call.GetStatus, call.GetTrailers, call.Dispose);
    }

    public override AsyncClientStreamingCall<TRequest, TResponse> AsyncClientStreamingCall<TRequest, TResponse>(
        ClientInterceptorContext<TRequest, TResponse> context, AsyncClientStreamingCallContinuation<TRequest, TResponse> continuation)
    {
        ThrowIf(Where.BeforeTheCall);
        var call = continuation(context);
        ThrowIf(Where.AfterTheStart);
        return new AsyncClientStreamingCall<TRequest, TResponse>(
            call.RequestStream, AfterHeadersAsync(call.ResponseHeadersAsync, call.ResponseAsync), call.ResponseHeadersAsync, call.GetStatus, call.GetTrailers, call.Dispose);
    }

    public override AsyncServerStreamingCall<TResponse> AsyncServerStreamingCall<TRequest, TResponse>(
        TRequest request, ClientInterceptorContext<TRequest, TResponse> context, AsyncServerStreamingCallContinuation<TRequest, TResponse> continuation)
    {
        ThrowIf(Where.BeforeTheCall);
        var call = continuation(request, context);
        ThrowIf(Where.AfterTheStart);
        return new AsyncServerStreamingCall<TResponse>(
            new Reader<TResponse>(this, call.ResponseHeadersAsync, call.ResponseStream), call.ResponseHeadersAsync, call.GetStatus, call.GetTrailers, call.Dispose);
    }

    public override AsyncDuplexStreamingCall<TRequest, TResponse> AsyncDuplexStreamingCall<TRequest, TResponse>(
        ClientInterceptorContext<TRequest, TResponse> context, AsyncDuplexStreamingCallContinuation<TRequest, TResponse> continuation)
    {
        ThrowIf(Where.BeforeTheCall);
        var call = continuation(context);
        ThrowIf(Where.AfterTheStart);
        return new AsyncDuplexStreamingCall<TRequest, TResponse>(
            call.RequestStream, new Reader<TResponse>(this, call.ResponseHeadersAsync, call.ResponseStream), call.ResponseHeadersAsync, call.GetStatus, call.GetTrailers, call.Dispose);
    }

    private void ThrowIf(Where here)
    {
        if (where == here)
        {
            throw new FormatException("of the interceptor's");
        }
    }

    private async Task<TResponse> AfterHeadersAsync<TResponse>(Task<Metadata> headers, Task<TResponse> response)
    {
        await headers;
        ThrowIf(Where.OnTheHeaders);
        return await response;
    }

    private sealed class Reader<T>(ThrowingInterceptor interceptor, Task<Metadata> headers, IAsyncStreamReader<T> inner) : IAsyncStreamReader<T>
    {
        public T Current => inner.Current;

        public async Task<bool> MoveNext(CancellationToken cancellationToken)
        {
            await headers;
            interceptor.ThrowIf(Where.OnTheHeaders);
            return await inner.MoveNext(cancellationToken);
        }
    }
}

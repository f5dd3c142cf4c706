using Grpc.Core.Interceptors;

namespace PoolingInvoker;

/// <summary>
/// Puts a pool under a call invoker that exists already: <c>existing.Intercept(new PoolingInterceptor(pooled))</c> makes its calls
/// through the pool, and no longer on the channel of <c>existing</c>. What was put on it before, such as interceptors, is passed by.
/// </summary>
/// <remarks>
/// It is not for a client of <c>AddGrpcClient</c>: channel options, HTTP handlers and what else is configured below it would be lost. The
/// <c>AddChannelPool</c> of the package PoolingInvoker.Extensions.DependencyInjection keeps them.
/// </remarks>
/// <param name="invoker">The invoker that makes the calls. It stays with who made it.</param>
public sealed class PoolingInterceptor(PoolingCallInvoker invoker) : Interceptor
{
    private readonly PoolingCallInvoker _invoker = invoker ?? throw new ArgumentNullException(nameof(invoker));

    /// <inheritdoc/>
    public override TResponse BlockingUnaryCall<TRequest, TResponse>(TRequest request, ClientInterceptorContext<TRequest, TResponse> context, BlockingUnaryCallContinuation<TRequest, TResponse> continuation) =>
        _invoker.BlockingUnaryCall(context.Method, context.Host, context.Options, request);

    /// <inheritdoc/>
    public override AsyncUnaryCall<TResponse> AsyncUnaryCall<TRequest, TResponse>(TRequest request, ClientInterceptorContext<TRequest, TResponse> context, AsyncUnaryCallContinuation<TRequest, TResponse> continuation) =>
        _invoker.AsyncUnaryCall(context.Method, context.Host, context.Options, request);

    /// <inheritdoc/>
    public override AsyncServerStreamingCall<TResponse> AsyncServerStreamingCall<TRequest, TResponse>(TRequest request, ClientInterceptorContext<TRequest, TResponse> context, AsyncServerStreamingCallContinuation<TRequest, TResponse> continuation) =>
        _invoker.AsyncServerStreamingCall(context.Method, context.Host, context.Options, request);

    /// <inheritdoc/>
    public override AsyncClientStreamingCall<TRequest, TResponse> AsyncClientStreamingCall<TRequest, TResponse>(ClientInterceptorContext<TRequest, TResponse> context, AsyncClientStreamingCallContinuation<TRequest, TResponse> continuation) =>
        _invoker.AsyncClientStreamingCall(context.Method, context.Host, context.Options);

    /// <inheritdoc/>
    public override AsyncDuplexStreamingCall<TRequest, TResponse> AsyncDuplexStreamingCall<TRequest, TResponse>(ClientInterceptorContext<TRequest, TResponse> context, AsyncDuplexStreamingCallContinuation<TRequest, TResponse> continuation) =>
        _invoker.AsyncDuplexStreamingCall(context.Method, context.Host, context.Options);
}

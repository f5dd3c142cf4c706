using static PoolingInvoker.CallHandle;

namespace PoolingInvoker;

/// <summary>Begins the calls of a pooling invoker: all with one key, or each with that which the options of the invoker give it.</summary>
internal sealed class KeyedCallInvoker(PoolingCallInvoker invoker, ulong? key) : CallInvoker
{
    public override TResponse BlockingUnaryCall<TRequest, TResponse>(Method<TRequest, TResponse> method, string? host, CallOptions options, TRequest request) =>
        NewUnaryCall(method, host, options, request).Start().GetAwaiter().GetResult();

    public override AsyncUnaryCall<TResponse> AsyncUnaryCall<TRequest, TResponse>(
        Method<TRequest, TResponse> method, string? host, CallOptions options, TRequest request)
    {
        var call = NewUnaryCall(method, host, options, request);
        return new(call.Start(), GetHeaders, GetStatus, GetTrailers, EndCall, call);
    }

    public override AsyncClientStreamingCall<TRequest, TResponse> AsyncClientStreamingCall<TRequest, TResponse>(
        Method<TRequest, TResponse> method, string? host, CallOptions options)
    {
        var stream = StartStream(MethodType.ClientStreaming, method, host, options, request: null, out var response);
        return new(stream, response, GetHeaders, GetStatus, GetTrailers, EndCall, stream);
    }

    public override AsyncServerStreamingCall<TResponse> AsyncServerStreamingCall<TRequest, TResponse>(
        Method<TRequest, TResponse> method, string? host, CallOptions options, TRequest request)
    {
        var stream = StartStream(MethodType.ServerStreaming, method, host, options, request, out _);
        return new(stream, GetHeaders, GetStatus, GetTrailers, EndCall, stream);
    }

    public override AsyncDuplexStreamingCall<TRequest, TResponse> AsyncDuplexStreamingCall<TRequest, TResponse>(
        Method<TRequest, TResponse> method, string? host, CallOptions options)
    {
        var stream = StartStream(MethodType.DuplexStreaming, method, host, options, request: null, out _);
        return new(requestStream: stream, responseStream: stream, GetHeaders, GetStatus, GetTrailers, EndCall, stream);
    }

    private UnaryCall<TRequest, TResponse> NewUnaryCall<TRequest, TResponse>(
        Method<TRequest, TResponse> method, string? host, CallOptions options, TRequest request)
        where TRequest : class
        where TResponse : class
    {
        var environment = invoker.Environment;
        return new(environment, method, environment.Given(method, host, options, key ?? environment.KeyOf(method, request)), request);
    }

    private LeasedStream<TRequest, TResponse> StartStream<TRequest, TResponse>(
        MethodType kind, Method<TRequest, TResponse> method, string? host, CallOptions options, TRequest? request, out Task<TResponse> response)
        where TRequest : class
        where TResponse : class
    {
        var environment = invoker.Environment;
        var given = environment.Given(method, host, options, key ?? environment.KeyOf(method, request));
        var call = new StreamingCall<TRequest, TResponse>(environment, kind, method, given, request);
        response = call.Start();
        return new(call);
    }
}

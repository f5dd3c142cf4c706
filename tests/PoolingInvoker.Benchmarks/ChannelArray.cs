using Grpc.Core;
using Grpc.Net.Client;

namespace PoolingInvoker.Benchmarks;

/// <summary>What users do who know of the problem.</summary>
internal sealed class ChannelArray(Uri address, int count) : CallInvoker, IDisposable
{
    private readonly GrpcChannel[] _channels = [.. Enumerable.Range(0, count).Select(_ => GrpcChannel.ForAddress(address))];
    private int _next;

    private CallInvoker Next => _channels[(uint)Interlocked.Increment(ref _next) % _channels.Length].CreateCallInvoker();

    public void Dispose() => Array.ForEach(_channels, static channel => channel.Dispose());

    public override TResponse BlockingUnaryCall<TRequest, TResponse>(Method<TRequest, TResponse> method, string? host, CallOptions options, TRequest request) =>
        Next.BlockingUnaryCall(method, host, options, request);

    public override AsyncUnaryCall<TResponse> AsyncUnaryCall<TRequest, TResponse>(Method<TRequest, TResponse> method, string? host, CallOptions options, TRequest request) =>
        Next.AsyncUnaryCall(method, host, options, request);

    public override AsyncServerStreamingCall<TResponse> AsyncServerStreamingCall<TRequest, TResponse>(Method<TRequest, TResponse> method, string? host, CallOptions options, TRequest request) =>
        Next.AsyncServerStreamingCall(method, host, options, request);

    public override AsyncClientStreamingCall<TRequest, TResponse> AsyncClientStreamingCall<TRequest, TResponse>(Method<TRequest, TResponse> method, string? host, CallOptions options) =>
        Next.AsyncClientStreamingCall(method, host, options);

    public override AsyncDuplexStreamingCall<TRequest, TResponse> AsyncDuplexStreamingCall<TRequest, TResponse>(Method<TRequest, TResponse> method, string? host, CallOptions options) =>
        Next.AsyncDuplexStreamingCall(method, host, options);
}

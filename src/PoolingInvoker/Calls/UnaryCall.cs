namespace PoolingInvoker;

/// <summary>A unary call. An attempt is decided by its response, and its lease goes back with that.</summary>
internal sealed class UnaryCall<TRequest, TResponse>(
    CallEnvironment environment, Method<TRequest, TResponse> method, GivenOptions given, TRequest request)
    : PooledCall<TResponse>(environment, method, given, request)
    where TRequest : class
    where TResponse : class
{
    public override MethodType Kind => MethodType.Unary;

    protected override UnaryAttempt<TResponse> NewAttempt(PooledChannel channel, object lease) => new(channel, lease);

    protected override void StartOn(CallInvoker channel, CallAttempt<TResponse> attempt, CallOptions options)
    {
        var method = (Method<TRequest, TResponse>)Method;
        ((UnaryAttempt<TResponse>)attempt).Inner = channel.AsyncUnaryCall(method, Given.Host, options, (TRequest)Request!);
    }
}

internal sealed class UnaryAttempt<TResponse>(PooledChannel channel, object lease) : CallAttempt<TResponse>(channel, lease)
    where TResponse : class
{
    public AsyncUnaryCall<TResponse> Inner { get; set; } = null!;

    public override Task<TResponse> Deciding => Inner.ResponseAsync;
    protected override Task<Metadata> InnerHeadersAsync => Inner.ResponseHeadersAsync;
    public override Status GetStatus() => AsGivenUp(Inner.GetStatus());
    public override Metadata GetTrailers() => Inner.GetTrailers();
    public override void Dispose() => Inner.Dispose();
}

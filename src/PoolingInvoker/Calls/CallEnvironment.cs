using Polly;

namespace PoolingInvoker;

/// <summary>What all calls of one invoker share.</summary>
internal sealed class CallEnvironment
{
    public CallEnvironment(ChannelPool pool, PoolingCallInvokerOptions options)
    {
        Pool = pool;
        Pipeline = CallResilience.Build(options, pool.TimeProvider, out var onFailureOnly);
        OnFailureOnly = onFailureOnly;
        Idempotency = new MethodIdempotency(options.IsIdempotent, pool.Log);
    }

    public ChannelPool Pool { get; }

    /// <summary>What decides on further attempts; null if there are none.</summary>
    public ResiliencePipeline? Pipeline { get; }

    /// <summary>Whether the pipeline has to be entered only when the first attempt has failed.</summary>
    public bool OnFailureOnly { get; }

    public MethodIdempotency Idempotency { get; }
}

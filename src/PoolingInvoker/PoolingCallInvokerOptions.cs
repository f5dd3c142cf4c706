using Grpc.Core;
using Polly;

namespace PoolingInvoker;

/// <summary>How a <see cref="PoolingCallInvoker"/> pools, and when it sends a call again.</summary>
public sealed class PoolingCallInvokerOptions
{
    /// <summary>
    /// Gets or sets the options of the pool. They are not used by an invoker over a pool that exists already.
    /// </summary>
    public ChannelPoolOptions Pool { get; set; } = new();

    /// <summary>
    /// Gets or sets when and how often a call is sent again on another channel. <c>Retry.MaxRetryAttempts = 0</c> turns it off.
    /// </summary>
    /// <remarks>Not used when <see cref="ConfigurePipeline"/> is set.</remarks>
    public ChannelRetryStrategyOptions Retry { get; set; } = new();

    /// <summary>
    /// Gets or sets a callback that builds a Polly pipeline of your own in place of the retry: each execution of its callback is one
    /// attempt, on a channel leased for it. For the retry in it, add <see cref="ChannelRetryStrategyOptions"/>.
    /// </summary>
    /// <remarks>
    /// Whatever the pipeline asks for, a call that may have reached a server is not sent again unless its method is idempotent, nor is a
    /// stream that has delivered its first message or written its first request, nor a call whose response headers the application has
    /// read: the pipeline then gets the outcome of the last attempt once more. For a stream the pipeline is over at that point.
    /// </remarks>
    /// <value>The default value is <see langword="null"/>.</value>
    public Action<ResiliencePipelineBuilder>? ConfigurePipeline { get; set; }

    /// <summary>
    /// Gets or sets which methods are safe to run twice. It has the last word over the <c>idempotency_level</c> of the .proto.
    /// It is asked after the first failure of a method, and as a rule once.
    /// </summary>
    /// <value>
    /// The default value is <see langword="null"/>: idempotent is what the .proto marks <c>NO_SIDE_EFFECTS</c> or <c>IDEMPOTENT</c>,
    /// as far as the messages of the method come from the same .proto file as its service.
    /// </value>
    public Func<IMethod, bool>? IsIdempotent { get; set; }
}

using System.Collections.ObjectModel;
using Google.Protobuf.Reflection;
using Grpc.Core;
using Grpc.Net.Client.Configuration;
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
    /// call that is committed (its first message is delivered, its headers are read, or its requests outgrew the buffer), nor one whose
    /// server asked not to, nor any when <see cref="RetryThrottling"/> has no tokens left: the pipeline then gets the outcome of the last
    /// attempt once more. For a stream the pipeline is over when it is committed.
    /// </remarks>
    /// <value>The default value is <see langword="null"/>.</value>
    public Action<ResiliencePipelineBuilder>? ConfigurePipeline { get; set; }

    /// <summary>
    /// Gets or sets a callback that is given the builder of each pipeline before its strategies are added, that of the preset retry and of
    /// hedging included, for the telemetry of Polly.Extensions:
    /// <c>options.ConfigureTelemetry = pipeline => pipeline.ConfigureTelemetry(loggerFactory)</c>. The preset pipeline is entered only when a
    /// first attempt has failed, and shows that attempt as one of no duration.
    /// </summary>
    /// <value>The default value is <see langword="null"/>.</value>
    public Action<ResiliencePipelineBuilderBase>? ConfigureTelemetry { get; set; }

    /// <summary>
    /// Gets or sets which methods are safe to run twice. It has the last word over the <c>idempotency_level</c> of the .proto.
    /// It is asked after the first failure of a method, and as a rule once.
    /// </summary>
    /// <value>
    /// The default value is <see langword="null"/>: idempotent is what the .proto marks <c>NO_SIDE_EFFECTS</c> or <c>IDEMPOTENT</c>,
    /// as far as the service is one of <see cref="ServiceDescriptors"/>, or a message of the method comes from the same .proto file.
    /// </value>
    public Func<IMethod, bool>? IsIdempotent { get; set; }

    /// <summary>
    /// Gets the services whose <c>idempotency_level</c> counts although the messages of their methods come from other .proto files, as in
    /// <c>options.ServiceDescriptors.Add(User.Descriptor)</c>. The others are found through their messages.
    /// </summary>
    /// <value>Empty by default.</value>
    public ICollection<ServiceDescriptor> ServiceDescriptors { get; } = [];

    /// <summary>
    /// Gets what holds for single methods in place of <see cref="Retry"/> and <see cref="ConfigurePipeline"/>.
    /// </summary>
    /// <value>Empty by default.</value>
    public ICollection<PooledMethodConfig> MethodConfigs { get; } = new Collection<PooledMethodConfig>();

    /// <summary>
    /// Gets or sets the budget of retries and hedges of the whole pool, so that a server in trouble is not buried under them (gRFC A6). A
    /// failed attempt that another one could follow takes one token, a call that succeeds gives <c>TokenRatio</c> back, and while no more
    /// than half of <c>MaxTokens</c> are left no call is sent again. So in the long run there is a retry for each five calls that succeed, and
    /// a burst of 500 before that. A request that never left costs nothing. Invokers over the same pool share the budget of the first.
    /// </summary>
    /// <value>The default value is 1,000 tokens with a ratio of 0.2. At least 1, and at least 0.001. <see langword="null"/> turns it off.</value>
    public RetryThrottlingPolicy? RetryThrottling { get; set; } = new() { MaxTokens = 1_000, TokenRatio = 0.2 };

    /// <summary>
    /// Gets or sets how many bytes of requests a client stream or duplex call keeps for another attempt. One that has written more is
    /// committed: it is not sent again.
    /// </summary>
    /// <value>The default value is 1 MiB. Zero keeps nothing.</value>
    public long MaxRetryBufferPerCallSize { get; set; } = 1024 * 1024;

    /// <summary>
    /// Gets or sets how many bytes of requests all calls over the pool keep together. A call for which there is no space is committed.
    /// Invokers over the same pool share the space of the first. Each request counts for 128 bytes more than it has.
    /// </summary>
    /// <value>The default value is 16 MiB. Zero keeps nothing.</value>
    public long MaxRetryBufferSize { get; set; } = 16 * 1024 * 1024;
}

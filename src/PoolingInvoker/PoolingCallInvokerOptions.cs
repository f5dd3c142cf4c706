using System.Collections.ObjectModel;
using Google.Protobuf.Reflection;
using Polly;

namespace PoolingInvoker;

/// <summary>How a <see cref="PoolingCallInvoker"/> pools, and when it sends a call again.</summary>
public sealed class PoolingCallInvokerOptions
{
    private ChannelPoolOptions? _pool; // null until somebody looks at it, or sets it

    /// <summary>Gets or sets the options of the pool. For an invoker over a pool that exists already they are an error: it has its own.</summary>
    public ChannelPoolOptions Pool
    {
        get => _pool ??= new();
        set => _pool = value ?? throw new ArgumentException("Pool is null. Leave it as it is for the defaults.", nameof(value));
    }

    /// <summary>Gets or sets when and how often a call is sent again. <c>Retry.MaxRetryAttempts = 0</c> turns it off.</summary>
    /// <remarks>Not used when <see cref="ConfigurePipeline"/> is set.</remarks>
    public ChannelRetryStrategyOptions Retry { get; set; } = new();

    /// <summary>
    /// Gets or sets a callback that builds a Polly pipeline of your own in place of the retry: each execution of its callback is one
    /// attempt, on a channel leased for it. For the retry in it, add <see cref="ChannelRetryStrategyOptions"/>.
    /// </summary>
    /// <remarks>
    /// Whatever the pipeline asks for, a call that may have reached a server is not sent again unless its method is idempotent, nor is a
    /// call that is committed (its first message is delivered, its headers are read, or its requests outgrew the buffer), nor one whose
    /// server asked not to, nor any when <see cref="ChannelPoolOptions.RetryThrottling"/> has no tokens left: the pipeline then gets the outcome of the last
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
    /// Gets or sets which methods are safe to run twice. It comes before the <c>idempotency_level</c> of the .proto, and <see cref="PooledMethodConfig.Idempotent"/> before it.
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
    public IList<ServiceDescriptor> ServiceDescriptors { get; } = [];

    /// <summary>
    /// Gets or sets a function that gives the key of a call, from its method and its request (<see langword="null"/> for a call that streams its
    /// requests): <c>(_, request) =&gt; request is GetNameRequest get ? $"{get.Id}" : null</c>. Calls with the same key go to the same channel while that lives, and
    /// to the same endpoint, as those of <see cref="PoolingCallInvoker.WithAffinity"/> do, whose key comes first. A call whose key is
    /// <see langword="null"/> or empty goes anywhere. It is asked once a call, on the thread of the caller; what it throws is thrown by the call.
    /// </summary>
    /// <value>The default value is <see langword="null"/>.</value>
    public Func<IMethod, object?, string?>? AffinityKey { get; set; }

    /// <summary>Gets what holds for single methods in place of <see cref="Retry"/> and <see cref="ConfigurePipeline"/>.</summary>
    /// <value>Empty by default.</value>
    public IList<PooledMethodConfig> MethodConfigs { get; } = new Collection<PooledMethodConfig>();

    /// <summary>
    /// Gets or sets how many bytes of requests a client stream or duplex call keeps for another attempt. One that has written more is
    /// committed: it is not sent again.
    /// </summary>
    /// <value>The default value is 1 MiB. Zero keeps nothing.</value>
    public long MaxRetryBufferPerCallSize { get; set; } = 1024 * 1024;

    /// <summary>Whether it has options for a pool that are not those with which this one was made.</summary>
    internal bool HasOtherPoolThan(ChannelPool pool) => _pool is not null && _pool != pool.State.Options.Given;
}

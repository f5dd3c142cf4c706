using System.Collections.ObjectModel;
using Grpc.Net.Client.Configuration;
using Polly;

namespace PoolingInvoker;

/// <summary>
/// What holds for the methods that it names, in place of what the invoker does with all others. A config that names the method comes
/// before one that names its service, and that before one for all (<see cref="MethodName.Default"/>), as in a gRPC service config.
/// </summary>
public sealed class PooledMethodConfig
{
    /// <summary>Gets the methods, as in <c>new MethodName { Service = "user.v1.User", Method = "GetName" }</c>.</summary>
    public IList<MethodName> Names { get; } = new Collection<MethodName>();

    /// <summary>Gets or sets when and how often these methods are sent again.</summary>
    /// <value>The default value is <see langword="null"/>: as the invoker's.</value>
    public ChannelRetryStrategyOptions? Retry { get; set; }

    /// <summary>Gets or sets a callback that builds a pipeline of these methods' own, as <see cref="PoolingCallInvokerOptions.ConfigurePipeline"/>.</summary>
    /// <value>The default value is <see langword="null"/>.</value>
    public Action<ResiliencePipelineBuilder>? ConfigurePipeline { get; set; }

    /// <summary>
    /// Gets or sets hedging in place of retries: when there is no answer within its delay the call is made on another channel, too, and the
    /// first answer counts. It is for idempotent unary methods; others go without.
    /// </summary>
    /// <value>The default value is <see langword="null"/>: no hedging.</value>
    public ChannelHedgingStrategyOptions? Hedging { get; set; }

    /// <summary>Gets or sets whether these methods are safe to run twice. It comes before <see cref="PoolingCallInvokerOptions.IsIdempotent"/> and the .proto.</summary>
    /// <value>The default value is <see langword="null"/>: as these say.</value>
    public bool? Idempotent { get; set; }
}

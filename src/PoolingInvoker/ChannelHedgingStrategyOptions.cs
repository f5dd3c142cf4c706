using Polly.Hedging;

namespace PoolingInvoker;

/// <summary>
/// Polly's hedging, preset for channels: one hedge, when there is no answer within the delay, or at once when an attempt fails in a way
/// that another one need not. Each attempt is on a channel of its own.
/// </summary>
public class ChannelHedgingStrategyOptions : HedgingStrategyOptions<object>
{
    /// <summary>Makes options with the preset.</summary>
    public ChannelHedgingStrategyOptions()
    {
        Name = "ChannelHedging";
        ShouldHandle = static arguments => ValueTask.FromResult(
            arguments.Outcome.Exception is { } exception && CallFaults.Judge(exception).IsTransient);
    }
}

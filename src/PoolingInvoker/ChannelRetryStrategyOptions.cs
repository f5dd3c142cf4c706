using System.ComponentModel.DataAnnotations;
using Polly;
using Polly.Retry;

namespace PoolingInvoker;

/// <summary>
/// Polly's retry, preset for calls that failed because of their channel: 3 retries, the first of them at once if another channel is
/// ready, the others from 50 ms with jitter, doubled each time up to one second.
/// </summary>
/// <remarks>
/// The preset <see cref="RetryStrategyOptions{TResult}.ShouldHandle"/> handles a failure of the transport, the status <c>Unavailable</c>, and a
/// time-out of an attempt that stands in the pipeline, when sending the call again is safe: it never left, or its method is idempotent; and the call is not committed.
/// A predicate of your own may handle more or fewer outcomes. It cannot make an unsafe call be sent again. The preset
/// <see cref="RetryStrategyOptions{TResult}.DelayGenerator"/> waits as long as a server asks with <c>grpc-retry-pushback-ms</c> (gRFC A6);
/// the same is waited for, at the least, with one of your own.
/// </remarks>
public class ChannelRetryStrategyOptions : RetryStrategyOptions
{
    internal static readonly Func<RetryPredicateArguments<object>, ValueTask<bool>> Preset = static arguments =>
        ValueTask.FromResult(CallResilience.ShouldRetry(arguments.Context, arguments.Outcome.Exception));

    /// <summary>Makes options with the preset.</summary>
    public ChannelRetryStrategyOptions()
    {
        Name = "ChannelRetry";
        MaxRetryAttempts = 3;
        BackoffType = DelayBackoffType.Exponential;
        UseJitter = true;
        Delay = TimeSpan.FromMilliseconds(50);
        MaxDelay = TimeSpan.FromSeconds(1);
        ShouldHandle = Preset;
        DelayGenerator = static arguments => ValueTask.FromResult(CallResilience.DelayBeforeRetry(arguments));
    }

    /// <summary>Gets or sets how often a call is sent again at the most, its first attempt not counted.</summary>
    /// <value>The default value is 3. At least 0, which turns the retry off.</value>
    [Range(0, int.MaxValue)]
    public new int MaxRetryAttempts
    {
        get => base.MaxRetryAttempts;
        set => base.MaxRetryAttempts = value;
    }
}

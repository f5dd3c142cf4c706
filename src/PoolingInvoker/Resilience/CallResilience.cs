using Polly;
using Polly.Retry;

namespace PoolingInvoker;

/// <summary>What a retry strategy has to know of the call that it is asked about.</summary>
internal interface IRetryableCall
{
    /// <summary>Whether the call may be sent again after its last attempt ended with this exception.</summary>
    bool IsSafeToSendAgain(Exception? outcome);
}

/// <summary>Joins calls and Polly: builds the pipeline, and tells its predicates which call they are asked about.</summary>
internal static class CallResilience
{
    private static readonly ResiliencePropertyKey<IRetryableCall> Call = new("PoolingInvoker.Call");

    /// <summary>
    /// The pipeline of the options, or null if there is none. With <paramref name="onFailureOnly"/> an attempt that succeeds does not
    /// have to pass through it: the first attempt can run outside, and its outcome be handed to the pipeline when it is a failure.
    /// </summary>
    public static ResiliencePipeline? Build(PoolingCallInvokerOptions options, TimeProvider time, out bool onFailureOnly)
    {
        onFailureOnly = false;
        var builder = new ResiliencePipelineBuilder { Name = "PoolingInvoker", TimeProvider = time };
        if (options.ConfigurePipeline is not null)
        {
            options.ConfigurePipeline(builder);
            return builder.Build();
        }

        var retry = options.Retry ?? throw new ArgumentException("Retry is null. To turn the retry off set Retry.MaxRetryAttempts to 0.", nameof(options));
        if (retry.MaxRetryAttempts == 0)
        {
            onFailureOnly = true;
            return null;
        }

        if (retry.ShouldHandle == ChannelRetryStrategyOptions.Preset)
        {
            onFailureOnly = true;
            return builder.AddRetry(retry).Build();
        }

        return builder.AddRetry(Guard(retry)).Build();
    }

    public static void Attach(ResilienceContext context, IRetryableCall call) => context.Properties.Set(Call, call);

    /// <summary>The preset predicate. Outside of a pooled call there is no method to ask about, so only what never left is retried.</summary>
    public static bool ShouldRetry(ResilienceContext context, Exception? exception) =>
        exception is not null
        && CallFaults.IsTransient(exception)
        && (context.Properties.TryGetValue(Call, out var call) ? call.IsSafeToSendAgain(exception) : CallFaults.NeverLeft(exception));

    // The user's predicate, asked only where a retry is safe, so that no time is spent on backing off from what will not be sent.
    private static RetryStrategyOptions Guard(ChannelRetryStrategyOptions retry) => new()
    {
        Name = retry.Name,
        MaxRetryAttempts = retry.MaxRetryAttempts,
        BackoffType = retry.BackoffType,
        UseJitter = retry.UseJitter,
        Delay = retry.Delay,
        MaxDelay = retry.MaxDelay,
        DelayGenerator = retry.DelayGenerator,
        OnRetry = retry.OnRetry,
        Randomizer = retry.Randomizer,
        ShouldHandle = arguments =>
            !arguments.Context.Properties.TryGetValue(Call, out var call) || call.IsSafeToSendAgain(arguments.Outcome.Exception)
                ? retry.ShouldHandle(arguments)
                : ValueTask.FromResult(false),
    };
}

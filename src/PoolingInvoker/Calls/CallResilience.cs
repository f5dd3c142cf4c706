using System.Runtime.ExceptionServices;
using Polly;
using Polly.Hedging;
using Polly.Retry;
using Polly.Timeout;

namespace PoolingInvoker;

/// <summary>
/// How the attempts of a method follow each other: through a pipeline, or none. With <paramref name="OnFailureOnly"/> an attempt that
/// succeeds does not have to pass through it: the first attempt can run outside, and its outcome be handed to the pipeline when it is a
/// failure.
/// </summary>
internal sealed record CallPlan(Lazy<ResiliencePipeline>? Pipeline, bool OnFailureOnly, ResiliencePipeline<object>? Hedging, bool? IsIdempotent);

/// <summary>Joins calls and Polly: builds the pipelines, and tells their predicates which call they are asked about.</summary>
internal static class CallResilience
{
    private static readonly ResiliencePropertyKey<PooledCall> Call = new("PoolingInvoker.Call");

    public static CallPlan Plan(PoolingCallInvokerOptions options, ChannelPool pool, PooledMethodConfig? config = null)
    {
        var ownsRetry = config is { Retry: not null } or { ConfigurePipeline: not null };
        var configurePipeline = ownsRetry ? config!.ConfigurePipeline : options.ConfigurePipeline;
        var retry = configurePipeline is not null ? null : config?.Retry ?? options.Retry;
        Require(!ownsRetry || config!.Hedging is null, "A method config has Hedging and Retry or ConfigurePipeline. A method is either hedged or retried: set one of them.");
        Require(configurePipeline is not null || retry is not null, "Retry is null. To turn the retry off set Retry.MaxRetryAttempts to 0.");
        if (retry is not null)
        {
            Check(retry, Require);
        }

        Require(
            config?.Hedging is null or { MaxHedgedAttempts: >= 1 and <= 10 },
            $"Hedging.MaxHedgedAttempts is {config?.Hedging?.MaxHedgedAttempts}. It must be from 1 to 10.");
        var hedging = config?.Hedging is { } hedge ? Prepared(new ResiliencePipelineBuilder<object>()).AddHedging(Guard(hedge)).Build() : null;
        if (retry is { MaxRetryAttempts: > 0 } && Guard(retry) is var guarded)
        {
            configurePipeline = builder => builder.AddRetry(guarded);
        }

        var pipeline = configurePipeline is null ? null : new Lazy<ResiliencePipeline>(() =>
        {
            var builder = Prepared(new ResiliencePipelineBuilder());
            configurePipeline(builder);
            return builder.Build();
        });
        if (retry is null || options.ConfigureTelemetry is not null)
        {
            _ = pipeline?.Value; // else with the first retry: Polly is a sixth of what the pool adds to a first answer
        }

        return new CallPlan(
            pipeline,
            OnFailureOnly: retry is { MaxRetryAttempts: 0 } || retry?.ShouldHandle == ChannelRetryStrategyOptions.Preset,
            hedging,
            config?.Idempotent);

        void Require(bool isValid, string message) =>
            ChannelPoolOptions.Require(isValid, config is null ? message : $"{CallOptionValues.NameOf(config)}: {message}", nameof(options));

        TBuilder Prepared<TBuilder>(TBuilder builder)
            where TBuilder : ResiliencePipelineBuilderBase
        {
            (builder.Name, builder.InstanceName, builder.TimeProvider) = ("PoolingInvoker", pool.Name, pool.State.Time);
            options.ConfigureTelemetry?.Invoke(builder);
            return builder;
        }
    }

    public static void Attach(ResilienceContext context, PooledCall call) => context.Properties.Set(Call, call);

    /// <summary>The preset predicate. Outside of a pooled call there is no method to ask about, so only what never left is retried.</summary>
    public static bool ShouldRetry(ResilienceContext context, Exception? exception) =>
        exception is not null
        && CallFaults.Judge(exception) is var fault
        && (fault.IsTransient || exception is TimeoutRejectedException)
        && (context.Properties.TryGetValue(Call, out var call) ? call.MayBeSentAgain(exception) : fault.NeverLeft);

    /// <summary>The preset delay: what the server asks for; none before the first retry, if a channel is ready for it; else the backoff.</summary>
    public static TimeSpan? DelayBeforeRetry(RetryDelayGeneratorArguments<object> arguments) =>
        arguments.Context.Properties.TryGetValue(Call, out var call) ? call.DelayBeforeRetry(arguments.Outcome.Exception, arguments.AttemptNumber) : null;

    // What Polly says of these does not name the option.
    private static void Check(ChannelRetryStrategyOptions retry, Action<bool, string> Require)
    {
        Require(retry.ShouldHandle is not null, "Retry.ShouldHandle is null. Leave it as it is for the preset.");
        Require(retry.MaxRetryAttempts >= 0, $"Retry.MaxRetryAttempts is {retry.MaxRetryAttempts}. It must be at least 0, which turns the retry off.");
        Require(Enum.IsDefined(retry.BackoffType), $"Retry.BackoffType is {retry.BackoffType}, which is none. Leave it as it is for Exponential.");
        Require(IsDelay(retry.Delay), $"Retry.Delay is {retry.Delay}. It must be from 0 to 1 day.");
        Require(retry.MaxDelay is not { } longest || IsDelay(longest), $"Retry.MaxDelay is {retry.MaxDelay}. It must be from 0 to 1 day, or null for no bound.");
        Require(retry.Randomizer is not null, "Retry.Randomizer is null. Leave it as it is for random jitter.");

        static bool IsDelay(TimeSpan delay) => delay >= TimeSpan.Zero && delay <= TimeSpan.FromDays(1);
    }

    // No hedge where the budget of the pool is spent.
    private static HedgingStrategyOptions<object> Guard(ChannelHedgingStrategyOptions hedging) => new()
    {
        Name = hedging.Name,
        Delay = hedging.Delay,
        MaxHedgedAttempts = hedging.MaxHedgedAttempts,
        ShouldHandle = hedging.ShouldHandle,
        DelayGenerator = arguments =>
            arguments.Context.Properties.TryGetValue(Call, out var call) && !call.MayBeHedged ? ValueTask.FromResult(Timeout.InfiniteTimeSpan)
            : hedging.DelayGenerator is { } generator ? generator(arguments)
            : ValueTask.FromResult(hedging.Delay),
        OnHedging = hedging.OnHedging,
        ActionGenerator = arguments =>
            !arguments.PrimaryContext.Properties.TryGetValue(Call, out var call) || call.MayBeHedged ? hedging.ActionGenerator(arguments) : null,
    };

    // The user's predicate is asked only where a retry is safe, so that no time is spent on backing off from what will not be sent, and
    // a backoff that the call would not outlast is not begun: the call ends with what it has.
    private static RetryStrategyOptions Guard(ChannelRetryStrategyOptions retry) => new()
    {
        Name = retry.Name,
        MaxRetryAttempts = retry.MaxRetryAttempts,
        BackoffType = retry.BackoffType,
        UseJitter = retry.UseJitter,
        Delay = retry.Delay,
        MaxDelay = retry.MaxDelay,
        DelayGenerator = retry.DelayGenerator,
        OnRetry = async arguments =>
        {
            if (arguments.Outcome.Exception is { } last
                && arguments.Context.Properties.TryGetValue(Call, out var call) && call.EndsWithin(arguments.RetryDelay))
            {
                ExceptionDispatchInfo.Throw(last);
            }

            if (retry.OnRetry is { } onRetry)
            {
                await onRetry(arguments).ConfigureAwait(false);
            }
        },
        Randomizer = retry.Randomizer,
        ShouldHandle = arguments =>
            !arguments.Context.Properties.TryGetValue(Call, out var call) || call.MayBeSentAgain(arguments.Outcome.Exception)
                ? retry.ShouldHandle(arguments)
                : ValueTask.FromResult(false),
    };
}

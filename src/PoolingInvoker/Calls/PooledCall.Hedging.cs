using Polly;

namespace PoolingInvoker;

// Hedging: several attempts of a unary call at a time, each on a channel of its own. The first answer is the call.
internal sealed partial class PooledCall<TRequest, TResponse>
{
    private bool _hedgesNoMore; // a server has asked for that

    public bool MayBeHedged => !_disposed && !_hedgesNoMore && _environment.Budget is not { AllowsRetry: false };

    private async Task<Outcome<TResponse>> RunHedgedAsync(CancellationToken stop)
    {
        var hedges = new Hedges(this, stop);
        var outcome = await EnterAsync(
            async context =>
            {
                var outcome = await _plan.Hedging!.ExecuteOutcomeAsync(static (context, hedges) => hedges.ExecuteAsync(context), context, hedges).ConfigureAwait(false);

                // The context of the attempt whose outcome was taken has become this one.
                if (context.Properties.TryGetValue(Hedges.Attempt, out var attempt) && attempt.EndedWith(outcome))
                {
                    Publish(attempt);
                }

                return outcome;
            },
            stop).ConfigureAwait(false);
        if (_current is not null)
        {
            return outcome;
        }

        return outcome.Exception is null ? outcome : Outcome.FromException<TResponse>(Explain(outcome.Exception, stop));
    }

    private sealed class Hedges(PooledCall<TRequest, TResponse> call, CancellationToken stop)
    {
        /// <summary>The attempt that an execution made.</summary>
        public static readonly ResiliencePropertyKey<CallAttempt<TRequest, TResponse>> Attempt = new("PoolingInvoker.Attempt");

        private readonly List<CallAttempt<TRequest, TResponse>> _attempts = [];
        private int _started; // guarded by a lock on the attempts

        public async ValueTask<Outcome<TResponse>> ExecuteAsync(ResilienceContext context)
        {
            var cancellationToken = context.CancellationToken;
            try
            {
                var attempt = await StartAsync(cancellationToken).ConfigureAwait(false);
                context.Properties.Set(Attempt, attempt);
                using var registration = cancellationToken.UnsafeRegister(
                    static state =>
                    {
                        // The deadline and the token of the call end an attempt on the channel.
                        var (attempt, call, stop) = ((CallAttempt<TRequest, TResponse>, PooledCall<TRequest, TResponse>, CancellationToken))state!;
                        if (call._disposed || !stop.IsCancellationRequested)
                        {
                            attempt.EndByDriver();
                        }
                    },
                    (attempt, call, stop));
                var outcome = await OutcomeOfAsync(attempt).ConfigureAwait(false);
                call._hedgesNoMore |= outcome.Exception is { } failure && CallFaults.Pushback(failure) == Timeout.InfiniteTimeSpan;
                return outcome;
            }
#pragma warning disable CA1031 // The pipeline judges.
            catch (Exception exception)
#pragma warning restore CA1031
            {
                return Outcome.FromException<TResponse>(exception);
            }
        }

        private async ValueTask<CallAttempt<TRequest, TResponse>> StartAsync(CancellationToken cancellationToken)
        {
            PooledChannel? last = null;
            TimeSpan? pushback = null;
            int previousAttempts;
            lock (_attempts)
            {
                if (_attempts.Count > 0)
                {
                    last = _attempts[^1].Channel;
                    pushback = _attempts[^1].Failure is { } failure ? CallFaults.Pushback(failure) : null;
                    call._environment.Pool.CountRetry();
                }

                previousAttempts = _started++;
            }

            if (pushback is { } pause)
            {
                await Task.Delay(pause, call.TimeProvider, cancellationToken).ConfigureAwait(false); // the server asks for it
            }

            var attempt = await call.StartAttemptAsync(avoid: last, previousAttempts, cancellationToken).ConfigureAwait(false);
            lock (_attempts)
            {
                _attempts.Add(attempt);
            }

            return attempt;
        }
    }
}

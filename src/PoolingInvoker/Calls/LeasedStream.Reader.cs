using System.Runtime.CompilerServices;
using Grpc.Core;

namespace PoolingInvoker;

/// <summary>What the application holds of a stream: the handle of the call, its responses and its requests, in one object.</summary>
/// <remarks>
/// The responses: until the first one they follow the call from attempt to attempt; then they pass through. A read or a write under way keeps the
/// handle alive: the application may have nothing left of the call but the task of that.
/// </remarks>
internal sealed partial class LeasedStream<TRequest, TResponse>(StreamingCall<TRequest, TResponse> call)
    : CallHandle, IAsyncStreamReader<TResponse>, IClientStreamWriter<TRequest>
    where TRequest : class
    where TResponse : class
{
    private Task<bool>? _first; // the read of the first response, until that is there

    protected override PooledCall Call => call;

    public TResponse Current => call.FinalStream?.ResponseStream is { } stream ? stream.Current : default!;

    public Task<bool> MoveNext(CancellationToken cancellationToken)
    {
        if (_first is { IsCompleted: false })
        {
            return Task.FromException<bool>(new InvalidOperationException("Can't read the next message because the previous read is still in progress."));
        }

        if (call.FinalStream is { } attempt)
        {
            return ReadAsync(attempt.ReadAsync(cancellationToken), attempt);
        }

        call.ThrowIfDisposed();
        return _first = ReadFirstAsync(cancellationToken);
    }

    [AsyncMethodBuilder(typeof(FailingTaskMethodBuilder<>))]
    private async Task<bool> ReadAsync(Task<bool> reading, StreamAttempt<TResponse> attempt)
    {
        await ((Task)reading).ConfigureAwait(ConfigureAwaitOptions.SuppressThrowing);
        if (attempt.FailureOf(reading) is not { } failure)
        {
            return Seen(attempt, reading);
        }

        attempt.MetFailure(failure);
        return await new FailureOf<bool>(call.EndOf(attempt, failure, call.IsDisposed || call.IsPoolDisposed));
    }

    [AsyncMethodBuilder(typeof(FailingTaskMethodBuilder<>))]
    private async Task<bool> ReadFirstAsync(CancellationToken cancellationToken)
    {
        // Later is in the midst of this read, whether the channel has seen it by then or not.
        var wasDisposed = call.IsDisposed || call.IsPoolDisposed;
        var attempt = (await call.NextAttemptAsync(failed: null, cancellationToken).ConfigureAwait(false))!;
        while (true)
        {
            var reading = attempt.ReadAsync(cancellationToken);
            await ((Task)reading).ConfigureAwait(ConfigureAwaitOptions.SuppressThrowing);
            var failure = attempt.FailureOf(reading);
            var isLast = failure is null ? call.TryCommit(attempt) : EndsWith(attempt, failure);
            if (!isLast && await call.NextAttemptAsync(attempt, cancellationToken).ConfigureAwait(false) is { } next)
            {
                attempt = next;
                continue;
            }

            if (failure is not null)
            {
                return await new FailureOf<bool>(call.EndOf(attempt, failure, wasDisposed));
            }

            attempt.Answered(); // the headers, which say so too, may not have been seen yet
            _first = null; // a stream may last long, and what this read took is kept no longer
            return Seen(attempt, reading);
        }
    }

    // Whether the failure is the end of the call. What the application does wrong, such as two reads at a time, ends nothing.
    private bool EndsWith(StreamAttempt<TResponse> attempt, Exception failure)
    {
        if (failure is InvalidOperationException and not ObjectDisposedException)
        {
            return true;
        }

        attempt.Judge(failure, call);

        // Statement order is important: where no other attempt may follow, this one is the call before its failure is seen.
        var mayMoveOn = !attempt.IsCommitted && (attempt.IsAbandoned || call.MayMoveOn(failure));
        attempt.MetFailure(failure);
        return !mayMoveOn && call.TryCommit(attempt);
    }

    private bool Seen(StreamAttempt<TResponse> attempt, Task<bool> reading)
    {
        var more = reading.Result;
        if (!more)
        {
            attempt.Release(exception: null);
        }

        GC.KeepAlive(this);
        return more;
    }
}

using System.Runtime.CompilerServices;

namespace PoolingInvoker;

/// <summary>What the application holds of a stream: the handle of the call, its responses and its requests, in one object.</summary>
/// <remarks>
/// Until the first response a read follows the call from attempt to attempt. Requests can be written before there is a channel, and until the
/// call is committed they are kept, and written again to the next attempt if one fails. Then both pass through. A read or a write under way keeps
/// the handle alive: the application may have nothing left of the call but the task of that.
/// </remarks>
internal sealed class LeasedStream<TRequest, TResponse>(StreamingCall<TRequest, TResponse> call)
    : CallHandle, IAsyncStreamReader<TResponse>, IClientStreamWriter<TRequest>
    where TRequest : class
    where TResponse : class
{
    private Task<bool>? _first; // the read of the first response, until that is there
    private Task _writing = Task.CompletedTask; // the last write that was not passed through

    protected override PooledCall Call => call;

    public TResponse Current => call.FinalStream?.ResponseStream is { } stream ? stream.Current : default!;

    public WriteOptions? WriteOptions
    {
        get => call.FinalStream?.RequestStream is { } stream ? stream.WriteOptions : call.WriteOptions;
        set => call.SetWriteOptions(value);
    }

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

    public Task WriteAsync(TRequest message) => WriteAsync(message, CancellationToken.None);

    public Task WriteAsync(TRequest message, CancellationToken cancellationToken)
    {
        if (message is null)
        {
            return Task.FromException(new ArgumentNullException(nameof(message)));
        }

        if (call.FinalStream is { RequestStream: { } stream, Replayed.IsCompleted: true } attempt)
        {
            try
            {
                var writing = stream.WriteAsync(new ReplayableRequest(message, writeOptions: null, keepsBytes: false), cancellationToken);
                return writing.IsCompletedSuccessfully ? writing : WriteAsync(writing, attempt);
            }
            catch (ObjectDisposedException) when (call.EndOfWrites(attempt) is { } end)
            {
                return Task.FromException(end);
            }
        }

        call.ThrowIfDisposed();
        return call.AreRequestsComplete ? Task.FromException(new InvalidOperationException("Request stream has already been completed."))
            : _writing.IsCompleted ? _writing = WriteUncommittedAsync(message, cancellationToken)
            : Task.FromException(new InvalidOperationException("Can't write the message because the previous write is in progress."));
    }

    public Task CompleteAsync()
    {
        call.ThrowIfDisposed();
        return _writing.IsCompleted
            ? call.CompleteRequestsAsync()
            : Task.FromException(new InvalidOperationException("Can't complete the client stream writer because the previous write is in progress."));
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

    [AsyncMethodBuilder(typeof(FailingTaskMethodBuilder<>))]
    private async Task<bool> WriteAsync(Task writing, StreamAttempt<TResponse> attempt)
    {
        await writing.ConfigureAwait(ConfigureAwaitOptions.SuppressThrowing);
        GC.KeepAlive(this);
        return await new FailureOf<bool>(attempt.FailureOf(writing) is var failure && failure is ObjectDisposedException ? call.EndOfWrites(attempt) ?? failure : failure);
    }

    private async Task WriteUncommittedAsync(TRequest message, CancellationToken cancellationToken)
    {
        var request = new ReplayableRequest(message, call.WriteOptions, call.KeepsRequests);
        var attempt = await call.NextAttemptAsync(failed: null, cancellationToken).ConfigureAwait(false);
        while (attempt is not null)
        {
            var current = attempt;
            try
            {
                await call.WaitAsync(current.Replayed, cancellationToken).ConfigureAwait(false);
                var hadHeaders = current.HasHeaders;
                await current.RequestStream!.WriteAsync(request, cancellationToken).ConfigureAwait(false);
                attempt = call.Keep(request, current, hadHeaders) ? null : await call.NextAttemptAsync(current, cancellationToken).ConfigureAwait(false);
            }
            catch (ObjectDisposedException) when (call.IsEndedByToken)
            {
                throw call.EndOfWrites(current)!;
            }
            catch (Exception exception)
                when (current.IsBroken
                    || (!current.IsCommitted && (current.IsAbandoned || call.HasEndedOn(current) || current.Judge(exception, call).IsTransient)))
            {
                // What the application has done wrong, such as a message that cannot be written, does not end the call. What the loop judges is
                // the end of the attempt, which can say more than the writer met; behind the headers it sees no end.
                if (current.HasHeaders)
                {
                    current.MetFailure(exception);
                }
                else if (!current.IsAbandoned && !await current.IsSoonOverAsync().ConfigureAwait(false))
                {
                    throw;
                }

                attempt = await call.NextAttemptAsync(current, cancellationToken).ConfigureAwait(false);
                if (attempt is null && current.IsBroken)
                {
                    throw current.NewEndException();
                }

                if (attempt is null)
                {
                    throw;
                }
            }
        }

        _writing = Task.CompletedTask; // a stream may last long, and what this write took is kept no longer
        GC.KeepAlive(this);
    }
}

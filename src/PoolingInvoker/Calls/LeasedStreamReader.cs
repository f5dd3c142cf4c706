using Grpc.Core;

namespace PoolingInvoker;

/// <summary>The responses of a call. Until the first one it follows the call from attempt to attempt; then it passes through.</summary>
/// <remarks>A read under way keeps the handle alive: the application may have nothing left of the call but the task of that read.</remarks>
internal sealed class LeasedStreamReader<TRequest, TResponse>(CallHandle<TRequest, TResponse> handle) : IAsyncStreamReader<TResponse>
    where TRequest : class
    where TResponse : class
{
    private Task<bool>? _first;

    public TResponse Current => handle.Call.Settled?.ResponseStream is { } stream ? stream.Current : default!;

    public Task<bool> MoveNext(CancellationToken cancellationToken)
    {
        // While it waits for an attempt no channel sees it.
        if (_first is { IsCompleted: false })
        {
            return Task.FromException<bool>(new InvalidOperationException("Can't read the next message because the previous read is still in progress."));
        }

        if (handle.Call.Settled is { } attempt)
        {
            return ReadAsync(attempt, cancellationToken);
        }

        handle.Call.ThrowIfDisposed();
        return _first = ReadFirstAsync(cancellationToken);
    }

    private async Task<bool> ReadAsync(CallAttempt<TRequest, TResponse> attempt, CancellationToken cancellationToken)
    {
        bool more;
        try
        {
            more = await attempt.ResponseStream!.MoveNext(cancellationToken).ConfigureAwait(false);
        }
        catch (Exception exception)
        {
            attempt.ReportFailure(exception);
            if (handle.Call.EndedOtherwise(exception, attempt, handle.Call.IsDisposed || handle.Call.IsPoolDisposed) is { } ended)
            {
                throw ended;
            }

            throw;
        }

        return Seen(attempt, more);
    }

    private async Task<bool> ReadFirstAsync(CancellationToken cancellationToken)
    {
        var call = handle.Call;
        var wasDisposed = call.IsDisposed || call.IsPoolDisposed; // later is in the midst of this read, whether the channel has seen it by then or not
        var attempt = (await call.NextAttemptAsync(failed: null, cancellationToken).ConfigureAwait(false))!;
        while (true)
        {
            try
            {
                var more = await attempt.ResponseStream!.MoveNext(cancellationToken).ConfigureAwait(false);
                if (attempt.TryCommit())
                {
                    attempt.Answered(); // the headers, which say so too, may not have been seen yet
                    return Seen(attempt, more);
                }

                attempt = (await call.NextAttemptAsync(attempt, cancellationToken).ConfigureAwait(false))!;
            }
            catch (Exception exception) when (exception is not InvalidOperationException || exception is ObjectDisposedException)
            {
                attempt.Judge(exception);

                // Statement order is important: where no other attempt may follow, this one is the call before its failure is seen.
                var mayMoveOn = !attempt.IsCommitted && (attempt.EndedByDriver || call.MayMoveOn(exception));
                attempt.ReportFailure(exception);
                var next = mayMoveOn || !attempt.TryCommit() ? await call.NextAttemptAsync(attempt, cancellationToken).ConfigureAwait(false) : null;
                if (next is not null)
                {
                    attempt = next;
                    continue;
                }

                if (call.EndedOtherwise(exception, attempt, wasDisposed) is { } ended)
                {
                    throw ended;
                }

                throw;
            }
        }
    }

    private bool Seen(CallAttempt<TRequest, TResponse> attempt, bool more)
    {
        if (!more)
        {
            attempt.Complete(exception: null);
        }

        GC.KeepAlive(handle);
        return more;
    }
}

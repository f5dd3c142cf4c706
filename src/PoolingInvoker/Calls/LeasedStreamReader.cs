using Grpc.Core;

namespace PoolingInvoker;

/// <summary>The responses of a call. Until the first one it follows the call from attempt to attempt; then it passes through.</summary>
/// <remarks>A read under way keeps the handle alive: the application may have nothing left of the call but the task of that read.</remarks>
internal sealed class LeasedStreamReader<TRequest, TResponse>(CallHandle<TRequest, TResponse> handle) : IAsyncStreamReader<TResponse>
    where TRequest : class
    where TResponse : class
{
    private Task<bool>? _first;

    public TResponse Current => handle.Call.Final?.ResponseStream is { } stream ? stream.Current : default!;

    public Task<bool> MoveNext(CancellationToken cancellationToken)
    {
        // While it waits for an attempt no channel sees it.
        if (_first is { IsCompleted: false })
        {
            return Task.FromException<bool>(new InvalidOperationException("Can't read the next message because the previous read is still in progress."));
        }

        if (handle.Call.Final is { } attempt)
        {
            return ReadAsync(attempt, cancellationToken);
        }

        handle.Call.ThrowIfDisposed();
        return _first = ReadFirstAsync(cancellationToken);
    }

    private async Task<bool> ReadAsync(StreamAttempt<TResponse> attempt, CancellationToken cancellationToken)
    {
        bool more;
        try
        {
            more = await attempt.ResponseStream!.MoveNext(cancellationToken).ConfigureAwait(false);
        }
        catch (ObjectDisposedException) when (handle.Call.HasEndedOn(attempt))
        {
            return attempt.Inner.GetStatus().StatusCode == StatusCode.OK ? false : throw attempt.NewEndException();
        }
        catch (Exception exception)
        {
            attempt.MetFailure(exception);
            ThrowIfOther(exception, handle.Call.EndOf(attempt, exception, handle.Call.IsDisposed || handle.Call.IsPoolDisposed));
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
                if (call.TryCommit(attempt))
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
                var mayMoveOn = !attempt.IsCommitted && (attempt.IsEndedByLoop || call.MayMoveOn(exception));
                attempt.MetFailure(exception);
                var next = mayMoveOn || !call.TryCommit(attempt) ? await call.NextAttemptAsync(attempt, cancellationToken).ConfigureAwait(false) : null;
                if (next is not null)
                {
                    attempt = next;
                    continue;
                }

                ThrowIfOther(exception, call.EndOf(attempt, exception, wasDisposed));
                throw;
            }
        }
    }

    private static void ThrowIfOther(Exception met, Exception end)
    {
        if (end != met)
        {
            throw end;
        }
    }

    private bool Seen(StreamAttempt<TResponse> attempt, bool more)
    {
        if (!more)
        {
            attempt.Release(exception: null);
        }

        GC.KeepAlive(handle);
        return more;
    }
}

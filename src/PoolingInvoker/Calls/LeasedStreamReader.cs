using System.Runtime.ExceptionServices;
using Grpc.Core;

namespace PoolingInvoker;

/// <summary>The responses of a call. Until the first one it follows the call from attempt to attempt; then it passes through.</summary>
/// <remarks>A read under way keeps the handle alive: the application may have nothing left of the call but the task of that read.</remarks>
internal sealed class LeasedStreamReader<TRequest, TResponse>(StreamingCall<TRequest, TResponse> call, CallHandle handle)
    : IAsyncStreamReader<TResponse>
    where TRequest : class
    where TResponse : class
{
    private Task<bool>? _first;

    public TResponse Current => call.FinalStream?.ResponseStream is { } stream ? stream.Current : default!;

    public Task<bool> MoveNext(CancellationToken cancellationToken)
    {
        // While it waits for an attempt no channel sees it.
        if (_first is { IsCompleted: false })
        {
            return Task.FromException<bool>(new InvalidOperationException("Can't read the next message because the previous read is still in progress."));
        }

        if (call.FinalStream is { } attempt)
        {
            return ReadAsync(attempt, cancellationToken);
        }

        call.ThrowIfDisposed();
        return _first = ReadFirstAsync(cancellationToken);
    }

    private async Task<bool> ReadAsync(StreamAttempt<TResponse> attempt, CancellationToken cancellationToken)
    {
        bool more;
        try
        {
            more = await attempt.ResponseStream!.MoveNext(cancellationToken).ConfigureAwait(false);
        }
        catch (ObjectDisposedException) when (call.HasEndedOn(attempt))
        {
            return attempt.GetStatus().StatusCode == StatusCode.OK ? false : throw attempt.NewEndException();
        }
        catch (Exception exception)
        {
            attempt.MetFailure(exception);
            ExceptionDispatchInfo.Throw(call.EndOf(attempt, exception, call.IsDisposed || call.IsPoolDisposed));
            throw;
        }

        return Seen(attempt, more);
    }

    private async Task<bool> ReadFirstAsync(CancellationToken cancellationToken)
    {
        // Later is in the midst of this read, whether the channel has seen it by then or not.
        var wasDisposed = call.IsDisposed || call.IsPoolDisposed;
        var attempt = (await call.NextAttemptAsync(failed: null, cancellationToken).ConfigureAwait(false))!;
        while (true)
        {
            try
            {
                var more = await attempt.ResponseStream!.MoveNext(cancellationToken).ConfigureAwait(false);
                if (call.TryCommit(attempt) || await call.NextAttemptAsync(attempt, cancellationToken).ConfigureAwait(false) is not { } next)
                {
                    attempt.Answered(); // the headers, which say so too, may not have been seen yet
                    return Seen(attempt, more);
                }

                attempt = next;
            }
            catch (Exception exception) when (exception is not InvalidOperationException || exception is ObjectDisposedException)
            {
                attempt.Judge(exception, call);

                // Statement order is important: where no other attempt may follow, this one is the call before its failure is seen.
                var mayMoveOn = !attempt.IsCommitted && (attempt.IsAbandoned || call.MayMoveOn(exception));
                attempt.MetFailure(exception);
                if ((mayMoveOn || !call.TryCommit(attempt))
                    && await call.NextAttemptAsync(attempt, cancellationToken).ConfigureAwait(false) is { } next)
                {
                    attempt = next;
                    continue;
                }

                ExceptionDispatchInfo.Throw(call.EndOf(attempt, exception, wasDisposed));
                throw;
            }
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

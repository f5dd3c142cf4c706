using System.Runtime.CompilerServices;
using Grpc.Core;

namespace PoolingInvoker;

// The requests. They can be written before there is a channel, and until the call is committed they are kept, and written again to the next
// attempt if one fails. Then they pass through.
internal sealed partial class LeasedStream<TRequest, TResponse>
{
    private Task _writing = Task.CompletedTask; // the last write that was not passed through

    public WriteOptions? WriteOptions
    {
        get => call.FinalStream?.RequestStream is { } stream ? stream.WriteOptions : call.WriteOptions;
        set => call.SetWriteOptions(value);
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

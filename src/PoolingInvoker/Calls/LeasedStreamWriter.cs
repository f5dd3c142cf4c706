using Grpc.Core;

namespace PoolingInvoker;

/// <summary>
/// The requests of a call. The first one can be written before there is a channel, and is written again if the attempt that it was
/// written to fails under it: the application has not had it back. When it is through it passes through.
/// </summary>
internal sealed class LeasedStreamWriter<TRequest, TResponse>(CallHandle<TRequest, TResponse> handle) : IClientStreamWriter<TRequest>
    where TRequest : class
    where TResponse : class
{
    private WriteOptions? _writeOptions = handle.Call.Options.WriteOptions;
    private int _writing;

    public WriteOptions? WriteOptions
    {
        get => handle.Call.Settled?.RequestStream is { } stream ? stream.WriteOptions : _writeOptions;
        set
        {
            _writeOptions = value;
            if (handle.Call.Settled?.RequestStream is { } stream)
            {
                stream.WriteOptions = value;
            }
        }
    }

    public Task WriteAsync(TRequest message) => WriteAsync(message, CancellationToken.None);

    public Task WriteAsync(TRequest message, CancellationToken cancellationToken)
    {
        if (handle.Call.Settled?.RequestStream is { } stream)
        {
            return stream.WriteAsync(message, cancellationToken);
        }

        handle.Call.ThrowIfDisposed();
        return handle.Call.AreRequestsComplete ? Task.FromException(new InvalidOperationException("Can't write the message because the request stream is complete."))
            : Interlocked.Exchange(ref _writing, 1) == 0 ? WriteFirstAsync(message, cancellationToken)
            : Task.FromException(new InvalidOperationException("Can't write the message because the previous write is in progress."));
    }

    public Task CompleteAsync()
    {
        handle.Call.ThrowIfDisposed();
        return Volatile.Read(ref _writing) == 0
            ? handle.Call.CompleteRequestsAsync()
            : Task.FromException(new InvalidOperationException("Can't complete the client stream writer because the previous write is in progress."));
    }

    private async Task WriteFirstAsync(TRequest message, CancellationToken cancellationToken)
    {
        try
        {
            var call = handle.Call;
            var attempt = await call.FirstAttemptAsync(cancellationToken).ConfigureAwait(false);
            while (true)
            {
                try
                {
                    attempt.RequestStream!.WriteOptions = _writeOptions;
                    await attempt.RequestStream.WriteAsync(message, cancellationToken).ConfigureAwait(false);
                    if (attempt.TryCommit())
                    {
                        return;
                    }

                    attempt = (await call.NextAttemptAsync(attempt).ConfigureAwait(false))!;
                }
                catch (Exception exception) when (!attempt.IsCommitted && CallFaults.IsTransient(exception) && call.MayMoveOn(exception))
                {
                    // Only the transport: what the application has done wrong, such as a message that cannot be written, is not over.
                    attempt.ReportFailure(exception);
                    var next = await call.NextAttemptAsync(attempt).ConfigureAwait(false);
                    if (next is null)
                    {
                        throw;
                    }

                    attempt = next;
                }
            }
        }
        finally
        {
            Volatile.Write(ref _writing, 0);
        }
    }
}

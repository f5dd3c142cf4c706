using Grpc.Core;

namespace PoolingInvoker;

/// <summary>
/// Ends what a call waits for: a lease, a backoff, a strategy. Strategies of the user's register callbacks with its token; what these throw
/// reaches neither the thread of a timer nor the caller that ends its call.
/// </summary>
internal sealed class CallStop : IDisposable
{
    private readonly CancellationTokenSource _source = new();
    private readonly CancellationTokenRegistration _registration;
    private readonly ITimer? _timer;

    public CallStop(CallOptions options, TimeProvider time)
    {
        Token = _source.Token;
        var due = GivenOptions.DueTime(options.Deadline, time);
        if (due == TimeSpan.Zero)
        {
            Cancel();
        }
        else if (due != Timeout.InfiniteTimeSpan)
        {
            _timer = time.CreateTimer(static stop => ((CallStop)stop!).Cancel(), this, due, Timeout.InfiniteTimeSpan);
        }

        _registration = options.CancellationToken.UnsafeRegister(static stop => ((CallStop)stop!).Cancel(), this);
    }

    public CancellationToken Token { get; }

    public bool IsCancelled => Token.IsCancellationRequested;

    public void Cancel()
    {
        try
        {
            _source.Cancel();
        }
        catch (Exception exception) when (exception is AggregateException or ObjectDisposedException)
        {
            // Of a callback; or there was nothing left to end.
        }
    }

    public void Dispose()
    {
        _registration.Dispose();
        _timer?.Dispose();
        _source.Dispose();
    }
}

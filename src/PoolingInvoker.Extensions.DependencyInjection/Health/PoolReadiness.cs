using Microsoft.Extensions.Diagnostics.HealthChecks;

namespace PoolingInvoker;

/// <summary>
/// Whether a pool has been connected up to its minimum, once. It stays ready: that a server is gone is no reason to take all apps that call it away,
/// and the check of health says so.
/// </summary>
internal sealed class PoolReadiness(Func<ChannelPool> poolToCheck) : IHealthCheck
{
    private readonly object _lock = new();
    private bool _isConnecting;
    private bool _isReady;
    private Exception? _error; // why it could not be connected, the last time

    public Task<HealthCheckResult> CheckHealthAsync(HealthCheckContext context, CancellationToken cancellationToken = default)
    {
        var pool = poolToCheck();
        bool isReady;
        Exception? error;
        lock (_lock)
        {
            (isReady, error) = (_isReady, _error);
            if (!_isReady && !_isConnecting)
            {
                _isConnecting = true;
                _ = Task.Run(() => ConnectAsync(pool), CancellationToken.None);
            }
        }

        var statistics = pool.GetStatistics();
        var data = PoolFigures.Of(statistics, pool.GetChannels());
        return Task.FromResult(isReady
            ? HealthCheckResult.Healthy($"The pool to {pool.Name} is connected.", data)
            : new HealthCheckResult(
                context.Registration.FailureStatus,
                $"The pool to {pool.Name} connects: {data["ConnectedChannels"]} of {statistics.MinPoolSize} channels{(error is null ? "." : $", and could not before: {error.Message}")}",
                error,
                data));
    }

    private async Task ConnectAsync(ChannelPool pool)
    {
        Exception? error = null;
        try
        {
            await pool.ConnectAsync(CancellationToken.None).ConfigureAwait(false);
        }
        catch (Exception exception) when (exception is not OutOfMemoryException) // The next check tells it, and tries again.
        {
            error = exception;
        }

        lock (_lock)
        {
            (_isConnecting, _isReady, _error) = (false, error is null, error);
        }
    }
}

using Grpc.Core;
using Microsoft.Extensions.Diagnostics.HealthChecks;

namespace PoolingInvoker;

/// <summary>
/// Whether a pool can carry calls. Where a channel is connected that is seen, and nothing is done. Where none is, it is tried, as a call would try
/// it, under the backoff of the pool: an app that gets no calls because it is unhealthy would otherwise stay so.
/// </summary>
internal sealed class PoolHealth(Func<ChannelPool> poolToCheck) : IHealthCheck
{
    public async Task<HealthCheckResult> CheckHealthAsync(HealthCheckContext context, CancellationToken cancellationToken = default)
    {
        var pool = poolToCheck(); // what it throws is the outcome of the check
        var error = pool.GetChannels().Any(MayCarry) ? null : await TryAsync(pool, cancellationToken).ConfigureAwait(false);
        return Judge(pool.Name, pool.GetStatistics(), pool.GetChannels(), error, context.Registration.FailureStatus);
    }

    /// <summary>What is told of a pool with these figures, where trying to connect has failed with this error.</summary>
    internal static HealthCheckResult Judge(
        string name, ChannelPoolStatistics statistics, IReadOnlyList<PooledChannelSnapshot> channels, Exception? error, HealthStatus failureStatus)
    {
        var data = PoolFigures.Of(statistics, channels);
        var broken = channels.Where(static channel => TakesCalls(channel) && !MayBe(channel.ConnectivityState)).ToList();
        if (!channels.Any(MayCarry) && (error ?? broken.Find(static channel => channel.LastError is not null).LastError) is { } cause)
        {
            return new HealthCheckResult(failureStatus, $"No channel to {name} can connect: {cause.Message}", cause, data);
        }

        List<string> complaints = [];
        if (broken.Count > 0)
        {
            var endpoints = string.Join(", ", broken.Select(static channel => channel.Endpoint).Distinct());
            complaints.Add($"{broken.Count} of {statistics.Channels} channels cannot connect ({endpoints})");
        }

        if (statistics.Channels < statistics.MinPoolSize && statistics.ChannelsCreated > 0)
        {
            complaints.Add($"there are {statistics.Channels} channels, and MinPoolSize is {statistics.MinPoolSize}");
        }

        if (statistics.CallsWaiting > 0)
        {
            complaints.Add($"{statistics.CallsWaiting} calls wait for room on {statistics.Channels} channels (MaxPoolSize {statistics.MaxPoolSize})");
        }

        return complaints.Count > 0
            ? HealthCheckResult.Degraded($"The pool to {name}: {string.Join("; ", complaints)}.", broken.Find(static channel => channel.LastError is not null).LastError, data)
            : HealthCheckResult.Healthy($"{statistics.Channels} channels to {name}, {statistics.CallsInFlight} calls in flight.", data);
    }

    // Connects what is idle or not there yet. What is broken is replaced when it is asked for a lease.
    private static async Task<Exception?> TryAsync(ChannelPool pool, CancellationToken cancellationToken)
    {
        try
        {
            await pool.ConnectAsync(cancellationToken).ConfigureAwait(false);
            return null;
        }
        catch (Exception exception) when (!cancellationToken.IsCancellationRequested && exception is not OutOfMemoryException) // Whatever it is, it is why there is no channel.
        {
            try
            {
                (await pool.AcquireAsync(cancellationToken).ConfigureAwait(false)).Dispose();
                return exception;
            }
            catch (Exception last) when (!cancellationToken.IsCancellationRequested && last is not OutOfMemoryException) // The same.
            {
                return last;
            }
        }
    }

    private static bool TakesCalls(PooledChannelSnapshot channel) => channel.State is PooledChannelState.Active or PooledChannelState.Refreshing or PooledChannelState.Replacing;

    // Over a transport of the user's own a state may not be told: its calls show what becomes of them.
    private static bool MayCarry(PooledChannelSnapshot channel) => TakesCalls(channel) && channel.ConnectivityState is null or ConnectivityState.Ready;

    private static bool MayBe(ConnectivityState? state) => state is not (ConnectivityState.TransientFailure or ConnectivityState.Shutdown);
}

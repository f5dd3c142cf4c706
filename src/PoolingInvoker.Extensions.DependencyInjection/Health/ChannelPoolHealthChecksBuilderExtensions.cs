using Microsoft.Extensions.Diagnostics.HealthChecks;
using PoolingInvoker;

namespace Microsoft.Extensions.DependencyInjection;

/// <summary>Adds health checks of the channel pools of gRPC clients.</summary>
public static class ChannelPoolHealthChecksBuilderExtensions
{
    /// <summary>
    /// Adds a check of a client's pool: healthy; degraded, where some of its channels cannot connect, there are fewer than the minimum, or calls wait for
    /// room; unhealthy, where no channel can connect. It connects only where no channel is connected. The figures of the pool are its data.
    /// </summary>
    /// <param name="builder">What <c>AddHealthChecks</c> gave.</param>
    /// <param name="client">The name of the client, as <c>AddGrpcClient</c> has it: that of its type, as in <c>"UserClient"</c>, unless it was given another.</param>
    /// <param name="name">The name of the check, or <see langword="null"/> for <c>grpc_pool_</c> and the name of the client.</param>
    /// <param name="failureStatus">What is told in place of unhealthy, or <see langword="null"/> for that.</param>
    /// <param name="tags">Tags of the check.</param>
    /// <param name="timeout">How long a check may take, or <see langword="null"/> for no limit.</param>
    /// <returns>The builder.</returns>
    /// <example><code>services.AddHealthChecks().AddGrpcChannelPool("UserClient");</code></example>
    public static IHealthChecksBuilder AddGrpcChannelPool(
        this IHealthChecksBuilder builder, string client, string? name = null, HealthStatus? failureStatus = null, IEnumerable<string>? tags = null, TimeSpan? timeout = null)
    {
        ArgumentNullException.ThrowIfNull(builder);
        ArgumentNullException.ThrowIfNull(client);
        return builder.Add(new HealthCheckRegistration(name ?? $"grpc_pool_{client}", provider => new PoolHealth(() => PoolOf(client, provider)), failureStatus, tags, timeout));
    }

    /// <summary>Adds the same check of a pool that is not that of a client of the client factory.</summary>
    /// <param name="builder">What <c>AddHealthChecks</c> gave.</param>
    /// <param name="pool">Gives the pool.</param>
    /// <param name="name">The name of the check.</param>
    /// <param name="failureStatus">What is told in place of unhealthy, or <see langword="null"/> for that.</param>
    /// <param name="tags">Tags of the check.</param>
    /// <param name="timeout">How long a check may take, or <see langword="null"/> for no limit.</param>
    /// <returns>The builder.</returns>
    public static IHealthChecksBuilder AddChannelPool(
        this IHealthChecksBuilder builder,
        Func<IServiceProvider, ChannelPool> pool,
        string name,
        HealthStatus? failureStatus = null,
        IEnumerable<string>? tags = null,
        TimeSpan? timeout = null)
    {
        ArgumentNullException.ThrowIfNull(builder);
        ArgumentNullException.ThrowIfNull(pool);
        ArgumentNullException.ThrowIfNull(name);
        return builder.Add(new HealthCheckRegistration(name, provider => new PoolHealth(() => pool(provider)), failureStatus, tags, timeout));
    }

    /// <summary>
    /// Adds a check of readiness: unhealthy until the pool of a client has been connected up to its <see cref="ChannelPoolOptions.MinPoolSize"/>, and
    /// healthy from then on, whatever becomes of its servers. The first check begins to connect, and none waits for it.
    /// </summary>
    /// <param name="builder">What <c>AddHealthChecks</c> gave.</param>
    /// <param name="client">The name of the client.</param>
    /// <param name="name">The name of the check, or <see langword="null"/> for <c>grpc_pool_</c>, the name of the client, and <c>_ready</c>.</param>
    /// <param name="failureStatus">What is told in place of unhealthy, or <see langword="null"/> for that.</param>
    /// <param name="tags">Tags of the check, or <see langword="null"/> for <c>ready</c>.</param>
    /// <returns>The builder.</returns>
    /// <example><code>
    /// services.AddHealthChecks().AddGrpcChannelPoolReadiness("UserClient");
    /// app.MapHealthChecks("/ready", new HealthCheckOptions { Predicate = check => check.Tags.Contains("ready") });
    /// </code></example>
    public static IHealthChecksBuilder AddGrpcChannelPoolReadiness(
        this IHealthChecksBuilder builder, string client, string? name = null, HealthStatus? failureStatus = null, IEnumerable<string>? tags = null)
    {
        ArgumentNullException.ThrowIfNull(builder);
        ArgumentNullException.ThrowIfNull(client);
        var key = new object(); // a registration makes its check anew each time
        builder.Services.AddKeyedSingleton(key, (provider, _) => new PoolReadiness(() => PoolOf(client, provider)));
        return builder.Add(new HealthCheckRegistration(
            name ?? $"grpc_pool_{client}_ready", provider => provider.GetRequiredKeyedService<PoolReadiness>(key), failureStatus, tags ?? ["ready"]));
    }

    private static ChannelPool PoolOf(string client, IServiceProvider provider)
    {
        if (provider.GetKeyedService<PoolingCallInvoker>(client) is { } invoker)
        {
            return invoker.Pool;
        }

        var known = provider.GetServices<PooledClient>().Select(static pooled => $"'{pooled.Name}'").ToList();
        throw new InvalidOperationException($"No gRPC client '{client}' has a channel pool. " + (known.Count == 0
            ? "Add one with services.AddGrpcClient<TClient>(…).AddChannelPool()."
            : $"Those that have one are {string.Join(", ", known)}: a client has the name of its type, unless AddGrpcClient was given another."));
    }
}

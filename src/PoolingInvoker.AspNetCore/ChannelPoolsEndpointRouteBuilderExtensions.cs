using System.Diagnostics.CodeAnalysis;
using Microsoft.AspNetCore.Http;
using Microsoft.AspNetCore.Routing;
using Microsoft.Extensions.DependencyInjection;
using Microsoft.Extensions.Hosting;
using Microsoft.Extensions.Logging;
using PoolingInvoker;

namespace Microsoft.AspNetCore.Builder;

/// <summary>Maps a page that shows channel pools.</summary>
public static class ChannelPoolsEndpointRouteBuilderExtensions
{
    /// <summary>
    /// Maps a page that shows the pools of the app, live: those of <c>AddChannelPool</c>, and those that are added. It reads only, and while nobody
    /// looks it does nothing. It shows addresses of servers and texts of errors, so that it is not for everybody: <c>RequireAuthorization()</c> on
    /// what is returned holds for all of it.
    /// </summary>
    /// <param name="endpoints">The app.</param>
    /// <param name="pattern">Where the page is.</param>
    /// <param name="configure">Adds pools that are not of <c>AddChannelPool</c>.</param>
    /// <returns>The conventions of the page, and of all that it loads.</returns>
    /// <example><code>app.MapChannelPools("/pools").RequireAuthorization();</code></example>
    public static IEndpointConventionBuilder MapChannelPools(
        this IEndpointRouteBuilder endpoints, [StringSyntax("Route")] string pattern = "/pools", Action<ChannelPoolsPageOptions>? configure = null)
    {
        ArgumentNullException.ThrowIfNull(endpoints);
        ArgumentNullException.ThrowIfNull(pattern);
        var options = new ChannelPoolsPageOptions();
        configure?.Invoke(options);
        var services = endpoints.ServiceProvider;
        var sampler = new PoolSampler(new PoolList(options, services), services.GetService<TimeProvider>() ?? TimeProvider.System, services.GetService<ILoggerFactory>());
        var stream = new PoolStream(sampler, services.GetService<IHostApplicationLifetime>()?.ApplicationStopping ?? CancellationToken.None);

        var group = endpoints.MapGroup(pattern);
        group.MapGet("/", PageFiles.PageAsync);
        group.MapGet("/live", stream.SendAsync);
        group.MapGet("/{file}", PageFiles.FileAsync);
        group.WithMetadata(sampler).ExcludeFromDescription();
        return group;
    }
}

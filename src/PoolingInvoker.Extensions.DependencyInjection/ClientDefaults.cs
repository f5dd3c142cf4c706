using System.Diagnostics.Metrics;
using Microsoft.Extensions.DependencyInjection;
using Microsoft.Extensions.Http;
using Microsoft.Extensions.Logging;
using Microsoft.Extensions.Options;

namespace PoolingInvoker;

/// <summary>What the options of a pool begin with where it is that of a client: its name, the log and the meters of the app, and the lifetime that its connections have.</summary>
internal sealed class ClientDefaults(string client, IServiceProvider provider) : IConfigureNamedOptions<PoolingCallInvokerOptions>
{
    private static readonly TimeSpan DefaultLifetime = new HttpClientFactoryOptions().HandlerLifetime;

    public void Configure(PoolingCallInvokerOptions options) => Configure(Options.DefaultName, options);

    public void Configure(string? name, PoolingCallInvokerOptions options)
    {
        if (name != client)
        {
            return;
        }

        options.Pool.Name = client;
        options.Pool.LoggerFactory = provider.GetService<ILoggerFactory>();
        options.Pool.MeterFactory = provider.GetService<IMeterFactory>();

        // The client factory gives its own handler the lifetime of the handlers, which nobody may have set.
        var lifetime = provider.GetRequiredService<HandlerRecipes>().Of(client).ConnectionLifetime;
        var handlers = provider.GetRequiredService<IOptionsMonitor<HttpClientFactoryOptions>>().Get(client).HandlerLifetime;
        if (lifetime == handlers ? handlers != DefaultLifetime : lifetime > TimeSpan.Zero)
        {
            options.Pool.PooledChannelLifetime = lifetime;
        }
    }
}

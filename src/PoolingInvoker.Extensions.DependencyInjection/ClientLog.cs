using Microsoft.Extensions.Logging;

namespace PoolingInvoker;

/// <summary>What is told of the clients that have a pool.</summary>
internal sealed partial class ClientLog(ILoggerFactory factory)
{
    private readonly ILogger _logger = factory.CreateLogger("PoolingInvoker.ClientPools");

    [LoggerMessage(1, LogLevel.Warning,
        "The gRPC client '{Client}' has a resilience handler in its HTTP handlers. The time-outs of such a handler count until the response headers, so that a call or "
        + "stream ends whose server sends nothing for so long (10 s by default), with the channel pool as without it. Its retries stay on one channel, do not ask whether a "
        + "method is idempotent, and multiply with those of the pool. Take it off this client (RemoveAllResilienceHandlers), or raise its time-outs and turn its retries off.")]
    public partial void ResilienceHandler(string client);

    [LoggerMessage(2, LogLevel.Error, "The configuration of the channel pool of the gRPC client '{Client}' has changed and is not taken up: the pool goes on with what it has.")]
    public partial void ConfigurationRefused(string client, Exception exception);

    [LoggerMessage(3, LogLevel.Warning, "The configuration has no section '{Section}' for the channel pool of the gRPC client '{Client}': its defaults hold.")]
    public partial void NoSection(string client, string section);
}

using Microsoft.Extensions.Logging;

namespace PoolingInvoker;

/// <summary>What is told of a page.</summary>
internal sealed partial class PageLog(ILoggerFactory factory)
{
    private readonly ILogger _logger = factory.CreateLogger("PoolingInvoker.ChannelPoolsPage");

    [LoggerMessage(1, LogLevel.Error, "The pools could not be looked at, and the streams of those who watch end. The next who comes has them looked at again.")]
    public partial void LookFailed(Exception exception);
}

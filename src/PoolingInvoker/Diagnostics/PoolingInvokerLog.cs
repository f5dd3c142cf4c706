using System.Diagnostics;
using Microsoft.Extensions.Logging;
using Microsoft.Extensions.Logging.Abstractions;

namespace PoolingInvoker;

/// <summary>What the pool writes into the log: a diary of its channels, each event with its reason.</summary>
internal sealed partial class PoolingInvokerLog(ILoggerFactory? factory)
{
    private readonly ILogger _logger = factory is null ? NullLogger.Instance : new GuardedLogger(factory.CreateLogger("PoolingInvoker.ChannelPool"));

    [LoggerMessage(EventId = 1, EventName = "ChannelCreated", Level = LogLevel.Debug, Message = "Channel {Channel} created because {Reason}.")]
    public partial void Created(object channel, string reason);

    [LoggerMessage(EventId = 10, EventName = "ChannelReplaced", Level = LogLevel.Information, Message = "Channel {Channel} created in place of {Replaced} because {Reason}.")]
    public partial void Replaced(object channel, object replaced, string reason);

    [LoggerMessage(EventId = 16, EventName = "ChannelRetired", Level = LogLevel.Debug, Message = "Channel {Channel} retired because {Reason}.")]
    public partial void Retired(object channel, string reason);

    [LoggerMessage(EventId = 2, EventName = "ChannelClosed", Level = LogLevel.Debug, Message = "Channel {Channel} closed.")]
    public partial void Closed(object channel);

    [LoggerMessage(EventId = 3, EventName = "ReplacementFailed", Level = LogLevel.Warning, Message = "Channel {Channel} stays: no replacement could be made and connected.")]
    public partial void ReplacementFailed(object channel, Exception exception);

    [LoggerMessage(EventId = 17, EventName = "CallRefused", Level = LogLevel.Debug, Message = "A call was refused: {Reason}")]
    public partial void Refused(string reason);

    [LoggerMessage(EventId = 18, EventName = "LimitAnnounced", Level = LogLevel.Debug, Message = "Channel {Channel}: its server takes {Streams} streams at a time.")]
    public partial void LimitAnnounced(object channel, int streams);

    [LoggerMessage(EventId = 19, EventName = "LimitUnknown", Level = LogLevel.Information, Message = "What the servers allow cannot be seen, because {Reason}. A channel takes {Capacity} calls at a time.")]
    public partial void LimitUnknown(string reason, int capacity);

    [LoggerMessage(EventId = 4, EventName = "PolicyThrew", Level = LogLevel.Warning, Message = "The policy could not judge channel {Channel}, which is replaced.")]
    public partial void PolicyThrew(object channel, Exception exception);

    [LoggerMessage(EventId = 5, EventName = "LeaseHeldLong", Level = LogLevel.Warning, Message = "A lease is out for {Age}, longer than Pool.LeakDetectionThreshold. It was taken at: {Stack}")]
    public partial void LeaseHeldLong(TimeSpan age, StackTrace stack);

    [LoggerMessage(EventId = 6, EventName = "LateLeaseReturned", Level = LogLevel.Warning, Message = "A lease that was reported as held long came back after {Age}.")]
    public partial void LateLeaseReturned(TimeSpan age);

    [LoggerMessage(EventId = 7, EventName = "LeakReclaimed", Level = LogLevel.Warning, Message = "A call of {Method} was dropped before its end, without Dispose. Its lease was taken back and the call cancelled.")]
    public partial void LeakReclaimed(string method);

    [LoggerMessage(EventId = 8, EventName = "MaintenanceFailed", Level = LogLevel.Error, Message = "Maintenance of the pool failed.")]
    public partial void MaintenanceFailed(Exception exception);

    [LoggerMessage(EventId = 9, EventName = "IsIdempotentThrew", Level = LogLevel.Error, Message = "IsIdempotent threw for {Method}, which is taken for not idempotent.")]
    public partial void IsIdempotentThrew(string method, Exception exception);

    [LoggerMessage(EventId = 11, EventName = "CreationFailed", Level = LogLevel.Warning, Message = "No channel could be made and connected.")]
    public partial void CreationFailed(Exception exception);

    [LoggerMessage(EventId = 12, EventName = "CloseFailed", Level = LogLevel.Warning, Message = "Closing channel {Channel} failed.")]
    public partial void CloseFailed(object channel, Exception exception);

    [LoggerMessage(EventId = 13, EventName = "ChannelSuspected", Level = LogLevel.Debug, Message = "Channel {Channel} is asked for a sign of life: its calls wait, and nothing comes from it.")]
    public partial void Suspected(object channel);

    [LoggerMessage(EventId = 14, EventName = "ChannelGivenUp", Level = LogLevel.Warning, Message = "Channel {Channel} given up because {Reason}. Its calls end as if the server had gone.")]
    public partial void GivenUp(object channel, string reason);

    [LoggerMessage(EventId = 15, EventName = "ServiceConfigRetries", Level = LogLevel.Warning, Message = "Pool.ConfigureChannel sets a ServiceConfig with retries or hedges. They run below those of the pool, on one channel: the attempts multiply, and they do not ask whether a method is idempotent.")]
    public partial void ServiceConfigRetries();

    [LoggerMessage(EventId = 20, EventName = "ResolutionFailed", Level = LogLevel.Warning, Message = "The endpoints of {Target} could not be resolved. Those that are known stay.")]
    public partial void ResolutionFailed(string target, Exception exception);

    // A log that cannot be written costs no lease.
    private sealed class GuardedLogger(ILogger inner) : ILogger
    {
        public IDisposable? BeginScope<TState>(TState state)
            where TState : notnull => null;

        public bool IsEnabled(LogLevel logLevel)
        {
            try
            {
                return inner.IsEnabled(logLevel);
            }
#pragma warning disable CA1031 // As below.
            catch
#pragma warning restore CA1031
            {
                return false;
            }
        }

        public void Log<TState>(LogLevel logLevel, EventId eventId, TState state, Exception? exception, Func<TState, Exception?, string> formatter)
        {
            try
            {
                inner.Log(logLevel, eventId, state, exception, formatter);
            }
#pragma warning disable CA1031 // There is nowhere left to say so.
            catch
#pragma warning restore CA1031
            {
            }
        }
    }
}

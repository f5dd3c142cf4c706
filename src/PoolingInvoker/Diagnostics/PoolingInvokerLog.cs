using System.Diagnostics;
using Microsoft.Extensions.Logging;

namespace PoolingInvoker;

/// <summary>What the pool writes into the log: a diary of its channels, each event with its reason.</summary>
internal sealed class PoolingInvokerLog(ILoggerFactory? factory, string poolName)
{
    private readonly ILogger? _logger = factory?.CreateLogger("PoolingInvoker.ChannelPool");
    public void Created(object channel, string reason) =>
        Write(LogLevel.Debug, new EventId(1, "ChannelCreated"), null, "Channel {Channel} created because {Reason}.", channel, reason);
    public void Replaced(object channel, object replaced, string reason) =>
        Write(LogLevel.Information, new EventId(10, "ChannelReplaced"), null, "Channel {Channel} created in place of {Replaced} because {Reason}.", channel, replaced, reason);
    public void Retired(object channel, string reason) =>
        Write(LogLevel.Debug, new EventId(16, "ChannelRetired"), null, "Channel {Channel} retired because {Reason}.", channel, reason);
    public void Closed(object channel) =>
        Write(LogLevel.Debug, new EventId(2, "ChannelClosed"), null, "Channel {Channel} closed.", channel);
    public void ReplacementFailed(object channel, string reason, Exception exception) =>
        Write(LogLevel.Warning, new EventId(3, "ReplacementFailed"), exception, "Channel {Channel}: {Reason}.", channel, reason);
    public void Refused(string reason) =>
        Write(LogLevel.Debug, new EventId(17, "CallRefused"), null, "A call was refused: {Reason}", reason);
    public void LimitAnnounced(object channel, int streams) =>
        Write(LogLevel.Debug, new EventId(18, "LimitAnnounced"), null, "Channel {Channel}: its server takes {Streams} streams at a time.", channel, streams);
    public void PriorityChanged(string reason) =>
        Write(LogLevel.Information, new EventId(24, "PriorityChanged"), null, "{Reason}.", reason);

    public void AffinityMoved(string reason) =>
        Write(LogLevel.Debug, new EventId(21, "AffinityMoved"), null, "{Reason}.", reason);
    public void LimitUnknown(string reason, int capacity) =>
        Write(LogLevel.Information, new EventId(19, "LimitUnknown"), null, "What the servers allow cannot be seen, because {Reason}. A channel takes {Capacity} calls at a time.", reason, capacity);
    public void PolicyThrew(object channel, Exception exception) =>
        Write(LogLevel.Warning, new EventId(4, "PolicyThrew"), exception, "The policy could not judge channel {Channel}, which is replaced.", channel);
    public void LeaseHeldLong(TimeSpan age, StackTrace stack) =>
        Write(LogLevel.Warning, new EventId(5, "LeaseHeldLong"), null, "A lease is out for {Age}, longer than Pool.LeakDetectionThreshold. It was taken at: {Stack}", age, stack);
    public void LateLeaseReturned(TimeSpan age) =>
        Write(LogLevel.Warning, new EventId(6, "LateLeaseReturned"), null, "A lease that was reported as held long came back after {Age}.", age);
    public void LeakReclaimed(string method) =>
        Write(LogLevel.Warning, new EventId(7, "LeakReclaimed"), null, "A call of {Method} was dropped before its end, without Dispose. Its lease was taken back and the call cancelled.", method);
    public void MaintenanceFailed(Exception exception) =>
        Write(LogLevel.Error, new EventId(8, "MaintenanceFailed"), exception, "Maintenance of the pool failed.");
    public void IsIdempotentThrew(string method, Exception exception) =>
        Write(LogLevel.Error, new EventId(9, "IsIdempotentThrew"), exception, "IsIdempotent threw for {Method}, which is taken for not idempotent.", method);
    public void CreationFailed(Exception exception) =>
        Write(LogLevel.Warning, new EventId(11, "CreationFailed"), exception, "No channel could be made and connected.");
    public void CloseFailed(object channel, Exception exception) =>
        Write(LogLevel.Warning, new EventId(12, "CloseFailed"), exception, "Closing channel {Channel} failed.", channel);
    public void Suspected(object channel) =>
        Write(LogLevel.Debug, new EventId(13, "ChannelSuspected"), null, "Channel {Channel} is asked for a sign of life: its calls wait, and nothing comes from it.", channel);
    public void GivenUp(object channel, string reason) =>
        Write(LogLevel.Warning, new EventId(14, "ChannelGivenUp"), null, "Channel {Channel} given up because {Reason}. Its calls end as if the server had gone.", channel, reason);
    public void ServiceConfigRetries() =>
        Write(LogLevel.Warning, new EventId(15, "ServiceConfigRetries"), null, "Pool.ConfigureChannel sets a ServiceConfig with retries or hedges. They run below those of the pool, on one channel: the attempts multiply, and they do not ask whether a method is idempotent.");
    public void ResolutionFailed(string target, Exception exception) =>
        Write(LogLevel.Warning, new EventId(20, "ResolutionFailed"), exception, "The endpoints of {Target} could not be resolved. Those that are known stay.", target);
    public void OptionsChanged(string changes) =>
        Write(LogLevel.Information, new EventId(30, "OptionsChanged"), null, "The options have changed: {Changes}.", changes);
    public void OptionsKept(string changes) =>
        Write(LogLevel.Warning, new EventId(31, "OptionsKept"), null, "These options stay as they are until the pool is made anew, as they cannot change while it is at work: {Changes}.", changes);
    public void MethodUnknown(string method, string methods) =>
        Write(LogLevel.Warning, new EventId(32, "MethodUnknown"), null, "MethodConfigs names {Method}, which its service does not have: that config holds for no call of it. The service has {Methods}.", method, methods);
    public void ServiceNotNamed(string named, string service) =>
        Write(LogLevel.Information, new EventId(33, "ServiceNotNamed"), null, "MethodConfigs names {Named}, of which no call has come so far, and not {Service}, of which this is the first. A service is named with its package, as in user.v1.User.", named, service);

    // A log that cannot be written costs no lease, and ends no process. The delegates that a generator makes are static, and what fails in a
    // static constructor - out of descriptors, say - has failed for good.
    private void Write(LogLevel level, EventId id, Exception? exception, string message, params object?[] arguments)
    {
        try
        {
#pragma warning disable CA1848, CA2254 // As above; and the message is what the caller says.
            if (_logger is not null && _logger.IsEnabled(level))
            {
                _logger.Log(level, id, exception, "{Pool}: " + message, [poolName, .. arguments]);
            }
#pragma warning restore CA1848, CA2254
        }
        catch // There is nowhere left to say so.
        {
        }
    }
}

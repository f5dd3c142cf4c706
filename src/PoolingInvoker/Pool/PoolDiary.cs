namespace PoolingInvoker;

/// <summary>What the pool tells of its channels, each event with its reason: to the log, and to who listens.</summary>
internal sealed class PoolDiary(PoolingInvokerLog log, Action<ChannelPoolEvent>? onEvent, string target)
{
    public void Created(PooledChannel channel, string reason)
    {
        log.Created(channel, reason);
        Raise(ChannelPoolEventKind.Created, channel, reason);
    }

    public void Replaced(PooledChannel channel, PooledChannel replaced, string reason)
    {
        log.Replaced(channel, replaced, reason);
        Raise(ChannelPoolEventKind.Replaced, channel, $"in place of #{replaced.Id}, because {reason}");
    }

    public void Retired(PooledChannel channel, string reason)
    {
        log.Retired(channel, reason);
        Raise(ChannelPoolEventKind.Retired, channel, reason);
    }

    public void GivenUp(PooledChannel channel, string reason)
    {
        log.GivenUp(channel, reason);
        Raise(ChannelPoolEventKind.GivenUp, channel, reason);
    }

    public void Closed(PooledChannel channel, bool tells)
    {
        log.Closed(channel);
        if (tells)
        {
            Raise(ChannelPoolEventKind.Closed, channel, "its last call is over");
        }
    }

    public void CreationFailed(Exception exception)
    {
        log.CreationFailed(exception);
        Raise(ChannelPoolEventKind.Failed, channel: null, "no channel could be made and connected", exception);
    }

    public void ReplacementFailed(PooledChannel channel, Exception exception)
    {
        log.ReplacementFailed(channel, exception);
        Raise(ChannelPoolEventKind.Failed, channel, "it stays: no replacement could be made and connected", exception);
    }

    public void Refused(Exception exception)
    {
        log.Refused(exception.Message);
        Raise(ChannelPoolEventKind.Refused, channel: null, exception.Message, exception);
    }

    private void Raise(ChannelPoolEventKind kind, PooledChannel? channel, string reason, Exception? exception = null)
    {
        try
        {
            onEvent?.Invoke(new ChannelPoolEvent(kind, channel?.Id ?? 0, channel?.Endpoint ?? target, reason, exception));
        }
#pragma warning disable CA1031 // Who listens has no part in it.
        catch
#pragma warning restore CA1031
        {
        }
    }
}

namespace PoolingInvoker;

/// <summary>What the pool tells of its channels, each event with its reason: to the log, and to who listens.</summary>
internal sealed class PoolDiary(PoolingInvokerLog log, Action<ChannelPoolEvent>? onEvent, Action<Action> queue, string target)
{
    private const int MostWaiting = 1_000;

    private readonly object _lock = new();
    private readonly Queue<ChannelPoolEvent> _waiting = new();
    private bool _isTelling;
    private long _dropped; // since the last one that waits

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
        if (onEvent is null)
        {
            return;
        }

        var told = new ChannelPoolEvent(kind, channel?.Id ?? 0, channel?.Endpoint ?? target, reason, exception);
        lock (_lock)
        {
            if (_waiting.Count >= MostWaiting)
            {
                _dropped++;
                return;
            }

            SayWhatWasDroppedUnsynchronized();
            _waiting.Enqueue(told);
            if (_isTelling)
            {
                return;
            }

            _isTelling = true;
        }

        queue(Tell);
    }

    private void SayWhatWasDroppedUnsynchronized()
    {
        if (_dropped > 0)
        {
            var reason = FormattableString.Invariant($"OnEvent is slower than the pool: {_dropped} events were not told");
            _waiting.Enqueue(new ChannelPoolEvent(ChannelPoolEventKind.Dropped, channel: 0, target, reason, exception: null));
            _dropped = 0;
        }
    }

    private void Tell()
    {
        while (true)
        {
            ChannelPoolEvent? next;
            lock (_lock)
            {
                if (_waiting.Count == 0)
                {
                    SayWhatWasDroppedUnsynchronized();
                }

                _isTelling = _waiting.TryDequeue(out next);
                if (!_isTelling)
                {
                    return;
                }
            }

            try
            {
                onEvent!(next!);
            }
#pragma warning disable CA1031 // Who listens has no part in it.
            catch
#pragma warning restore CA1031
            {
            }
        }
    }
}

namespace PoolingInvoker;

/// <summary>
/// What the pool tells of its channels, each event with its reason: to the log, and to OnEvent. Events are added under the lock of the
/// pool, so that they keep the order of the changes, and told after it.
/// </summary>
internal sealed class PoolDiary(object gate, Action<Action> after, PoolingInvokerLog log, ChannelPoolOptions options, string target)
{
    private const int MostWaiting = 1_000;

    private readonly Queue<ChannelPoolEvent> _waiting = new();
    private bool _isTelling;
    private long _dropped; // since the last one that waits

    public void Created(PooledChannel channel, string reason) =>
        Add(ChannelPoolEventKind.Created, channel, reason, () => log.Created(channel, reason));
    public void Replaced(PooledChannel channel, PooledChannel replaced, string reason) =>
        Add(ChannelPoolEventKind.Replaced, channel, $"in place of #{replaced.Id}, because {reason}", () => log.Replaced(channel, replaced, reason));
    public void Retired(PooledChannel channel, string reason) =>
        Add(ChannelPoolEventKind.Retired, channel, reason, () => log.Retired(channel, reason));
    public void GivenUp(PooledChannel channel, string reason) =>
        Add(ChannelPoolEventKind.GivenUp, channel, reason, () => log.GivenUp(channel, reason));

    // A channel that never joined has no event: nothing was told of it.
    public void Closed(PooledChannel channel) =>
        Add(channel.State == PooledChannelState.Closed ? ChannelPoolEventKind.Closed : null, channel, "its last call is over", () => log.Closed(channel));
    public void CreationFailed(Exception error) =>
        Add(ChannelPoolEventKind.Failed, channel: null, "no channel could be made and connected", () => log.CreationFailed(error), error);
    public void ReplacementFailed(PooledChannel channel, string endpoint, Exception error)
    {
        var elsewhere = endpoint == channel.Endpoint ? string.Empty : $" to {endpoint}";
        var reason = $"it stays: no replacement could be made and connected{elsewhere}";
        Add(ChannelPoolEventKind.Failed, channel, reason, () => log.ReplacementFailed(channel, reason, error), error);
    }

    public void Refused(Exception error) =>
        Add(ChannelPoolEventKind.Refused, channel: null, error.Message, () => log.Refused(error.Message), error);

    private void Add(ChannelPoolEventKind? kind, PooledChannel? channel, string reason, Action write, Exception? error = null)
    {
        if (kind is { } told && options.OnEvent is not null)
        {
            Enqueue(new ChannelPoolEvent(told, channel?.Id ?? 0, channel?.Endpoint ?? target, reason, error));
        }

        after(write);
    }

    // Where one is dropped all that follow are, until the queue is empty and the listener is told so.
    private void Enqueue(ChannelPoolEvent one)
    {
        if (_dropped > 0 || _waiting.Count >= MostWaiting)
        {
            _dropped++;
            return;
        }

        _waiting.Enqueue(one);
        if (!_isTelling)
        {
            _isTelling = true;
            after(() => options.Queue(Tell));
        }
    }

    private void Tell()
    {
        while (Next() is { } next)
        {
            try
            {
                options.OnEvent!(next);
            }
            catch // What a listener throws is lost.
            {
            }
        }
    }

    private ChannelPoolEvent? Next()
    {
        lock (gate)
        {
            if (!_waiting.TryDequeue(out var next) && _dropped > 0)
            {
                var reason = FormattableString.Invariant($"OnEvent is slower than the pool: {_dropped} events were not told");
                next = new ChannelPoolEvent(ChannelPoolEventKind.Dropped, channel: 0, target, reason, exception: null);
                _dropped = 0;
            }

            _isTelling = next is not null;
            return next;
        }
    }
}

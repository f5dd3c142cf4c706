namespace PoolingInvoker;

/// <summary>
/// What the pool tells of its channels, each event with its reason: to the log, to OnEvent, and to those that listen for a while. Events are added under the lock of the
/// pool, so that they keep the order of the changes, and told after it.
/// </summary>
internal sealed class PoolDiary(object gate, Action<Action> after, PoolingInvokerLog log, PoolMetrics metrics, ChannelPoolOptions options, string name, string target)
{
    private const int MostWaiting = 1_000;

    private readonly Queue<ChannelPoolEvent> _waiting = new();
    private Listening[] _listeners = options.OnEvent is { } listener ? [new(listener, static _ => { })] : [];
    private bool _isTelling;
    private long _dropped; // since the last one that waits

    public void Created(PooledChannel channel, PoolReason reason) =>
        Add(ChannelPoolEventKind.Created, channel, reason, () => log.Created(channel, reason.Words));
    public void Replaced(PooledChannel channel, PooledChannel replaced, PoolReason reason) =>
        Add(ChannelPoolEventKind.Replaced, channel, reason.InPlaceOf(replaced), () => log.Replaced(channel, replaced, reason.Words));
    public void Retired(PooledChannel channel, PoolReason reason) =>
        Add(ChannelPoolEventKind.Retired, channel, reason, () => log.Retired(channel, reason.Words));
    public void GivenUp(PooledChannel channel, PoolReason reason) =>
        Add(ChannelPoolEventKind.GivenUp, channel, reason, () => log.GivenUp(channel, reason.Words));

    // A channel that never joined has no event: nothing was told of it.
    public void Closed(PooledChannel channel) =>
        Add(channel.State == PooledChannelState.Closed ? ChannelPoolEventKind.Closed : null, channel, PoolReason.LastCallOver, () => log.Closed(channel));
    public void CreationFailed(Exception error) =>
        Add(ChannelPoolEventKind.ConnectFailed, channel: null, PoolReason.NoChannel, () => log.CreationFailed(error), error);
    public void ReplacementFailed(PooledChannel channel, string endpoint, Exception error)
    {
        var reason = PoolReason.NoReplacement(endpoint == channel.Endpoint ? string.Empty : $" to {endpoint}");
        Add(ChannelPoolEventKind.ConnectFailed, channel, reason, () => log.ReplacementFailed(channel, reason.Words, error), error);
    }

    public void AffinityMoved(PoolReason reason) =>
        Add(ChannelPoolEventKind.AffinityMoved, channel: null, reason, () => log.AffinityMoved(reason.Words));
    public void PriorityChanged(PoolReason reason) =>
        Add(ChannelPoolEventKind.PriorityChanged, channel: null, reason, () => log.PriorityChanged(reason.Words));
    public void Refused(Exception error, bool isLineFull) =>
        Add(ChannelPoolEventKind.Refused, channel: null, PoolReason.Refused(error, isLineFull), () => log.Refused(error.Message), error);

    public void OptionsChanged(string changes) =>
        Add(ChannelPoolEventKind.OptionsChanged, channel: null, PoolReason.Changed(changes), () => log.OptionsChanged(changes));

    public IDisposable Listen(Action<ChannelPoolEvent> listener)
    {
        var listening = new Listening(listener, Leave);
        lock (gate)
        {
            _listeners = [.. _listeners, listening];
        }

        return listening;
    }

    private void Add(ChannelPoolEventKind? kind, PooledChannel? channel, PoolReason reason, Action write, Exception? error = null)
    {
        if (kind is { } counted)
        {
            metrics.Count(counted, reason.Kind);
        }

        if (kind is { } told && _listeners.Length > 0)
        {
            Enqueue(new ChannelPoolEvent(name, told, channel?.Id ?? 0, channel?.Endpoint ?? target, reason.Kind, reason.Words, error));
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
            foreach (var listener in Volatile.Read(ref _listeners))
            {
                try
                {
                    listener.Tell(next);
                }
                catch // What a listener throws is lost.
                {
                }
            }
        }
    }

    private void Leave(Listening listening)
    {
        lock (gate)
        {
            _listeners = Array.FindAll(_listeners, one => one != listening);
        }
    }

    private ChannelPoolEvent? Next()
    {
        lock (gate)
        {
            if (!_waiting.TryDequeue(out var next) && _dropped > 0)
            {
                var reason = PoolReason.SlowListener(_dropped);
                next = new ChannelPoolEvent(name, ChannelPoolEventKind.Dropped, channelId: 0, target, reason.Kind, reason.Words, exception: null);
                _dropped = 0;
            }

            _isTelling = next is not null;
            return next;
        }
    }

    private sealed class Listening(Action<ChannelPoolEvent> tell, Action<Listening> leave) : IDisposable
    {
        public Action<ChannelPoolEvent> Tell => tell;

        public void Dispose() => leave(this);
    }
}

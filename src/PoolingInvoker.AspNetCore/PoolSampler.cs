using Microsoft.Extensions.Logging;

namespace PoolingInvoker;

/// <summary>
/// Looks at the pools twice a second, for all who watch, while anybody does. What it has seen of the last minutes is kept for the next who comes.
/// </summary>
internal sealed class PoolSampler(PoolList pools, TimeProvider time, ILoggerFactory? loggers = null)
{
    public static readonly TimeSpan Interval = TimeSpan.FromSeconds(0.5);

    private readonly PageLog? _log = loggers is null ? null : new(loggers);
    private readonly object _lock = new();
    private readonly List<Watcher> _watchers = [];
    private readonly Dictionary<string, PoolPicture> _pictures = [];
    private readonly List<string> _order = [];
    private Action? _stop; // those who watch have begun a round of looks, and this ends it
    private long _at;

    /// <summary>How many watch.</summary>
    public int Watchers
    {
        get
        {
            lock (_lock)
            {
                return _watchers.Count;
            }
        }
    }

    /// <summary>How often it has looked.</summary>
    public long Looks { get; private set; }

    public Watcher Watch()
    {
        var watcher = new Watcher(this);
        lock (_lock)
        {
            _watchers.Add(watcher);
            if (_stop is null)
            {
                var timer = new PeriodicTimer(Interval, time);
                _stop = timer.Dispose;
                // Without the lock of who came, and without the context: that of a request, which ends.
                ThreadPool.UnsafeQueueUserWorkItem(static begun => _ = begun.Sampler.RunAsync(begun.Timer, begun.Round), (Sampler: this, Timer: timer, Round: _stop), preferLocal: false);
            }
            else
            {
                watcher.Offer([]); // what it gets is the whole
            }
        }

        return watcher;
    }

    public void Leave(Watcher watcher)
    {
        Action? stop = null;
        lock (_lock)
        {
            if (_watchers.Remove(watcher) && _watchers.Count == 0)
            {
                (stop, _stop) = (_stop, null);
                foreach (var picture in _pictures.Values)
                {
                    picture.Rest();
                }
            }
        }

        stop?.Invoke();
    }

    /// <summary>All that the page shows, as an event of a stream.</summary>
    public byte[] Whole()
    {
        lock (_lock)
        {
            return FrameOf(isWhole: true, [.. _order.Select(name => _pictures[name].Whole)]);
        }
    }

    private async Task RunAsync(PeriodicTimer timer, Action round)
    {
        using var ended = timer;
        try
        {
            using var latencies = new Latencies();
            do
            {
                Look(round, latencies);
            }
            while (await timer.WaitForNextTickAsync().ConfigureAwait(false));
        }
        catch (Exception exception) when (exception is not OutOfMemoryException)
        {
            if (exception is not (ObjectDisposedException or InvalidOperationException)) // the container is gone
            {
                _log?.LookFailed(exception);
            }

            End(round);
        }
    }

    private void Look(Action round, Latencies latencies)
    {
        var found = pools.Pools.ToList();
        lock (_lock)
        {
            if (_stop != round)
            {
                return;
            }

            _at = time.GetUtcNow().ToUnixTimeMilliseconds();
            _order.Clear();
            latencies.Take();
            var frames = new List<PoolFrame>();
            foreach (var pool in found)
            {
                _order.Add(pool.Name);
                frames.Add(PictureOf(pool).Look(_at, latencies));
            }

            Looks++;
            var frame = FrameOf(isWhole: false, frames);
            _watchers.ForEach(watcher => watcher.Offer(frame));
        }
    }

    private PoolPicture PictureOf(NamedPool pool)
    {
        if (_pictures.TryGetValue(pool.Name, out var picture) && picture.Pool == pool.Pool)
        {
            return picture;
        }

        picture?.Dispose();
        return _pictures[pool.Name] = new PoolPicture(pool);
    }

    private void End(Action round)
    {
        lock (_lock)
        {
            if (_stop == round)
            {
                _stop = null;
                _watchers.ForEach(static watcher => watcher.End());
            }
        }
    }

    private byte[] FrameOf(bool isWhole, IReadOnlyList<PoolFrame> frames) =>
        new Frame(isWhole, _at, (int)Interval.TotalMilliseconds, frames).ToServerSentEvent();
}

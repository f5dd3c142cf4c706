using System.Collections.Concurrent;

namespace PoolingInvoker.FaultTests;

/// <summary>What fault servers say that they have done: how often what has happened to which call. Several servers can share one.</summary>
internal sealed class Journal
{
    private readonly ConcurrentDictionary<(string What, string Id), Entry> _entries = new();

    public int Count(string what, string id) => _entries.TryGetValue((what, id), out var entry) ? entry.Count : 0;

    public IReadOnlyDictionary<string, int> Counts(string what) =>
        _entries.Where(pair => pair.Key.What == what).ToDictionary(static pair => pair.Key.Id, static pair => pair.Value.Count);

    /// <summary>Completes when it has happened so many times.</summary>
    public Task Reaches(string what, string id, int count) => _entries.GetOrAdd((what, id), static _ => new Entry()).Reaches(count);

    public void Add(string what, string id) => _entries.GetOrAdd((what, id), static _ => new Entry()).Add();

    private sealed class Entry
    {
        private readonly Lock _lock = new();
        private List<(int Count, TaskCompletionSource Reached)>? _waiting;

        public int Count { get; private set; }

        public void Add()
        {
            lock (_lock)
            {
                Count++;
                _waiting?.ForEach(waiter =>
                {
                    if (waiter.Count <= Count)
                    {
                        waiter.Reached.TrySetResult();
                    }
                });
            }
        }

        public Task Reaches(int count)
        {
            lock (_lock)
            {
                if (Count >= count)
                {
                    return Task.CompletedTask;
                }

                var reached = new TaskCompletionSource(TaskCreationOptions.RunContinuationsAsynchronously);
                (_waiting ??= []).Add((count, reached));
                return reached.Task;
            }
        }
    }
}

using System.Collections.Concurrent;

namespace PoolingInvoker;

/// <summary>The calls on a channel over a transport of the user's own, which the pool ends when it gives the channel up.</summary>
internal sealed class BreakableCalls
{
    private readonly ConcurrentDictionary<IBreakableCall, bool> _calls = new();
    private string? _brokenBecause;

    public string? BrokenBecause => Volatile.Read(ref _brokenBecause);

    /// <summary>Statement order is important: the call may be released, and the channel given up, meanwhile.</summary>
    public void Add(IBreakableCall call)
    {
        _calls[call] = true;
        if (call.IsReleased)
        {
            Remove(call);
        }
        else if (BrokenBecause is not null)
        {
            call.Break();
        }
    }

    public void Remove(IBreakableCall call) => _calls.TryRemove(call, out _);

    public void Break(string reason)
    {
        Interlocked.Exchange(ref _brokenBecause, reason);
        foreach (var call in _calls.Keys)
        {
            call.Break();
        }
    }
}

internal interface IBreakableCall
{
    bool IsReleased { get; }

    /// <summary>Ends it as if its connection had broken. Does not throw.</summary>
    void Break();
}

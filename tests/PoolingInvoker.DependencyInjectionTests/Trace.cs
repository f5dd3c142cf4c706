using System.Collections.Concurrent;

namespace PoolingInvoker.DependencyInjectionTests;

/// <summary>What ran on the way of calls, in order.</summary>
internal sealed class Trace
{
    private readonly ConcurrentQueue<string> _steps = new();

    public void Add(string step) => _steps.Enqueue(step);

    public string[] Take()
    {
        string[] steps = [.. _steps];
        _steps.Clear();
        return steps;
    }
}

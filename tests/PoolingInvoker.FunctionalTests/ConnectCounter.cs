using System.Collections.Concurrent;
using System.Diagnostics.Tracing;
using System.Net;

namespace PoolingInvoker.FunctionalTests;

/// <summary>Sees each connect of this process to one address, as the runtime reports it.</summary>
internal sealed class ConnectCounter(IPEndPoint address) : EventListener
{
    private readonly string _address = address.Serialize().ToString();
    private readonly long _since = TimeProvider.System.GetTimestamp();
    private readonly ConcurrentQueue<TimeSpan> _connects = new();

    public int Count => _connects.Count;

    /// <summary>How many there were in each second from the start.</summary>
    public IReadOnlyList<int> InSeconds(int seconds) =>
        [.. Enumerable.Range(0, seconds).Select(second => _connects.Count(connect => (int)connect.TotalSeconds == second))];

    protected override void OnEventSourceCreated(EventSource eventSource)
    {
        if (eventSource.Name == "System.Net.Sockets")
        {
            EnableEvents(eventSource, EventLevel.Informational);
        }
    }

    protected override void OnEventWritten(EventWrittenEventArgs eventData)
    {
        if (eventData is { EventName: "ConnectStart", Payload: [string to] } && to == _address)
        {
            _connects.Enqueue(TimeProvider.System.GetElapsedTime(_since));
        }
    }
}

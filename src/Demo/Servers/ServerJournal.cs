using System.Collections.Concurrent;

namespace PoolingInvoker.Demo.Servers;

/// <summary>What a server has seen and done.</summary>
public sealed class ServerJournal(string serverName, string? file) : IDisposable
{
    private readonly ConcurrentQueue<string> _executed = new();
    private readonly StreamWriter? _writer = file is null
        ? null
        : new StreamWriter(new FileStream(file, FileMode.Append, FileAccess.Write, FileShare.ReadWrite)) { AutoFlush = true };
    private readonly object _lock = new();
    private int _calls;
    private int _peakCalls;
    private int _connections;
    private int _peakConnections;

    public string ServerName => serverName;

    /// <summary>The ids of the requests with side effects that were run, in their order.</summary>
    public IReadOnlyCollection<string> Executed => _executed;

    public int PeakCallsInFlight => _peakCalls;

    public int Connections => _connections;

    public int PeakConnections => _peakConnections;

    /// <summary>The calls run so far.</summary>
    public int Calls { get; private set; }

    public void Execute(string requestId)
    {
        _executed.Enqueue(requestId);
        lock (_lock)
        {
            _writer?.WriteLine(requestId); // in the file before the reply is: a server that is killed has told all that it did
        }
    }

    public IDisposable BeginCall()
    {
        lock (_lock)
        {
            Calls++;
            _peakCalls = Math.Max(_peakCalls, ++_calls);
        }

        return new CallScope(this);
    }

    public void ConnectionOpened()
    {
        lock (_lock)
        {
            _peakConnections = Math.Max(_peakConnections, ++_connections);
        }
    }

    public void ConnectionClosed()
    {
        lock (_lock)
        {
            _connections--;
        }
    }

    public void Dispose() => _writer?.Dispose();

    private sealed class CallScope(ServerJournal journal) : IDisposable
    {
        public void Dispose()
        {
            lock (journal._lock)
            {
                journal._calls--;
            }
        }
    }
}

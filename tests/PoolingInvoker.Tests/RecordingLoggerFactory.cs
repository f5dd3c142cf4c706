using System.Collections.Concurrent;
using Microsoft.Extensions.Logging;
using Microsoft.Extensions.Logging.Abstractions;

namespace PoolingInvoker.Testing;

/// <summary>Keeps what the pool writes into its log.</summary>
internal sealed class RecordingLoggerFactory : ILoggerFactory, ILogger
{
    private readonly ConcurrentQueue<(string Event, string Message)> _entries = new();

    public IReadOnlyList<(string Event, string Message)> Entries => [.. _entries];

    /// <summary>What is done at each entry, on the thread that writes it.</summary>
    public Action OnEntry { get; set; } = static () => { };

    public void AddProvider(ILoggerProvider provider)
    {
    }

    public ILogger CreateLogger(string categoryName) => categoryName.StartsWith("PoolingInvoker", StringComparison.Ordinal) ? this : NullLogger.Instance;

    public void Dispose()
    {
    }

    public IDisposable? BeginScope<TState>(TState state)
        where TState : notnull => null;

    public bool IsEnabled(LogLevel logLevel) => true;

    public void Log<TState>(LogLevel logLevel, EventId eventId, TState state, Exception? exception, Func<TState, Exception?, string> formatter)
    {
        _entries.Enqueue((eventId.Name ?? "", formatter(state, exception)));
        OnEntry();
    }
}

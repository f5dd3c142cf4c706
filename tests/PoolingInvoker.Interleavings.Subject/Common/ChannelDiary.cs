using Microsoft.Extensions.Logging;

namespace PoolingInvoker.Interleavings;

/// <summary>What became of which channel, as the pool itself logs it.</summary>
internal sealed class ChannelDiary(Action<string, PooledChannel?, PooledChannel?> onEntry) : ILoggerFactory, ILogger
{
    public ILogger CreateLogger(string categoryName) => this;

    public void AddProvider(ILoggerProvider provider) => throw new NotSupportedException();

    public IDisposable? BeginScope<TState>(TState state)
        where TState : notnull => null;

    public bool IsEnabled(LogLevel logLevel) => true;

    public void Log<TState>(
        LogLevel logLevel, EventId eventId, TState state, Exception? exception, Func<TState, Exception?, string> formatter)
    {
        var values = (IReadOnlyList<KeyValuePair<string, object?>>)state!;
        PooledChannel? Find(string name) => values.FirstOrDefault(value => value.Key == name).Value as PooledChannel;
        onEntry(eventId.Name!, Find("Channel"), Find("Replaced"));
    }

    public void Dispose()
    {
        // There is nothing to close.
    }
}

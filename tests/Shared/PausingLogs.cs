using Microsoft.Extensions.Logging;

namespace PoolingInvoker.Testing;

/// <summary>Holds up the first thread that logs an event from some moment on.</summary>
internal sealed class PausingLogs(string name, Task from, ManualResetEventSlim goesOn) : ILoggerFactory, ILogger
{
    private readonly TaskCompletionSource _paused = new(TaskCreationOptions.RunContinuationsAsynchronously);

    public Task Paused => _paused.Task;

    public ILogger CreateLogger(string categoryName) => this;

    public void AddProvider(ILoggerProvider provider)
    {
    }

    public IDisposable? BeginScope<TState>(TState state)
        where TState : notnull => null;

    public bool IsEnabled(LogLevel logLevel) => true;

    public void Log<TState>(LogLevel logLevel, EventId eventId, TState state, Exception? exception, Func<TState, Exception?, string> formatter)
    {
        if (eventId.Name == name && from.IsCompleted && _paused.TrySetResult())
        {
            Assert.True(goesOn.Wait(Waiting.Long));
        }
    }

    public void Dispose()
    {
    }
}

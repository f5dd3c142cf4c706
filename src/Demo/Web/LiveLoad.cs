using System.Collections.Concurrent;
using Grpc.Core;
using PoolingInvoker.Protos;

namespace PoolingInvoker.Demo.Web;

/// <summary>Callers that call again when they have their answer, as many as are asked for. Part of the calls are streams.</summary>
internal sealed class LiveLoad(User.UserClient users) : IAsyncDisposable
{
    private const int ServerDelayMs = 20;
    private const int NamesOfAStream = 25; // half a second
    private static readonly TimeSpan Patience = TimeSpan.FromSeconds(5);
    private static readonly TimeSpan PauseAfterFailure = TimeSpan.FromMilliseconds(20);

    private readonly object _lock = new();
    private readonly Dictionary<int, Task> _callers = [];
    private readonly ConcurrentQueue<double> _latencies = new();
    private readonly ConcurrentDictionary<string, int> _answers = new();
    private volatile int _wanted;
    private volatile int _streamPercent;
    private int _failed;
    private string? _lastError;
    private long _since = TimeProvider.System.GetTimestamp();

    public void Set(int callers, int streamPercent)
    {
        lock (_lock)
        {
            (_wanted, _streamPercent) = (callers, streamPercent);
            for (var id = 1; id <= callers; id++)
            {
                if (!_callers.ContainsKey(id))
                {
                    _callers.Add(id, RunAsync(id));
                }
            }
        }
    }

    /// <summary>What has come of the calls since this was asked before. The latencies are of unary calls.</summary>
    public LoadFigures Take()
    {
        var before = _since;
        _since = TimeProvider.System.GetTimestamp();
        var seconds = TimeProvider.System.GetElapsedTime(before, _since).TotalSeconds;
        var sorted = new List<double>();
        while (_latencies.TryDequeue(out var one))
        {
            sorted.Add(one);
        }

        sorted.Sort();
        var answers = _answers.Keys.Order(StringComparer.Ordinal).ToDictionary(static name => name, name => _answers.TryRemove(name, out var count) ? count : 0);
        return new LoadFigures(Math.Round(answers.Values.Sum() / seconds, 1), Volatile.Read(ref _failed), Part(0.5), Part(0.99), answers, Volatile.Read(ref _lastError));

        double? Part(double part) => sorted.Count == 0 ? null : Math.Round(sorted[(int)Math.Ceiling(part * sorted.Count) - 1], 1);
    }

    public async ValueTask DisposeAsync()
    {
        Task[] calling;
        lock (_lock)
        {
            _wanted = 0;
            calling = [.. _callers.Values];
        }

        await Task.WhenAll(calling);
    }

    private async Task RunAsync(int id)
    {
        await Task.Yield();
        while (GoesOn(id))
        {
            try
            {
                await (Random.Shared.Next(100) < _streamPercent ? StreamAsync() : CallAsync(id));
            }
            catch (RpcException exception)
            {
                Interlocked.Increment(ref _failed);
                Volatile.Write(ref _lastError, exception.Status.ToString());
                await Task.Delay(PauseAfterFailure);
            }
        }
    }

    private bool GoesOn(int id)
    {
        if (id <= _wanted)
        {
            return true;
        }

        lock (_lock)
        {
            return id <= _wanted || !_callers.Remove(id);
        }
    }

    private async Task CallAsync(int id)
    {
        var started = TimeProvider.System.GetTimestamp();
        var reply = await users.GetNameAsync(new GetNameRequest { Id = id, DelayMs = ServerDelayMs }, deadline: DateTime.UtcNow + Patience);
        _latencies.Enqueue(TimeProvider.System.GetElapsedTime(started).TotalMilliseconds);
        Count(reply.Origin);
    }

    private async Task StreamAsync()
    {
        using var names = users.ListNames(new ListNamesRequest { Count = NamesOfAStream, DelayMs = ServerDelayMs }, deadline: DateTime.UtcNow + Patience);
        NameReply? last = null;
        await foreach (var name in names.ResponseStream.ReadAllAsync())
        {
            last = name;
        }

        Count(last!.Origin);
    }

    private void Count(Origin origin) => _answers.AddOrUpdate(origin.Server, 1, static (_, count) => count + 1);
}

/// <summary>What came of calls.</summary>
internal sealed record LoadFigures(double CallsPerSecond, int Failed, double? P50, double? P99, IReadOnlyDictionary<string, int> Answers, string? LastError);

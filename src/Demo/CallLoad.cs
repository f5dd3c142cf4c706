using System.Collections.Concurrent;
using PoolingInvoker.Protos;

namespace PoolingInvoker.Demo;

/// <summary>Callers that call one method, each again when it has its answer, and what comes of it. The method is idempotent.</summary>
internal sealed class CallLoad(Func<int, User.UserClient> clientOf)
{
    public const int Callers = 32;

    private const int MaxCallsPerCaller = 2_000;
    private const int ServerDelayMs = 20;
    private static readonly TimeSpan Patience = TimeSpan.FromSeconds(5);

    private readonly ConcurrentQueue<TimeSpan> _latencies = new();
    private readonly ConcurrentDictionary<string, int> _answers = new();
    private readonly ConcurrentDictionary<(int Caller, string Server), byte> _met = new();
    private volatile string? _lastServer;
    private int _failed;
    private Exception? _firstError;

    public CallLoad(User.UserClient users)
        : this(_ => users)
    {
    }

    public int Calls => _latencies.Count + Failed;

    public int Failed => Volatile.Read(ref _failed);

    public Exception? FirstError => Volatile.Read(ref _firstError);

    /// <summary>Who sent the last answer.</summary>
    public string? LastServer => _lastServer;

    public int ServersReached => _answers.Count;

    /// <summary>How many servers a caller has had answers from, on average.</summary>
    public double ServersACaller => _met.Count / (double)Callers;

    public int AnswersOf(string server) => _answers.GetValueOrDefault(server);

    /// <summary>Calls until it is told to stop. Calls that are in flight then come to their end.</summary>
    public Task RunAsync(CancellationToken stop) => Task.WhenAll(Enumerable.Range(1, Callers).Select(id => CallAsync(id, stop)));

    /// <summary>The time in which this part of the calls was answered, those that failed left out; null if none was.</summary>
    public TimeSpan? Percentile(double part)
    {
        TimeSpan[] sorted = [.. _latencies.Order()];
        return sorted.Length == 0 ? null : sorted[(int)Math.Ceiling(part * sorted.Length) - 1];
    }

    private async Task CallAsync(int id, CancellationToken stop)
    {
        var users = clientOf(id);
        var request = new GetNameRequest { Id = id, DelayMs = ServerDelayMs };
        for (var made = 0; made < MaxCallsPerCaller && !stop.IsCancellationRequested; made++)
        {
            var started = TimeProvider.System.GetTimestamp();
            try
            {
                // Not with the token: a call that is cut at the end would look like one that was lost.
                var reply = await users.GetNameAsync(request, deadline: DateTime.UtcNow + Patience, cancellationToken: CancellationToken.None);
                _latencies.Enqueue(TimeProvider.System.GetElapsedTime(started));
                _answers.AddOrUpdate(reply.Origin.Server, 1, static (_, count) => count + 1);
                _met.TryAdd((id, reply.Origin.Server), 0);
                _lastServer = reply.Origin.Server;
            }
            catch (Exception exception)
            {
                Interlocked.Increment(ref _failed);
                Interlocked.CompareExchange(ref _firstError, exception, null);
            }
        }
    }
}

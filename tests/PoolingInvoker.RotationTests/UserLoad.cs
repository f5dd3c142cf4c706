using System.Collections.Concurrent;
using Grpc.Core;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.RotationTests;

/// <summary>
/// Callers that call, each again when it has its answer, and what comes of it: of ten calls eight GetName, one ListNames, one Rename. A stream that
/// breaks after its first message is lost, whoever reads it: there are none where connections are cut.
/// </summary>
internal sealed class UserLoad(CallInvoker invoker, bool hasStreams = true)
{
    private const int Callers = 64;
    private const int DelayMs = 5;
    private const long ProtocolError = 1; // RFC 9113, section 7

    // No call should come near it. A call that hangs shows as one that is lost.
    private static readonly TimeSpan Patience = TimeSpan.FromSeconds(20);

    private readonly User.UserClient _client = new(invoker);
    private readonly ConcurrentDictionary<string, int> _answers = new();
    private readonly ConcurrentQueue<(string Id, RpcException? Failure)> _renames = new();
    private readonly ConcurrentQueue<string> _lost = new();
    private readonly ConcurrentQueue<string> _violated = new();
    private int _begun;
    private int _ended;

    /// <summary>The calls that have come to their end, whichever it was.</summary>
    public int Calls => Volatile.Read(ref _ended);

    /// <summary>The idempotent calls that failed, and what has no right to happen to any call.</summary>
    public IReadOnlyCollection<string> Lost => _lost;

    /// <summary>
    /// The streams that broke after their first message, which no client can send again, because the handler found that the server had violated
    /// HTTP/2.
    /// </summary>
    public IReadOnlyCollection<string> Violated => _violated;

    /// <summary>The request ids of the renames that succeeded.</summary>
    public IEnumerable<string> Renamed => _renames.Where(static rename => rename.Failure is null).Select(static rename => rename.Id);

    /// <summary>The request ids of the renames that failed, and how.</summary>
    public IReadOnlyList<(string Id, RpcException Failure)> RenamesFailed =>
        [.. _renames.Where(static rename => rename.Failure is not null).Select(static rename => (rename.Id, rename.Failure!))];

    /// <summary>How many calls each server has answered so far.</summary>
    public IReadOnlyDictionary<string, int> Answers => _answers.ToDictionary();

    /// <summary>Waits until each of these servers has answered so many calls more, and leaves the processor to them meanwhile.</summary>
    public async Task AnsweredByAsync(IEnumerable<string> servers, int calls)
    {
        var before = Answers;
        var since = TimeProvider.System.GetTimestamp();
        while (servers.FirstOrDefault(server => _answers.GetValueOrDefault(server) < before.GetValueOrDefault(server) + calls) is { } missing)
        {
            Assert.True(TimeProvider.System.GetElapsedTime(since) < Waiting.Long, $"The server {missing} is hardly called: {_answers.GetValueOrDefault(missing)} times.");
            await Task.Delay(10);
        }
    }

    /// <summary>
    /// Waits until each of these servers has answered so many calls more while no other has answered any: a channel that drains, or stands by
    /// again, has calls that it still finishes.
    /// </summary>
    public async Task AnsweredOnlyByAsync(IReadOnlyCollection<string> servers, int calls)
    {
        var since = TimeProvider.System.GetTimestamp();
        for (int before = -1, now = ByOthers(); now != before; now = ByOthers())
        {
            Assert.True(TimeProvider.System.GetElapsedTime(since) < Waiting.Long, $"Others still answer calls, {now} so far.");
            before = now;
            await AnsweredByAsync(servers, calls);
        }

        int ByOthers() => _answers.Where(answers => !servers.Contains(answers.Key)).Sum(static answers => answers.Value);
    }

    /// <param name="goesOn">Whether there is another call, given its number from 1.</param>
    public Task RunAsync(Func<int, bool> goesOn) => Task.WhenAll(Enumerable.Range(0, Callers).Select(_ => Task.Run(async () =>
    {
        while (Interlocked.Increment(ref _begun) is var number && goesOn(number))
        {
            await CallAsync(number);
            Interlocked.Increment(ref _ended);
        }
    })));

    private async Task CallAsync(int number)
    {
        try
        {
            var origin = (number % 10) switch
            {
                0 => await RenameAsync(number),
                1 when hasStreams => await ListAsync(),
                _ => await GetAsync(number),
            };
            if (origin is not null)
            {
                _answers.AddOrUpdate(origin.Server, 1, static (_, count) => count + 1);
            }
        }
        catch (Exception exception)
        {
            _lost.Enqueue($"call {number}: {exception}");
        }
    }

    private async Task<Origin> GetAsync(int id)
    {
        var reply = await _client.GetNameAsync(new GetNameRequest { Id = id, DelayMs = DelayMs }, deadline: DateTime.UtcNow + Patience);
        Assert.Equal(id, reply.Id);
        return reply.Origin;
    }

    private async Task<Origin?> ListAsync()
    {
        const int Count = 3;
        using var call = _client.ListNames(new ListNamesRequest { Count = Count, DelayMs = DelayMs }, deadline: DateTime.UtcNow + Patience);
        var origin = new Origin();
        var read = 0;
        try
        {
            for (; await call.ResponseStream.MoveNext(CancellationToken.None); read++)
            {
                Assert.Equal(read, call.ResponseStream.Current.Id);
                origin = call.ResponseStream.Current.Origin;
            }
        }
        catch (RpcException exception) when (read > 0 && exception.Status.DebugException is HttpProtocolException { ErrorCode: ProtocolError })
        {
            _violated.Enqueue($"after {read} of {Count} names: {exception.Status.Detail}");
            return null;
        }
        catch (RpcException exception)
        {
            throw new InvalidOperationException($"ListNames failed after {read} of {Count} names.", exception);
        }

        Assert.Equal(Count, read);
        return origin;
    }

    private async Task<Origin?> RenameAsync(int number)
    {
        var id = $"rename-{number}";
        try
        {
            var reply = await _client.RenameAsync(new RenameRequest { RequestId = id, DelayMs = DelayMs }, deadline: DateTime.UtcNow + Patience);
            _renames.Enqueue((id, null));
            return reply.Origin;
        }
        catch (RpcException exception) when (exception.StatusCode is not (StatusCode.DeadlineExceeded or StatusCode.ResourceExhausted))
        {
            _renames.Enqueue((id, exception)); // it may have reached a server that went away
            return null;
        }
    }
}

using System.Collections.Concurrent;
using System.Globalization;
using Grpc.Core;
using PoolingInvoker.Demo.Servers;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.FunctionalTests;

/// <summary>Three servers behind a balancer, of which one is killed and started again every second, under 200 callers of all kinds.</summary>
[Trait("Tier", "all")]
public sealed class KilledServerTests(ITestOutputHelper output)
{
    private static readonly TimeSpan AtLeast = TimeSpan.FromSeconds(12);
    private const int CallsAtLeast = 10_000;
    private const int MinPoolSize = 6;
    private const int MaxPoolSize = 12;

    // A third of the channels die in one moment. On a machine that is so busy that it takes long to notice, three retries may all meet them.
    private static readonly int Retries = int.Parse(Environment.GetEnvironmentVariable("KILLED_RETRIES") ?? "20", CultureInfo.InvariantCulture);

    private readonly ConcurrentDictionary<string, int> _ended = new();
    private readonly ConcurrentQueue<string> _lost = new();
    private volatile bool _stop;
    private int _calls;

    [Fact]
    public async Task NoIdempotentCallIsLost_AndNoOtherRunsTwice()
    {
        ServerProcess[] servers = [await ServerProcess.StartAsync("one"), await ServerProcess.StartAsync("two"), await ServerProcess.StartAsync("three")];
        await using var first = servers[0];
        await using var second = servers[1];
        await using var third = servers[2];
        await using var balancer = new L4Balancer(servers.Select(static server => server.Address));
        await using var invoker = PoolingCallInvoker.ForAddress(balancer.Address, new PoolingCallInvokerOptions
        {
            Pool = { MinPoolSize = MinPoolSize, MaxPoolSize = MaxPoolSize, MaxConcurrentCallsPerChannel = 25 },
            Retry = { MaxRetryAttempts = Retries },
        });
        var client = new User.UserClient(invoker);
        await invoker.ConnectAsync().Soon();

        Assert.InRange(invoker.Pool.GetStatistics().Channels, MinPoolSize, MaxPoolSize);

        var peakChannels = 0;
        var watching = Task.Run(async () =>
        {
            while (!_stop)
            {
                peakChannels = Math.Max(peakChannels, invoker.Pool.GetStatistics().Channels);
                await Task.Delay(1);
            }
        });
        var calling = Enumerable.Range(0, 200).Select(caller => Task.Run(() => CallAsync(client, caller))).ToArray();

        var since = TimeProvider.System.GetTimestamp();
        var kills = 0;
        while (TimeProvider.System.GetElapsedTime(since) < AtLeast || Volatile.Read(ref _calls) < CallsAtLeast)
        {
            var server = servers[kills++ % servers.Length];
            await server.KillAsync();
            await Task.Delay(300);
            await server.RestartAsync();
            await Task.Delay(TimeSpan.FromSeconds(kills) - TimeProvider.System.GetElapsedTime(since) is var rest && rest > TimeSpan.Zero ? rest : TimeSpan.Zero);
        }

        _stop = true;
        await Task.WhenAll(calling).Soon();
        await watching.Soon();
        await Waiting.Until(() => invoker.Pool.GetStatistics().CallsInFlight == 0);

        var statistics = invoker.Pool.GetStatistics();
        output.WriteLine($"{_calls} calls, {kills} kills; {string.Join(", ", _ended.OrderBy(static pair => pair.Key).Select(static pair => $"{pair.Key} {pair.Value}"))}");
        output.WriteLine($"{statistics}; at most {peakChannels} channels, {balancer.PeakConnections} connections");
        Assert.True(_lost.IsEmpty, string.Join("\n\n", _lost.Take(3)));
        Assert.True(statistics.Retries > 0, "Nothing was ever tried again: the test does not test.");
        Assert.True(statistics.ChannelsReplaced > 0, "Nothing was ever replaced: the test does not test.");
        Assert.InRange(peakChannels, 1, MaxPoolSize);

        var executed = servers.SelectMany(static server => server.ReadJournal()).ToList();
        Assert.NotEmpty(executed);
        Assert.Empty(executed.GroupBy(static id => id).Where(static run => run.Count() > 1).Select(static run => run.Key));

        // It stays at 0: nothing is left that could still end, nor go below.
        await invoker.DisposeAsync().AsTask().Soon();
        Assert.Equal(0, invoker.Pool.GetStatistics().CallsInFlight);
    }

    private async Task CallAsync(User.UserClient client, int caller)
    {
        for (var i = 0; !_stop; i++)
        {
            Interlocked.Increment(ref _calls);
            await ((caller % 10) switch
            {
                0 or 1 or 2 => MustNotFail("GetName", async () => await client.GetNameAsync(new GetNameRequest { Id = i, DelayMs = 5 })),
                3 => MustNotFail("GetName, blocking", () => Task.FromResult(client.GetName(new GetNameRequest { Id = i, DelayMs = 1 }))),
                4 => MustNotFail("GetProfile", async () => await client.GetProfileAsync(new GetProfileRequest { Id = i, DelayMs = 5, PictureBytes = 20_000 })),
                5 or 6 => ListAsync(client),
                7 => ChatAsync(client),
                8 => ImportAsync(client, $"import-{caller}-{i}"),
                _ => MayFail("Rename", async () => await client.RenameAsync(new RenameRequest { RequestId = $"rename-{caller}-{i}", DelayMs = 5 })),
            });
        }
    }

    private Task ListAsync(User.UserClient client)
    {
        var read = 0;
        return Run("ListNames", () => read > 0, async () =>
        {
            using var call = client.ListNames(new ListNamesRequest { Count = 5, DelayMs = 5 });
            for (; await call.ResponseStream.MoveNext(CancellationToken.None); read++)
            {
                Assert.Equal(read, call.ResponseStream.Current.Id);
            }

            Assert.Equal(5, read);
        });
    }

    private Task ChatAsync(User.UserClient client)
    {
        var delivered = false;
        return Run("Chat", () => delivered, async () =>
        {
            using var call = client.Chat();
            for (var text = 0; text < 3; text++)
            {
                await call.RequestStream.WriteAsync(new ChatMessage { Text = $"{text}" });
                delivered = true;
                Assert.True(await call.ResponseStream.MoveNext(CancellationToken.None));
                Assert.Equal($"{text}", call.ResponseStream.Current.Text);
            }

            await call.RequestStream.CompleteAsync();
            Assert.False(await call.ResponseStream.MoveNext(CancellationToken.None));
        });
    }

    private Task ImportAsync(User.UserClient client, string requestId) => MayFail("ImportNames", async () =>
    {
        using var call = client.ImportNames();
        for (var name = 0; name < 3; name++)
        {
            await call.RequestStream.WriteAsync(new ImportNameRequest { RequestId = $"{requestId}-{name}" });
        }

        await call.RequestStream.CompleteAsync();
        Assert.Equal(3, (await call).Imported);
    });

    private Task MustNotFail(string kind, Func<Task> call) => Run(kind, static () => false, call);

    private Task MayFail(string kind, Func<Task> call) => Run(kind, static () => true, call);

    private async Task Run(string kind, Func<bool> mayFail, Func<Task> call)
    {
        try
        {
            await call();
            _ended.AddOrUpdate($"{kind} ok", 1, static (_, count) => count + 1);
        }
        catch (RpcException exception) when (mayFail() && exception.StatusCode is not (StatusCode.DeadlineExceeded or StatusCode.ResourceExhausted))
        {
            _ended.AddOrUpdate($"{kind} {exception.StatusCode}", 1, static (_, count) => count + 1);
        }
        catch (IOException) when (mayFail())
        {
            // The writer of a bare channel throws it too, when the connection breaks under it.
            _ended.AddOrUpdate($"{kind} broken in a write", 1, static (_, count) => count + 1);
        }
        catch (Exception exception)
        {
            _lost.Enqueue($"{kind}: {exception}");
        }
    }
}

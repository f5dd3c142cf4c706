using System.Net.Sockets;
using Grpc.Core;
using Microsoft.Extensions.Time.Testing;
using PoolingInvoker.Demo.Servers;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.FunctionalTests;

/// <summary>Channels on which calls wait and from which nothing comes: slow ones are kept, dead ones are given up.</summary>
public sealed class SilentChannelTests(ITestOutputHelper output) : IAsyncLifetime
{
    private readonly RecordingLoggerFactory _log = new();
    private UserServer _server = null!;
    private FreezingRelay _relay = null!;

    public async ValueTask InitializeAsync()
    {
        _server = await UserServer.StartAsync("one");
        _relay = new FreezingRelay(_server.Address);
    }

    public async ValueTask DisposeAsync()
    {
        await _relay.DisposeAsync();
        await _server.DisposeAsync();
        foreach (var (name, message) in _log.Entries)
        {
            output.WriteLine($"{name}: {message}");
        }
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)] // the handler's own pings go on beside those of the pool
    public async Task ASlowMethod_IsNotDisturbed(bool keepAlive)
    {
        await using var invoker = NewInvoker(options =>
        {
            options.ProbeTimeout = Waiting.Long; // the server answers a ping, however slow the machine
            options.ConfigureHandler = handler =>
            {
                if (keepAlive)
                {
                    (handler.KeepAlivePingDelay, handler.KeepAlivePingTimeout) = (TimeSpan.FromSeconds(1), Waiting.Long);
                }
            };
        });
        var client = new User.UserClient(invoker);

        // Three probes, after 0.1, 0.5 and 2.1 s, and then none for minutes. An answer to a ping of the handler's is a sign of life, too, and
        // the pool has less to ask.
        var slow = client.GetNameAsync(new GetNameRequest { Id = 7, DelayMs = 3_000 });
        await Waiting.Until(() => slow.ResponseAsync.IsCompleted || _log.Entries.Count(static entry => entry.Event == "ChannelSuspected") == (keepAlive ? 1 : 3));
        var probes = _log.Entries.Count(static entry => entry.Event == "ChannelSuspected");
        var reply = await slow.ResponseAsync.Soon();
        Assert.Equal("one", reply.Origin.Server);
        await client.GetNameAsync(new GetNameRequest()).ResponseAsync.Soon();

        var statistics = invoker.Pool.GetStatistics();
        Assert.Equal((1, 0, 0), (statistics.ChannelsCreated, statistics.ChannelsGivenUp, statistics.Retries));
        Assert.Equal(1, _relay.Connections);
        Assert.InRange(probes, 1, 3);
    }

    [Fact]
    public async Task AnAnswerThatLiesUnread_IsASignOfLife()
    {
        var gate = new TaskCompletionSource(TaskCreationOptions.RunContinuationsAsynchronously);
        var release = new TaskCompletionSource(TaskCreationOptions.RunContinuationsAsynchronously);
        UnreadStream? last = null;
        await using var server = await HttpServer.StartAsync(async context =>
        {
            await (context.Request.Path.Value!.EndsWith("/Rename", StringComparison.Ordinal) ? release.Task : Task.CompletedTask);
            await HttpServer.ReplyAsync(context, []);
        });
        await using var invoker = PoolingCallInvoker.ForAddress(server.Address, new PoolingCallInvokerOptions
        {
            Pool =
            {
                MinPoolSize = 2,
                MaxPoolSize = 2,
                MaxConcurrentCallsPerChannel = 1,
                ProbeDelay = TimeSpan.FromMilliseconds(100),
                ProbeTimeout = TimeSpan.FromMilliseconds(100),
                LoggerFactory = _log,
                ConfigureHandler = handler => handler.ConnectCallback = async (context, token) =>
                {
                    var socket = new Socket(SocketType.Stream, ProtocolType.Tcp) { NoDelay = true };
                    await socket.ConnectAsync(context.DnsEndPoint, token);
                    return new UnreadStream(socket, stream => last = stream);
                },
            },
        });
        await invoker.ConnectAsync().Soon();
        var client = new User.UserClient(invoker);
        var rename = client.RenameAsync(new RenameRequest()).ResponseAsync;
        await Waiting.Until(() => server.Requests.Count == 1);
        last!.MayRead = gate.Task; // from here on the process does not get to it
        while (_log.Entries.Count(static entry => entry.Event == "ChannelSuspected") < 3 && invoker.Pool.GetStatistics().ChannelsGivenUp == 0)
        {
            await client.GetNameAsync(new GetNameRequest()).ResponseAsync.Soon();
        }

        gate.SetResult();
        release.SetResult();
        Assert.Equal(0, invoker.Pool.GetStatistics().ChannelsGivenUp);
        await rename.Soon();
    }

    [Fact]
    public async Task AnOpenStream_WaitsForNothing()
    {
        var time = new FakeTimeProvider(TimeProvider.System.GetUtcNow());
        await using var invoker = NewInvoker(options => options.TimeProvider = time);
        using var chat = new User.UserClient(invoker).Chat();
        await chat.RequestStream.WriteAsync(new ChatMessage { Text = "a" });
        Assert.True(await chat.ResponseStream.MoveNext(CancellationToken.None).Soon());

        for (var passed = TimeSpan.Zero; passed < TimeSpan.FromMinutes(4); passed += TimeSpan.FromMilliseconds(25)) // until a stream is asked, too
        {
            time.Advance(TimeSpan.FromMilliseconds(25));
        }

        Assert.DoesNotContain(_log.Entries, static entry => entry.Event == "ChannelSuspected");
    }

    [Fact]
    public async Task AHungConnectionAmongOthers_IsGivenUp_AndItsCallsMove()
    {
        await using var invoker = NewInvoker(static options => options.MinPoolSize = 4);
        var client = new User.UserClient(invoker);
        await ConnectAsync(client, 4);
        await using var busy = new Calling(client);

        using var chat = client.Chat();
        await chat.RequestStream.WriteAsync(new ChatMessage { Text = "a" });
        Assert.True(await chat.ResponseStream.MoveNext(CancellationToken.None).Soon());

        var slow = Enumerable.Range(0, 8).Select(id => client.GetNameAsync(new GetNameRequest { Id = id, DelayMs = 700 })).ToList();
        var renames = Enumerable.Range(0, 8).Select(id => client.RenameAsync(new RenameRequest { RequestId = $"{id}", DelayMs = 700 })).ToList();
        await Waiting.Until(() => invoker.Pool.GetStatistics().CallsInFlight >= 16);
        _relay.Freeze(2);

        Assert.Equal(Enumerable.Range(0, 8), (await Task.WhenAll(slow.Select(static call => call.ResponseAsync)).Soon()).Select(static reply => reply.Id));
        var statuses = await Task.WhenAll(renames.Select(static async rename =>
        {
            try
            {
                await rename.ResponseAsync.Soon();
                return StatusCode.OK;
            }
            catch (RpcException exception)
            {
                Assert.NotNull(exception.Status.DebugException);
                Assert.Contains("The pool closed the connection: nothing has come from it for", exception.Status.Detail, StringComparison.Ordinal);
                return exception.StatusCode;
            }
        }));
        Assert.All(statuses, static status => Assert.True(status is StatusCode.OK or StatusCode.Unavailable, $"{status}"));
        await busy.StopAsync();
        AssertGivenUp(invoker.Pool.GetStatistics());
        await Waiting.Until(() => invoker.Pool.GetStatistics().Channels == 4);
        Assert.Contains(_log.Entries, static entry => entry.Event == "ChannelGivenUp");
        Assert.Equal(_server.Journal.Executed.Count, _server.Journal.Executed.Distinct().Count());
    }

    [Fact]
    public async Task TheOnlyConnectionHangs_AndAFreshOneTakesItsPlace()
    {
        await using var invoker = NewInvoker();
        var client = new User.UserClient(invoker);
        await ConnectAsync(client, 1);
        _relay.Freeze();

        var reply = await client.GetNameAsync(new GetNameRequest { Id = 7 }).ResponseAsync.Soon();
        Assert.Equal(7, reply.Id);
        AssertGivenUp(invoker.Pool.GetStatistics());
        Assert.True(invoker.Pool.GetStatistics().Retries >= 1);
    }

    [Fact]
    public async Task WhenEverythingHangs_NothingIsGivenUp_UntilAServerAnswers()
    {
        await using var invoker = NewInvoker();
        var client = new User.UserClient(invoker);
        await ConnectAsync(client, 1);
        _relay.FreezesNew = true;
        _relay.Freeze();

        var call = client.GetNameAsync(new GetNameRequest { Id = 7 });
        await Waiting.Until(() => _relay.Connections >= 7); // two rounds of fresh channels
        Assert.Equal((1, 0), (invoker.Pool.GetStatistics().Channels, invoker.Pool.GetStatistics().ChannelsGivenUp));
        Assert.False(call.ResponseAsync.IsCompleted);

        _relay.FreezesNew = false;
        Assert.Equal(7, (await call.ResponseAsync.Soon()).Id);
        AssertGivenUp(invoker.Pool.GetStatistics());
    }

    [Fact]
    public async Task AConnectionThatIsNeverAnswered_IsGivenUp()
    {
        _relay.FreezesNew = true;
        await using var invoker = NewInvoker();
        var client = new User.UserClient(invoker);
        var call = client.GetNameAsync(new GetNameRequest { Id = 7 });
        await Waiting.Until(() => _relay.Connections > 1);
        _relay.FreezesNew = false;

        Assert.Equal(7, (await call.ResponseAsync.Soon()).Id);
    }

    [Fact]
    public async Task AChannelThatCannotConnect_IsGivenUp_AndItsCallsMove()
    {
        await using var invoker = NewInvoker(static options => (options.MinPoolSize, options.MaxPoolSize) = (2, 2));
        var client = new User.UserClient(invoker);
        await invoker.ConnectAsync();
        await _relay.StopAcceptingAsync();
        await _relay.CloseAsync().Soon();

        // Some of them go to the channel that has lost its connection.
        var renames = Enumerable.Range(0, 8).Select(id => client.RenameAsync(new RenameRequest { RequestId = $"{id}" }).ResponseAsync).ToList();
        await using var busy = new Calling(client, callers: 8);
        await Task.WhenAll(renames).Soon();
        await busy.StopAsync();
        Assert.Equal(Enumerable.Range(0, 8).Select(static id => $"{id}"), _server.Journal.Executed.Order(StringComparer.Ordinal));
        Assert.Equal(1, invoker.Pool.GetStatistics().ChannelsGivenUp);
        Assert.Equal(0, invoker.Pool.GetStatistics().CallsInFlight);
    }

    [Fact]
    public async Task AProbeOfTheUsersOwn_IsAskedInPlaceOfThePing()
    {
        var asked = 0;
        await using var invoker = NewInvoker(options => options.ProbeCallback = async (probed, cancellationToken) =>
        {
            Interlocked.Increment(ref asked);
            await new User.UserClient(probed).GetProfileAsync(new GetProfileRequest(), cancellationToken: cancellationToken);
        });
        await new User.UserClient(invoker).GetNameAsync(new GetNameRequest { DelayMs = 1_000 }).ResponseAsync.Soon();
        Assert.True(asked >= 1);
        Assert.Equal(0, invoker.Pool.GetStatistics().ChannelsGivenUp);
    }

    // At least one: on a busy machine others may seem to hang, too. In virtual time it is exact.
    private static void AssertGivenUp(ChannelPoolStatistics statistics) => Assert.True(statistics is { ChannelsGivenUp: >= 1, Channels: >= 1 }, $"{statistics}");

    private static async Task ConnectAsync(User.UserClient client, int channels)
    {
        for (var i = 0; i < channels; i++)
        {
            await client.GetNameAsync(new GetNameRequest()).ResponseAsync.Soon();
        }
    }

    private PoolingCallInvoker NewInvoker(Action<ChannelPoolOptions>? configure = null)
    {
        var options = new PoolingCallInvokerOptions
        {
            Pool = { ProbeDelay = TimeSpan.FromMilliseconds(100), ProbeTimeout = TimeSpan.FromMilliseconds(250), LoggerFactory = _log },
        };
        configure?.Invoke(options.Pool);
        return PoolingCallInvoker.ForAddress(_relay.Address, options);
    }

    /// <summary>Callers that call all the time, so that the channels that work show it.</summary>
    private sealed class Calling : IAsyncDisposable
    {
        private readonly CancellationTokenSource _stop = new();
        private readonly Task _calling;

        public Calling(User.UserClient client, int callers = 1) => _calling = Task.WhenAll(Enumerable.Range(0, callers).Select(_ => Task.Run(async () =>
        {
            while (!_stop.IsCancellationRequested)
            {
                await client.GetNameAsync(new GetNameRequest { DelayMs = 5 }).ResponseAsync.Soon();
            }
        })));

        public async Task StopAsync()
        {
            await _stop.CancelAsync();
            await _calling;
        }

        public async ValueTask DisposeAsync()
        {
            await StopAsync();
            _stop.Dispose();
        }
    }

    // Tells who writes, and leaves what has come unread until it may read.
    private sealed class UnreadStream(Socket socket, Action<UnreadStream> writes) : NetworkStream(socket, ownsSocket: true)
    {
        public Task MayRead { get; set; } = Task.CompletedTask;

        public override async ValueTask<int> ReadAsync(Memory<byte> buffer, CancellationToken cancellationToken = default)
        {
            _ = await base.ReadAsync(Memory<byte>.Empty, cancellationToken);
            await MayRead.WaitAsync(cancellationToken);
            return await base.ReadAsync(buffer, cancellationToken);
        }

        public override ValueTask WriteAsync(ReadOnlyMemory<byte> buffer, CancellationToken cancellationToken = default)
        {
            writes(this);
            return base.WriteAsync(buffer, cancellationToken);
        }
    }
}

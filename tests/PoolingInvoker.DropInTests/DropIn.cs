using System.Net;
using System.Net.Sockets;
using Grpc.Core;
using Grpc.Net.Client;
using Polly;
using PoolingInvoker.Testing;

namespace PoolingInvoker.DropInTests;

/// <summary>
/// Code that knows nothing of the pool runs on a bare channel, and then over a pool: it sees the same, and leaves no lease behind.
/// </summary>
public static class DropIn
{
    private const int MaxConcurrentCallsWhenFull = 8;

    public static TheoryData<PoolKind> EachPool => [.. Enum.GetValues<PoolKind>()];

    /// <summary>Runs the conversation twice, and gives what it saw both times.</summary>
    /// <param name="address">The server.</param>
    /// <param name="kind">How the pool is set up.</param>
    /// <param name="converse">Uses the invoker, and writes down what it sees.</param>
    /// <param name="meets">What the pool meets on its way: null for nothing that it would have to do anything about.</param>
    /// <param name="bareHandler">The handler of the bare channel, if not its own.</param>
    public static async Task<IReadOnlyList<string>> SameAsBareAsync(
        Uri address, PoolKind kind, Func<CallInvoker, Transcript, Task> converse, Action<ChannelPoolStatistics>? meets = null, HttpMessageHandler? bareHandler = null)
    {
        using var channel = GrpcChannel.ForAddress(address, new GrpcChannelOptions { HttpHandler = bareHandler, DisposeHttpClient = bareHandler is not null });
        var bare = await RunAsync(channel.CreateCallInvoker(), converse);
        Assert.NotEmpty(bare);

        await using var pool = NewPool(address, kind);
        Assert.Equal(bare, await (kind == PoolKind.FullAtFirst ? RunWhenFullAsync(pool, converse) : RunAsync(pool, converse)));
        await NothingIsLeftAsync(pool);
        var statistics = pool.Pool.GetStatistics();
        if (meets is not null)
        {
            meets(statistics);
        }
        else
        {
            Assert.Equal(0, statistics.Retries);
            Assert.Equal(0, statistics.ChannelsReplaced);
            Assert.Equal(0, statistics.LeaksReclaimed);
        }

        return bare;
    }

    public static PoolingCallInvoker NewPool(Uri address, PoolKind kind, Func<IMethod, bool>? isIdempotent = null, TimeProvider? time = null)
    {
        // No server answers a probe in virtual time.
        var options = new PoolingCallInvokerOptions
        {
            IsIdempotent = isIdempotent,
            Pool = { TimeProvider = time ?? TimeProvider.System, ProbeDelay = time is null ? TimeSpan.FromSeconds(1) : Timeout.InfiniteTimeSpan },
        };
        switch (kind)
        {
            case PoolKind.Exclusive:
                options.Pool.MaxConcurrentCallsPerChannel = 1;
                break;
            case PoolKind.OwnPipeline:
                options.ConfigurePipeline = static pipeline => pipeline.AddRetry(new ChannelRetryStrategyOptions());
                break;
            case PoolKind.FullAtFirst:
                (options.Pool.MaxPoolSize, options.Pool.MaxConcurrentCallsPerChannel) = (1, MaxConcurrentCallsWhenFull);
                break;
            default:
                break;
        }

        return PoolingCallInvoker.ForAddress(address, options);
    }

    public static Task NothingIsLeftAsync(PoolingCallInvoker pool) =>
        Waiting.Until(() => pool.Pool.GetStatistics() is { CallsInFlight: 0, CallsWaiting: 0 });

    /// <summary>A port that nobody listens on, and that nobody else gets as long as it is held.</summary>
    public static Socket HoldSilentPort(out Uri address)
    {
        var socket = new Socket(AddressFamily.InterNetwork, SocketType.Stream, ProtocolType.Tcp);
        socket.Bind(new IPEndPoint(IPAddress.Loopback, 0));
        address = new Uri($"http://{socket.LocalEndPoint}");
        return socket;
    }

    private static async Task<IReadOnlyList<string>> RunAsync(CallInvoker invoker, Func<CallInvoker, Transcript, Task> converse)
    {
        var transcript = new Transcript();
        try
        {
            // Not on the thread of the test: a client may block.
            await Task.Run(() => converse(invoker, transcript)).Soon();
        }
        catch (TimeoutException)
        {
            Assert.Fail($"With the {invoker.GetType().Name} it does not go on after:\n{string.Join('\n', transcript.Lines)}");
        }

        return transcript.Lines;
    }

    private static async Task<IReadOnlyList<string>> RunWhenFullAsync(PoolingCallInvoker pool, Func<CallInvoker, Transcript, Task> converse)
    {
        var taken = new List<ChannelLease>();
        for (var i = 0; i < MaxConcurrentCallsWhenFull; i++)
        {
            taken.Add(await pool.Pool.AcquireAsync().Soon());
        }

        var conversation = RunAsync(pool, converse);
        await Waiting.Until(() => conversation.IsCompleted || pool.Pool.GetStatistics().CallsWaiting > 0);
        taken.ForEach(static lease => lease.Dispose());
        return await conversation;
    }
}

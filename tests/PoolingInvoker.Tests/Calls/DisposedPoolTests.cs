using Grpc.Core;
using Polly;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.Tests.Calls;

/// <summary>A pool that is disposed between the grant of a lease and the start of the call on it.</summary>
public sealed class DisposedPoolTests : ScriptedCalls
{
    public static TheoryData<string, string> Cases()
    {
        var cases = new TheoryData<string, string>();
        foreach (var kind in (string[])["unary", "blocking unary", "client streaming", "server streaming", "duplex"])
        {
            foreach (var how in (string[])["preset", "pipeline", "hedged", "wait for ready", "no retry"])
            {
                cases.Add(kind, how);
            }
        }

        return cases;
    }

    [Theory]
    [MemberData(nameof(Cases))]
    public async Task TheCall_IsCancelledOrUnavailable(string kind, string how)
    {
        for (var i = 0; i < 100; i++)
        {
            Server.ThenHang();
            var (client, pool) = NewClient(how, static pool => (pool.MaxPoolSize, pool.MaxConcurrentCallsPerChannel) = (1, 1));
            var held = await pool.AcquireAsync().Soon();
            var options = how == "wait for ready" ? default(CallOptions).WithWaitForReady() : default;
            var call = Task.Run(() => RunAsync(client, kind, options));
            await Waiting.Until(() => pool.GetStatistics().CallsWaiting == 1);
            var granting = Task.Run(held.Dispose);
            Thread.SpinWait(i * 20);
            pool.Dispose();
            await granting;
            var exception = await Record.ExceptionAsync(() => call.Soon());
            Assert.True(exception is RpcException { StatusCode: StatusCode.Cancelled or StatusCode.Unavailable }, exception?.ToString());
        }
    }

    [Theory]
    [MemberData(nameof(Cases))]
    public async Task ACallWhoseHandlerIsDisposedWithThePool_IsCancelled(string kind, string how)
    {
        var disposed = new TaskCompletionSource();
        Server.Then(async _ =>
        {
            await disposed.Task;
            throw new ObjectDisposedException("handler");
        });
        var (client, pool) = NewClient(how, static _ => { });
        var call = Task.Run(() => RunAsync(client, kind, how == "wait for ready" ? default(CallOptions).WithWaitForReady() : default));
        await Waiting.Until(() => Server.Requests.Count == 1);
        var disposing = pool.DisposeAsync();
        disposed.SetResult();
        var exception = await Assert.ThrowsAsync<RpcException>(() => call.Soon());
        Assert.Equal(StatusCode.Cancelled, exception.StatusCode);
        await disposing.AsTask().Soon();
    }

    private (User.UserClient Client, ChannelPool Pool) NewClient(string how, Action<ChannelPoolOptions> configure) => NewClient(options =>
    {
        configure(options.Pool);
        options.ConfigurePipeline = how == "pipeline" ? static pipeline => pipeline.AddTimeout(TimeSpan.FromHours(1)) : null;
        options.Retry.MaxRetryAttempts = how == "no retry" ? 0 : options.Retry.MaxRetryAttempts;
        if (how == "hedged")
        {
            options.MethodConfigs.Add(new PooledMethodConfig { Names = { Grpc.Net.Client.Configuration.MethodName.Default }, Hedging = new ChannelHedgingStrategyOptions() });
        }
    });

    private static async Task RunAsync(User.UserClient client, string kind, CallOptions options)
    {
        switch (kind)
        {
            case "unary":
                await client.GetNameAsync(new GetNameRequest(), options);
                break;
            case "blocking unary":
                client.GetName(new GetNameRequest(), options);
                break;
            case "client streaming":
                await client.ImportNames(options);
                break;
            case "server streaming":
                using (var call = client.ListNames(new ListNamesRequest(), options))
                {
                    await ReadAsync(call.ResponseStream, call.GetStatus);
                }

                break;
            default:
                using (var call = client.Chat(options))
                {
                    await ReadAsync(call.ResponseStream, call.GetStatus);
                }

                break;
        }
    }

    // A read that begins when all is disposed is refused, as on a bare channel; the call has its status all the same.
    private static async Task ReadAsync<T>(IAsyncStreamReader<T> responses, Func<Status> getStatus)
    {
        try
        {
            await responses.MoveNext(CancellationToken.None);
        }
        catch (ObjectDisposedException)
        {
            throw new RpcException(getStatus());
        }
    }
}

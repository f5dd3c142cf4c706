using System.Text;
using Grpc.Core;
using Grpc.Net.Client;
using PoolingInvoker.Testing;

namespace PoolingInvoker.ContractTests;

/// <summary>One Metadata for several calls, which is changed in between: each call goes out with what it was started with.</summary>
public sealed class SharedMetadataTests(ContractServer server) : IClassFixture<ContractServer>
{
    private static readonly string[] Tenants = ["anna", "berta", "clara", "dora", "emil"];
    private static readonly Marshaller<string> Text = Marshallers.Create(Encoding.UTF8.GetBytes, Encoding.UTF8.GetString);

    [Theory]
    [InlineData(MethodType.Unary)]
    [InlineData(MethodType.ServerStreaming)]
    [InlineData(MethodType.ClientStreaming)]
    [InlineData(MethodType.DuplexStreaming)]
    public async Task EachCall_GoesOutWithTheTenantThatItWasStartedWith(MethodType kind)
    {
        using var channel = GrpcChannel.ForAddress(server.Address);
        Assert.Equal(Tenants, await TenantsOfAsync(channel.CreateCallInvoker(), kind, Ending.Tenant));
        await using var pool = NewPool();
        Assert.Equal(Tenants, await TenantsOfAsync(pool, kind, Ending.Tenant)); // no call finds a channel
        Assert.Equal(Tenants, await TenantsOfAsync(pool, kind, Ending.Tenant));
    }

    [Theory]
    [InlineData(MethodType.Unary)]
    [InlineData(MethodType.ServerStreaming)]
    [InlineData(MethodType.ClientStreaming)]
    [InlineData(MethodType.DuplexStreaming)]
    public async Task ARetriedCall_GoesOutWithTheTenantThatItWasStartedWith(MethodType kind)
    {
        await using var pool = NewPool();
        await pool.ConnectAsync().Soon();
        Assert.Equal(Tenants, await TenantsOfAsync(pool, kind, Ending.TenantRefusedOnce));
        Assert.Equal(5, pool.Pool.GetStatistics().Retries);
    }

    [Theory]
    [InlineData(MethodType.Unary)]
    [InlineData(MethodType.ServerStreaming)]
    [InlineData(MethodType.ClientStreaming)]
    [InlineData(MethodType.DuplexStreaming)]
    public async Task AThousandCallsOnAColdPool_EachRetried_GoOutWithTheTenantsThatTheyWereStartedWith(MethodType kind)
    {
        await using var pool = NewPool();
        string[] tenants = [.. Enumerable.Range(0, 1000).Select(static tenant => $"tenant {tenant}")];
        Assert.Equal(tenants, await TenantsOfAsync(pool, kind, Ending.TenantRefusedOnce, tenants));
        Assert.Equal(tenants.Length, pool.Pool.GetStatistics().Retries);
    }

    private PoolingCallInvoker NewPool() => PoolingCallInvoker.ForAddress(
        server.Address,
        new PoolingCallInvokerOptions { IsIdempotent = static _ => true, Pool = { RetryThrottling = null }, Retry = { Delay = TimeSpan.Zero } });

    private static Task<string[]> TenantsOfAsync(CallInvoker invoker, MethodType kind, string ending) => TenantsOfAsync(invoker, kind, ending, Tenants);

    private static async Task<string[]> TenantsOfAsync(CallInvoker invoker, MethodType kind, string ending, string[] tenants)
    {
        var headers = new Metadata();
        var method = new Method<string, string>(kind, "contract", kind.ToString(), Text, Text);
        var calls = new List<Task<string>>();
        foreach (var tenant in tenants)
        {
            headers.Clear();
            headers.Add("ending", ending);
            headers.Add("tenant", tenant);
            calls.Add(Start(invoker, method, new CallOptions(headers)));
        }

        headers.Clear();
        return await Task.WhenAll(calls).Soon();
    }

    // Not an async method: the call is started before it returns.
    private static Task<string> Start(CallInvoker invoker, Method<string, string> method, CallOptions options)
    {
        switch (method.Type)
        {
            case MethodType.Unary:
                return invoker.AsyncUnaryCall(method, null, options, "hello").ResponseAsync;
            case MethodType.ServerStreaming:
                return FirstOf(invoker.AsyncServerStreamingCall(method, null, options, "hello").ResponseStream);
            case MethodType.ClientStreaming:
                var client = invoker.AsyncClientStreamingCall(method, null, options);
                return AfterAsync(client.RequestStream.CompleteAsync(), () => client.ResponseAsync);
            default:
                var duplex = invoker.AsyncDuplexStreamingCall(method, null, options);
                return AfterAsync(duplex.RequestStream.CompleteAsync(), () => FirstOf(duplex.ResponseStream));
        }
    }

    private static async Task<string> AfterAsync(Task before, Func<Task<string>> then)
    {
        await before;
        return await then();
    }

    private static async Task<string> FirstOf(IAsyncStreamReader<string> responses)
    {
        Assert.True(await responses.MoveNext(CancellationToken.None));
        var first = responses.Current;
        Assert.False(await responses.MoveNext(CancellationToken.None));
        return first;
    }
}

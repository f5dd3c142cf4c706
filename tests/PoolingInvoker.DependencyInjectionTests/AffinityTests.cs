using Grpc.Core;
using Microsoft.Extensions.DependencyInjection;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.DependencyInjectionTests;

/// <summary>Keys of calls, with a client of the client factory.</summary>
public sealed class AffinityTests
{
    [Fact]
    public async Task AKey_ReachesThePool_ThroughInterceptors_FromTheRequest_AndWithAClientOverThePool()
    {
        await using var server = await UserServer.StartAsync();
        var trace = new Trace();
        await using var app = new ClientApp(services => services.AddGrpcClient<User.UserClient>(options => options.Address = server.Address)
            .AddInterceptor(() => new TracingInterceptor(trace, "above"))
            .AddChannelPool(static options => options.AffinityKey = static (_, request) => request is GetNameRequest { Id: > 0 } get ? $"{get.Id}" : null));
        var calls = 0;

        // Without a key, from the request, and of the single call.
        await AssertAsync(app.Client.GetNameAsync(new GetNameRequest()), expected: 0);
        await AssertAsync(app.Client.GetNameAsync(new GetNameRequest { Id = 7 }), expected: 1);
        await AssertAsync(app.Client.GetNameAsync(new GetNameRequest(), new CallOptions().WithAffinity("session")), expected: 1);
        Assert.Equal(["above", "above", "above"], trace.Take());

        // Another client over the same pool.
        var keyed = app.Services.GetRequiredKeyedService<PoolingCallInvoker>(nameof(User.UserClient)).WithAffinity("session");
        await AssertAsync(new User.UserClient(keyed).GetNameAsync(new GetNameRequest()), expected: 1);

        async Task AssertAsync(AsyncUnaryCall<GetNameReply> call, int expected)
        {
            await call.ResponseAsync.Soon();
            calls += expected;
            Assert.Equal(calls, app.Pool.GetStatistics().AffinityCalls);
            Assert.Null(server.LastCall["pooling-invoker-affinity"]);
        }
    }
}

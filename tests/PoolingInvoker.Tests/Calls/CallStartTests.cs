using Grpc.Core;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.Tests.Calls;

/// <summary>What a caller gives is read when the call is started, as on a bare channel: what becomes of it later is another call's.</summary>
public sealed class CallStartTests : ScriptedCalls
{
    [Theory]
    [InlineData(0)]
    [InlineData(1)]
    [InlineData(2)]
    public async Task Headers_AreThoseOfTheStart_OnEachAttempt(int retries)
    {
        for (var i = 0; i < retries; i++)
        {
            Server.ThenBreak();
        }

        Server.ThenName("anna");
        var (client, _) = NewClient();
        var headers = new Metadata { { "tenant", "anna" } };
        var call = client.GetNameAsync(new GetNameRequest(), headers);
        Change(headers);
        await Elapse(call.ResponseAsync);
        Assert.Equal("anna", (await call.ResponseAsync.Soon()).Name);
        Assert.Equal(1 + retries, Server.Requests.Count);
        AllOfAnna();
    }

    [Fact]
    public async Task NoHeaders_AreThoseOfTheStart_OnEachAttempt()
    {
        Server.ThenBreak().ThenName("anna");
        var (client, _) = NewClient();
        var headers = new Metadata();
        var call = client.GetNameAsync(new GetNameRequest(), headers);
        Change(headers);
        await Elapse(call.ResponseAsync);
        await call.ResponseAsync.Soon();
        Assert.Equal(2, Server.Requests.Count);
        Assert.All(Server.Requests, static sent => Assert.False(sent.Request.Headers.Contains("tenant")));
    }

    [Fact]
    public async Task Headers_AreThoseOfTheStart_OnEachHedge()
    {
        Server.ThenHang().ThenName("anna");
        var (client, _) = NewClient(static options =>
        {
            var config = new PooledMethodConfig { Hedging = new ChannelHedgingStrategyOptions { Delay = TimeSpan.FromMilliseconds(100) } };
            config.Names.Add(Grpc.Net.Client.Configuration.MethodName.Default);
            options.MethodConfigs.Add(config);
        });
        var headers = new Metadata { { "tenant", "anna" } };
        var call = client.GetNameAsync(new GetNameRequest(), headers);
        Change(headers);
        await Elapse(call.ResponseAsync);
        await call.ResponseAsync.Soon();
        Assert.Equal(2, Server.Requests.Count);
        AllOfAnna();
    }

    [Fact]
    public async Task Headers_AreThoseOfTheStart_WhereTheCallWaitsForReady()
    {
        Server.ThenRefuse().ThenRefuse().ThenName("anna");
        var (client, _) = NewClient();
        var headers = new Metadata { { "tenant", "anna" } };
        var call = client.GetNameAsync(new GetNameRequest(), new CallOptions(headers).WithWaitForReady());
        Change(headers);
        await Elapse(call.ResponseAsync);
        await call.ResponseAsync.Soon();
        Assert.Equal(3, Server.Requests.Count);
        AllOfAnna();
    }

    private static void Change(Metadata headers)
    {
        headers.Clear();
        headers.Add("tenant", "berta");
    }

    private void AllOfAnna() => Assert.All(
        Server.Requests,
        static sent => Assert.Equal("anna", Assert.Single(sent.Request.Headers.GetValues("tenant"))));
}

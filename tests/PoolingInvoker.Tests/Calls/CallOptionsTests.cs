using Grpc.Core;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.Tests.Calls;

/// <summary>What a caller asks for in the options of a call and of its channel reaches the wire as it does from a bare channel.</summary>
public sealed class CallOptionsTests
{
    private readonly ScriptedServer _server = new();

    [Fact]
    public async Task HeadersCredentialsCompressionAndDeadline_ReachTheServer()
    {
        _server.ConfigureChannel = static options => options.UnsafeUseInsecureChannelCallCredentials = true;
        var credentials = CallCredentials.FromInterceptor(static (_, metadata) =>
        {
            metadata.Add("authorization", "Bearer token");
            return Task.CompletedTask;
        });
        var headers = new Metadata { { "tenant", "7" }, { "grpc-internal-encoding-request", "gzip" }, { "trace-bin", [1, 2, 3] } };
        var options = new CallOptions(headers, DateTime.UtcNow.AddHours(20), credentials: credentials, writeOptions: new WriteOptions(WriteFlags.NoCompress));

        var requests = await OfBothAsync(async client =>
        {
            _server.ThenName("anna");
            await client.GetNameAsync(new GetNameRequest(), options).ResponseAsync.Soon();
        });
        Assert.Equal(requests[0], requests[1]);
        Assert.Contains("authorization: Bearer token", requests[1], StringComparison.OrdinalIgnoreCase);
        Assert.Contains("tenant: 7", requests[1], StringComparison.Ordinal);
        Assert.Contains("grpc-encoding: gzip", requests[1], StringComparison.Ordinal);
        Assert.Contains("grpc-timeout: ", requests[1], StringComparison.Ordinal);
    }

    [Fact]
    public async Task TheLimitsOfAMessage_AreThoseOfTheChannel()
    {
        _server.ConfigureChannel = static options => (options.MaxReceiveMessageSize, options.MaxSendMessageSize) = (100, 100);
        var failures = new List<string>();
        await OfBothAsync(async client =>
        {
            _server.ThenName(new string('x', 200));
            var received = await Assert.ThrowsAsync<RpcException>(() => client.GetNameAsync(new GetNameRequest()).ResponseAsync.Soon());
            failures.Add(received.Message);
        });
        Assert.Equal(failures[0], failures[1]);
        Assert.Contains("ResourceExhausted", failures[1], StringComparison.Ordinal);
    }

    [Fact]
    public async Task TheOptionsOfTheCaller_AreNotTouched()
    {
        var headers = new Metadata { { "tenant", "7" } };
        _server.ThenBreak().ThenName("anna");
        using var pool = new ChannelPool(_server);
        var client = new User.UserClient(new PoolingCallInvoker(pool));
        await client.GetNameAsync(new GetNameRequest(), headers).ResponseAsync.Soon();
        Assert.Single(headers);
        Assert.Equal(2, _server.Requests.Count);
    }

    // What the server has seen of a bare channel, and of the pool.
    private async Task<string[]> OfBothAsync(Func<User.UserClient, Task> call)
    {
        using var channel = _server.Create();
        await call(new User.UserClient(channel));
        using var pool = new ChannelPool(_server);
        await call(new User.UserClient(new PoolingCallInvoker(pool)));
        return [.. _server.Requests.Select(static exchange => string.Join(
            "\n",
            exchange.Request.Headers.Select(static header => $"{header.Key}: {(header.Key == "grpc-timeout" ? "some" : string.Join(",", header.Value))}").Prepend(exchange.Request.RequestUri!.ToString())))];
    }
}

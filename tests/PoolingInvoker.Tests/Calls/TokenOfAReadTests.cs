using Grpc.Core;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.Tests.Calls;

/// <summary>The token of a read ends the call, also the first one, and with retries. The writer of the call sees what it sees on a bare channel.</summary>
public sealed class TokenOfAReadTests : ScriptedCalls
{
    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public async Task TheWriter_IsToldThatTheCallWasCancelled(bool isBare)
    {
        Server.ThenHang();
        using var channel = Server.Create();
        var client = isBare ? new User.UserClient(channel) : NewClient().Client;
        using var call = client.Chat();
        await call.RequestStream.WriteAsync(new ChatMessage()).Soon();
        using var cancellation = new CancellationTokenSource();
        var reading = call.ResponseStream.MoveNext(cancellation.Token);
        await cancellation.CancelAsync();
        Assert.Equal(StatusCode.Cancelled, (await Assert.ThrowsAsync<RpcException>(() => reading.Soon())).StatusCode);
        Assert.Equal(StatusCode.Cancelled, (await Assert.ThrowsAsync<RpcException>(() => call.RequestStream.WriteAsync(new ChatMessage()).Soon())).StatusCode);
        await call.RequestStream.CompleteAsync().Soon();
        Assert.Equal(StatusCode.Cancelled, call.GetStatus().StatusCode);
    }
}

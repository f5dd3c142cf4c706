using Grpc.Core;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.Tests.Calls;

/// <summary>A call that is ended from this side, and whose response stumbles over that on the channel: it ends as what it is.</summary>
public sealed class AbortedRequestTests : ScriptedCalls
{
    [Theory]
    [InlineData("token")]
    [InlineData("dispose")]
    [InlineData("pool")]
    public async Task ACallThatIsEndedFromThisSide_IsCancelled(string by)
    {
        Server.ThenHangAndAbort();
        var (client, pool) = NewClient(static _ => { });
        using var cancellation = new CancellationTokenSource();
        using var call = client.GetNameAsync(new GetNameRequest(), new CallOptions(cancellationToken: cancellation.Token));
        await call.ResponseHeadersAsync.Soon();
        switch (by)
        {
            case "token":
                await cancellation.CancelAsync();
                break;
            case "dispose":
                call.Dispose();
                break;
            default:
                pool.Dispose();
                break;
        }

        var exception = await Assert.ThrowsAsync<RpcException>(() => call.ResponseAsync.Soon());
        Assert.Equal((StatusCode.Cancelled, StatusCode.Cancelled), (exception.StatusCode, call.GetStatus().StatusCode));
        await Waiting.Until(() => pool.GetStatistics().CallsInFlight == 0);
    }
}

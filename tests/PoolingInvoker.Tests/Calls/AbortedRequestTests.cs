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

    [Theory]
    [InlineData("token", true)]
    [InlineData("token", false)]
    [InlineData("dispose", true)]
    [InlineData("dispose", false)]
    public async Task AWriterOfACallThatIsEndedFromThisSide_MeetsWhatItMeetsOnABareChannel(string by, bool completed)
    {
        Server.ThenHangAndAbort().ThenHangAndAbort();
        using var bare = Server.Create();
        var (pooled, _) = NewClient(static _ => { });

        Assert.Equal(await LateUseAsync(new User.UserClient(bare), by, completed), await LateUseAsync(pooled, by, completed));
    }

    private static async Task<string> LateUseAsync(User.UserClient client, string by, bool completed)
    {
        using var cancellation = new CancellationTokenSource();
        using var call = client.ImportNames(cancellationToken: cancellation.Token);
        await call.RequestStream.WriteAsync(new ImportNameRequest()).Soon();
        await call.ResponseHeadersAsync.Soon();
        if (completed)
        {
            await call.RequestStream.CompleteAsync().Soon();
        }

        if (by == "token")
        {
            await cancellation.CancelAsync();
        }
        else
        {
            call.Dispose();
        }

        await Assert.ThrowsAsync<RpcException>(() => call.ResponseAsync.Soon());
        return $"""
            write: {await EndOfAsync(() => call.RequestStream.WriteAsync(new ImportNameRequest()))}
            complete: {await EndOfAsync(call.RequestStream.CompleteAsync)}
            headers: {await EndOfAsync(() => call.ResponseHeadersAsync)}
            trailers: {await EndOfAsync(() => Task.FromResult(call.GetTrailers()))}
            """;
    }

    private static async Task<string> EndOfAsync(Func<Task> use)
    {
        try
        {
            await use().Soon();
            return "ok";
        }
        catch (RpcException exception)
        {
            return exception.StatusCode.ToString();
        }
        catch (InvalidOperationException exception)
        {
            return exception is ObjectDisposedException ? nameof(ObjectDisposedException) : exception.Message;
        }
    }
}

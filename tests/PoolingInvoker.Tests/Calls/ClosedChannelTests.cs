using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.Tests.Calls;

/// <summary>A channel that the pool closes when an attempt has failed, before Grpc.Net.Client has forgotten the call of that attempt.</summary>
public sealed class ClosedChannelTests : ScriptedCalls
{
    [Theory]
    [InlineData("write")]
    [InlineData("read")]
    public async Task WhatMeetsTheClosedChannel_FollowsToTheNextAttempt(string what)
    {
        using var closed = new ManualResetEventSlim();
        Server.Then(async token =>
        {
            // It fires when the call has ended. The channel forgets the call when this is over.
            token.UnsafeRegister(static closed => Assert.True(((ManualResetEventSlim)closed!).Wait(Waiting.Long)), closed);
            await Task.CompletedTask.ConfigureAwait(ConfigureAwaitOptions.ForceYielding);
            throw new HttpRequestException(HttpRequestError.ConnectionError, "refused");
        }).ThenReplyAfterRequests(new ChatMessage { Text = "a" });
        var (client, pool) = NewClient(static options => options.Retry.Delay = TimeSpan.FromSeconds(1));
        using var call = client.Chat();
        await Waiting.Until(() => pool.GetStatistics() is { CallsInFlight: 0, ChannelsReplaced: 1 } && pool.GetChannels().Count == 1);
        var doing = what == "write" ? call.RequestStream.WriteAsync(new ChatMessage()) : call.ResponseStream.MoveNext(CancellationToken.None);
        closed.Set();
        Assert.False(doing.IsCompleted);
        await Elapse(() => Server.Requests.Count == 2);
        if (what == "read")
        {
            await call.RequestStream.CompleteAsync().Soon();
        }

        await doing.Soon();
    }
}

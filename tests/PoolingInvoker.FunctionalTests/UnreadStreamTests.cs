using Grpc.Core;
using Microsoft.AspNetCore.Http;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.FunctionalTests;

/// <summary>What the pool knows of streams that nobody reads, from the responses of its own transport, and what it keeps of those that last.</summary>
public sealed class UnreadStreamTests
{
    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public async Task WhatEndsBeforeItsHeaders_GivesItsLeaseBack_AlsoWhereItsCredentialsMakeACallFirst(bool hasCredentials)
    {
        var arrived = 0;
        await using var server = await HttpServer.StartAsync(async context =>
        {
            if (context.Request.Path == "/user.v1.User/GetName")
            {
                await HttpServer.ReplyAsync(context, []);
                return;
            }

            Interlocked.Increment(ref arrived);
            await Task.Delay(100, context.RequestAborted).ConfigureAwait(ConfigureAwaitOptions.SuppressThrowing);
            context.Abort();
        });
        await using var client = TestClient.Create(
            overPool: true, server.Address, channel: static options => options.UnsafeUseInsecureChannelCallCredentials = true, pool: static options => options.Retry.MaxRetryAttempts = 0);
        var asked = 0;
        var credentials = CallCredentials.FromInterceptor(async (_, _) =>
        {
            await client.User.GetNameAsync(new GetNameRequest());
            Interlocked.Increment(ref asked);
        });
        using var list = client.User.ListNames(new ListNamesRequest(), new CallOptions(credentials: hasCredentials ? credentials : null));
        using var chat = client.User.Chat(new CallOptions(credentials: hasCredentials ? credentials : null));
        await Waiting.Until(() => Volatile.Read(ref arrived) == 2);
        await Waiting.Until(() => client.Pooled!.Pool.GetStatistics().CallsInFlight == 0);
        Assert.Equal(hasCredentials ? 2 : 0, asked);
        Assert.Equal(StatusCode.Internal, (await Assert.ThrowsAsync<RpcException>(() => list.ResponseHeadersAsync.Soon())).StatusCode);
    }

    [Fact]
    public async Task AStreamThatHasItsHeaders_HasTheContentOfItsCallAgain()
    {
        await using var server = await HttpServer.StartAsync(static async context =>
        {
            context.Response.ContentType = "application/grpc";
            await context.Response.Body.FlushAsync();
            await context.Request.Body.CopyToAsync(Stream.Null);
            context.Response.AppendTrailer("grpc-status", "0");
            await context.Response.Body.WriteAsync((byte[])[0, 0, 0, 0, 0]);
        });
        var handler = new LookingHandler();
        await using var client = TestClient.Create(overPool: true, server.Address, channel: options =>
        {
            handler.InnerHandler = options.HttpHandler!;
            options.HttpHandler = handler;
        }, pool: static options => options.Pool.MaxPoolSize = 1);
        using var chat = client.User.Chat();
        await chat.ResponseHeadersAsync.Soon();
        var request = Assert.Single(handler.Requests);
        Assert.Equal(("SendOnceContent", "PushStreamContent`2"), (request.Sent, request.Message.Content!.GetType().Name));
        await chat.RequestStream.WriteAsync(new ChatMessage { Text = "hello" }).Soon();
        await chat.RequestStream.CompleteAsync().Soon();
        Assert.True(await chat.ResponseStream.MoveNext(CancellationToken.None).Soon());
        Assert.False(await chat.ResponseStream.MoveNext(CancellationToken.None).Soon());
    }

    private sealed class LookingHandler : DelegatingHandler
    {
        public List<(HttpRequestMessage Message, string Sent)> Requests { get; } = [];

        protected override Task<HttpResponseMessage> SendAsync(HttpRequestMessage request, CancellationToken cancellationToken)
        {
            Requests.Add((request, request.Content!.GetType().Name));
            return base.SendAsync(request, cancellationToken);
        }
    }
}

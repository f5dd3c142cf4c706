using System.Runtime.ExceptionServices;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.Tests.Calls;

/// <summary>
/// The exceptions that are thrown in a call, whoever catches them, beside those on a bare channel. They are counted in the whole process,
/// so nothing else runs meanwhile.
/// </summary>
[Collection(nameof(FirstChanceTests))]
public sealed class FirstChanceTests : ScriptedCalls
{
    [Theory]
    [InlineData("unary")]
    [InlineData("unary, headers first")]
    [InlineData("blocking unary")]
    [InlineData("client streaming")]
    [InlineData("server streaming")]
    [InlineData("server streaming, headers first")]
    [InlineData("duplex")]
    [InlineData("duplex, writes behind the headers")]
    public async Task AHealthyCall_ThrowsNothing(string kind)
    {
        using var channel = Server.Create();
        var (client, _) = NewClient();
        await CountAsync(new User.UserClient(channel), kind); // what is thrown once, when code runs for the first time
        await CountAsync(client, kind);
        var bare = await CountAsync(new User.UserClient(channel), kind);
        Assert.Empty(bare);
        Assert.Equal(bare, await CountAsync(client, kind));
    }

    private async Task<IReadOnlyList<string>> CountAsync(User.UserClient client, string kind)
    {
        var thrown = new List<string>();
        void OnThrown(object? sender, FirstChanceExceptionEventArgs arguments)
        {
            lock (thrown)
            {
                thrown.Add($"{arguments.Exception.GetType().Name}: {arguments.Exception.Message}");
            }
        }

        AppDomain.CurrentDomain.FirstChanceException += OnThrown;
        try
        {
            await RunAsync(client, kind);
        }
        finally
        {
            AppDomain.CurrentDomain.FirstChanceException -= OnThrown;
        }

        lock (thrown)
        {
            return [.. thrown];
        }
    }

    private async Task RunAsync(User.UserClient client, string kind)
    {
        switch (kind)
        {
            case "unary":
                Server.ThenName("anna");
                await client.GetNameAsync(new GetNameRequest()).ResponseAsync;
                break;
            case "unary, headers first":
                Server.ThenName("anna");
                var unary = client.GetNameAsync(new GetNameRequest());
                await unary.ResponseHeadersAsync;
                await unary.ResponseAsync;
                break;
            case "blocking unary":
                Server.ThenName("anna");
                client.GetName(new GetNameRequest(), cancellationToken: CancellationToken.None);
                break;
            case "client streaming":
                Server.ThenReplyAfterRequests(new ImportNamesReply { Imported = 1 });
                using (var call = client.ImportNames())
                {
                    await call.RequestStream.WriteAsync(new ImportNameRequest());
                    await call.RequestStream.CompleteAsync();
                    await call.ResponseAsync;
                }

                break;
            case "server streaming":
            case "server streaming, headers first":
                Server.ThenReply(new NameReply { Name = "a" }, new NameReply { Name = "b" });
                using (var call = client.ListNames(new ListNamesRequest()))
                {
                    if (kind != "server streaming")
                    {
                        await call.ResponseHeadersAsync;
                    }

                    while (await call.ResponseStream.MoveNext(CancellationToken.None))
                    {
                    }
                }

                break;
            case "duplex":
                Server.ThenReplyAfterRequests(new ChatMessage { Text = "a" });
                using (var call = client.Chat())
                {
                    await call.RequestStream.WriteAsync(new ChatMessage());
                    await call.RequestStream.CompleteAsync();
                    while (await call.ResponseStream.MoveNext(CancellationToken.None))
                    {
                    }
                }

                break;
            default:
                var pause = new TaskCompletionSource();
                Server.ThenPause(new ChatMessage { Text = "a" }, pause.Task, new ChatMessage { Text = "b" }, takesRequests: true);
                using (var call = client.Chat())
                {
                    await HeadersHaveComeAsync();
                    for (var i = 0; i < 3; i++)
                    {
                        await call.RequestStream.WriteAsync(new ChatMessage());
                    }

                    await call.RequestStream.CompleteAsync();
                    await Waiting.Until(() => Server.Sent[^1].IsComplete);
                    pause.SetResult();
                    while (await call.ResponseStream.MoveNext(CancellationToken.None))
                    {
                    }
                }

                break;
        }
    }

    // The scripted server gives them at once, on the thread of the caller or of the pool.
    private static async Task HeadersHaveComeAsync()
    {
        for (var i = 0; i < 100; i++)
        {
            await Task.Yield();
        }
    }
}

[CollectionDefinition(nameof(FirstChanceTests), DisableParallelization = true)]
public sealed class FirstChanceTestsRunAlone;

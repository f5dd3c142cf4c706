using PoolingInvoker.Demo.Servers;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.FunctionalTests;

/// <summary>Streams that last, and carry much, beside small calls.</summary>
public sealed class BulkTests
{
    [Fact]
    public async Task SmallCallsKeepToConnectionsWithoutBulk()
    {
        await using var server = await UserServer.StartAsync("one");
        await using var invoker = PoolingCallInvoker.ForAddress(server.Address);
        var client = new User.UserClient(invoker);
        using var stop = new CancellationTokenSource();
        var bulk = Enumerable.Range(0, 4).Select(_ => new Bulk(client, stop.Token)).ToList();
        await Task.WhenAll(bulk.Select(static stream => stream.Connection)).Soon();
        var small = Enumerable.Range(0, 8).Select(async _ =>
        {
            while (!stop.IsCancellationRequested)
            {
                await client.GetNameAsync(new GetNameRequest());
            }
        }).ToList();

        // The pool sees that the streams last, and makes another channel for the calls.
        var ofBulk = (await Task.WhenAll(bulk.Select(static stream => stream.Connection))).ToHashSet();
        await Waiting.Until(() => invoker.Pool.GetChannels().Count(static channel => channel.State == PooledChannelState.Active) > ofBulk.Count);
        await WaitUntilApartAsync(client, ofBulk);
        for (var i = 0; i < 200; i++)
        {
            Assert.DoesNotContain((await client.GetNameAsync(new GetNameRequest())).Origin.Connection, ofBulk);
        }

        await stop.CancelAsync();
        await Task.WhenAll([.. small, .. bulk.Select(static stream => stream.Ended)]).Soon();
    }

    private static async Task WaitUntilApartAsync(User.UserClient client, HashSet<string> ofBulk)
    {
        for (var apart = 0; apart < 20; apart++)
        {
            apart = ofBulk.Contains((await client.GetNameAsync(new GetNameRequest()).ResponseAsync.Soon()).Origin.Connection) ? -1 : apart;
        }
    }

    // An echo of 64 KiB, over and over.
    private sealed class Bulk
    {
        private readonly TaskCompletionSource<string> _connection = new(TaskCreationOptions.RunContinuationsAsynchronously);

        public Bulk(User.UserClient client, CancellationToken stop) => Ended = RunAsync(client, stop);

        public Task<string> Connection => _connection.Task;

        public Task Ended { get; }

        private async Task RunAsync(User.UserClient client, CancellationToken stop)
        {
            using var chat = client.Chat(cancellationToken: CancellationToken.None);
            var message = new ChatMessage { Text = new string('x', 64 * 1024) };
            while (!stop.IsCancellationRequested)
            {
                await chat.RequestStream.WriteAsync(message, CancellationToken.None);
                Assert.True(await chat.ResponseStream.MoveNext(CancellationToken.None));
                _connection.TrySetResult(chat.ResponseStream.Current.Origin.Connection);
            }

            await chat.RequestStream.CompleteAsync();
        }
    }
}

using System.Runtime.CompilerServices;
using Grpc.Core;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.Tests.Calls;

/// <summary>
/// What the collector finds. A call is dropped when nobody has anything left of it: neither its call object, reader or writer, nor the
/// task of what is under way, which may be all that is left.
/// </summary>
public sealed class DroppedCallTests : ScriptedCalls
{
    private readonly TaskCompletionSource _more = new();

    [Fact]
    public async Task AStreamThatWasReadToItsEnd_IsNoLeak()
    {
        Server.ThenReply(new NameReply { Name = "anna" });
        var (client, pool) = NewClient();
        await ReadToEndAsync(client).Soon();
        Assert.Equal(0, pool.GetStatistics().CallsInFlight);

        await CollectAsync();
        Assert.Equal(0, pool.GetStatistics().LeaksReclaimed);

        [MethodImpl(MethodImplOptions.NoInlining)]
        static async Task ReadToEndAsync(User.UserClient client)
        {
            var reader = client.ListNames(new ListNamesRequest()).ResponseStream;
            while (await reader.MoveNext(CancellationToken.None))
            {
            }
        }
    }

    [Fact]
    public async Task AReadUnderWay_IsNotCut()
    {
        Server.ThenPause(new NameReply { Name = "anna" }, _more.Task, new NameReply { Name = "berta" });
        var (client, pool) = NewClient();
        var reading = await BeginAsync(client).Soon();

        await CollectAsync();
        Assert.False(reading.IsCompleted);
        _more.SetResult();
        Assert.True(await reading.Soon());
        await IsReclaimedAsync(pool);

        [MethodImpl(MethodImplOptions.NoInlining)]
        static async Task<Task<bool>> BeginAsync(User.UserClient client)
        {
            var reader = client.ListNames(new ListNamesRequest()).ResponseStream;
            Assert.True(await reader.MoveNext(CancellationToken.None));
            return reader.MoveNext(CancellationToken.None);
        }
    }

    [Fact]
    public async Task AFirstReadUnderWay_IsNotCut()
    {
        Server.ThenReplyAfter(_more.Task, new NameReply { Name = "anna" });
        var (client, pool) = NewClient();
        var reading = Begin(client);

        await CollectAsync();
        Assert.False(reading.IsCompleted);
        _more.SetResult();
        Assert.True(await reading.Soon());
        await IsReclaimedAsync(pool);

        [MethodImpl(MethodImplOptions.NoInlining)]
        static Task<bool> Begin(User.UserClient client) => client.ListNames(new ListNamesRequest()).ResponseStream.MoveNext(CancellationToken.None);
    }

    [Fact]
    public async Task AWriteUnderWay_IsNotCut()
    {
        Server.ThenPause(new ChatMessage { Text = "a" }, _more.Task, new ChatMessage { Text = "b" });
        var (client, pool) = NewClient();
        var writing = await BeginAsync(client).Soon();

        await CollectAsync();
        Assert.False(writing.IsCompleted);
        _more.SetResult();
        await writing.Soon();
        await IsReclaimedAsync(pool);

        [MethodImpl(MethodImplOptions.NoInlining)]
        static async Task<Task> BeginAsync(User.UserClient client)
        {
            var call = client.Chat();
            Assert.True(await call.ResponseStream.MoveNext(CancellationToken.None));
            return call.RequestStream.WriteAsync(new ChatMessage());
        }
    }

    [Fact]
    public async Task HeadersThatAreWaitedFor_AreNotCut()
    {
        Server.ThenReplyAfter(_more.Task);
        var (client, pool) = NewClient();
        var headers = Begin(client);

        await CollectAsync();
        Assert.False(headers.IsCompleted);
        _more.SetResult();
        Assert.NotNull(await headers.Soon());
        await IsReclaimedAsync(pool);

        [MethodImpl(MethodImplOptions.NoInlining)]
        static Task<Metadata> Begin(User.UserClient client) => client.Chat().ResponseHeadersAsync;
    }

    [Fact]
    public async Task TheResponseOfAClientStream_IsNotCut()
    {
        Server.ThenReplyAfter(_more.Task, new ImportNamesReply { Imported = 1 });
        var (client, pool) = NewClient();
        var response = BeginImport(client);

        await CollectAsync();
        Time.Advance(TimeSpan.FromSeconds(29));
        Assert.False(response.IsCompleted);
        _more.SetResult();
        Assert.Equal(1, (await response.Soon()).Imported);
        Assert.Equal(0, pool.GetStatistics().LeaksReclaimed);
    }

    [Fact]
    public async Task TheResponseOfAClientStream_IsNotWaitedForWithoutLimit()
    {
        Server.ThenHang();
        var (client, pool) = NewClient();
        var response = BeginImport(client);
        await Waiting.Until(() =>
        {
            Collect();
            return Time.Dues.Contains(TimeSpan.FromSeconds(30)); // it is found
        });
        await Elapse(() => pool.GetStatistics().CallsInFlight == 0);
        Assert.Equal(1, pool.GetStatistics().LeaksReclaimed);
        Assert.Equal(StatusCode.Cancelled, (await Assert.ThrowsAsync<RpcException>(() => response.Soon())).StatusCode);
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static Task<ImportNamesReply> BeginImport(User.UserClient client) => client.ImportNames().ResponseAsync;

    // Drops a call to another server and waits until that has been found: by then the collector has looked at those of the test too.
    private static async Task CollectAsync()
    {
        await using var pool = new ChannelPool(new ScriptedServer().ThenHang(), new ChannelPoolOptions { Queue = InlineWork.Queue });
        Drop(new User.UserClient(new PoolingCallInvoker(pool)));
        await IsReclaimedAsync(pool);
        for (var i = 0; i < 5; i++)
        {
            Collect();
            await Task.Yield();
        }

        [MethodImpl(MethodImplOptions.NoInlining)]
        static void Drop(User.UserClient client) => _ = client.ListNames(new ListNamesRequest());
    }

    private static async Task IsReclaimedAsync(ChannelPool pool)
    {
        await Waiting.Until(() =>
        {
            Collect();
            return pool.GetStatistics().CallsInFlight == 0;
        });
        Assert.Equal(1, pool.GetStatistics().LeaksReclaimed);
    }

    private static void Collect()
    {
        GC.Collect();
        GC.WaitForPendingFinalizers();
    }
}

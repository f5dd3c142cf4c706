using Grpc.Core;
using Grpc.Core.Interceptors;
using Grpc.Net.Client;
using PoolingInvoker.Demo.Servers;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.FunctionalTests;

/// <summary>All kinds of calls, by generated clients that were given a pool in one way or another.</summary>
public abstract class CallTests : IAsyncLifetime
{
    private UserServer _server = null!;
    private PoolingCallInvoker _invoker = null!;
    private User.UserClient _client = null!;

    public async ValueTask InitializeAsync()
    {
        _server = await UserServer.StartAsync("one");
        _invoker = PoolingCallInvoker.ForAddress(_server.Address);
        _client = CreateClient(_invoker);
        await _invoker.ConnectAsync();
    }

    public async ValueTask DisposeAsync()
    {
        Assert.Equal(0, _invoker.Pool.GetStatistics().CallsInFlight);
        await _invoker.DisposeAsync();
        await _server.DisposeAsync();
    }

    protected abstract User.UserClient CreateClient(PoolingCallInvoker invoker);

    [Fact]
    public async Task Unary()
    {
        using var call = _client.GetNameAsync(new GetNameRequest { Id = 7, DelayMs = 20 });
        Assert.Equal((1, 0), (_invoker.Pool.GetStatistics().CallsInFlight, _invoker.Pool.GetStatistics().CallsWaiting));
        Assert.Throws<InvalidOperationException>(() => call.GetStatus());

        var reply = await call.ResponseAsync.Soon();

        Assert.Equal("user-7", reply.Name);
        Assert.Equal("one", reply.Origin.Server);
        Assert.Equal(StatusCode.OK, call.GetStatus().StatusCode);
        Assert.Empty(call.GetTrailers());
        Assert.Contains(await call.ResponseHeadersAsync.Soon(), static header => header.Key == "date");
        Assert.Equal(0, _invoker.Pool.GetStatistics().CallsInFlight);
    }

    [Fact]
    public void BlockingUnary()
    {
        var reply = _client.GetProfile(new GetProfileRequest { Id = 7, PictureBytes = 100_000 });

        Assert.Equal(100_000, reply.Picture.Length);
        Assert.Equal(0, _invoker.Pool.GetStatistics().CallsInFlight);
    }

    [Fact]
    public async Task ServerStreaming()
    {
        using var call = _client.ListNames(new ListNamesRequest { Count = 3 });
        var names = new List<string>();
        while (await call.ResponseStream.MoveNext(CancellationToken.None).Soon())
        {
            Assert.Equal(1, _invoker.Pool.GetStatistics().CallsInFlight);
            names.Add(call.ResponseStream.Current.Name);
        }

        Assert.Equal(["user-0", "user-1", "user-2"], names);
        Assert.Equal(StatusCode.OK, call.GetStatus().StatusCode);
        Assert.False(await call.ResponseStream.MoveNext(CancellationToken.None).Soon());
        Assert.Equal(0, _invoker.Pool.GetStatistics().CallsInFlight);
    }

    [Fact]
    public async Task ClientStreaming()
    {
        using var call = _client.ImportNames();
        for (var id = 0; id < 3; id++)
        {
            await call.RequestStream.WriteAsync(new ImportNameRequest { RequestId = $"{id}", Id = id }).Soon();
        }

        await call.RequestStream.CompleteAsync().Soon();
        Assert.Equal(3, (await call.ResponseAsync.Soon()).Imported);
        Assert.Equal(["0", "1", "2"], _server.Journal.Executed);
        Assert.Equal(StatusCode.OK, call.GetStatus().StatusCode);
        Assert.Equal(0, _invoker.Pool.GetStatistics().CallsInFlight);
    }

    [Fact]
    public async Task ClientStreaming_WithoutAnyMessage()
    {
        using var call = _client.ImportNames();
        await call.RequestStream.CompleteAsync().Soon();
        Assert.Equal(0, (await call.ResponseAsync.Soon()).Imported);
    }

    [Fact]
    public async Task Duplex()
    {
        using var call = _client.Chat();
        foreach (var text in new[] { "a", "b", "c" })
        {
            await call.RequestStream.WriteAsync(new ChatMessage { Text = text }, CancellationToken.None).Soon();
            Assert.True(await call.ResponseStream.MoveNext(CancellationToken.None).Soon());
            Assert.Equal(text, call.ResponseStream.Current.Text);
        }

        await call.RequestStream.CompleteAsync().Soon();
        Assert.False(await call.ResponseStream.MoveNext(CancellationToken.None).Soon());
        Assert.Equal(StatusCode.OK, call.GetStatus().StatusCode);
        Assert.Equal(0, _invoker.Pool.GetStatistics().CallsInFlight);
    }

    [Fact]
    public async Task Duplex_ReadsAndWritesAtTheSameTime()
    {
        using var call = _client.Chat();
        var reading = Task.Run(async () =>
        {
            var read = 0;
            while (await call.ResponseStream.MoveNext(CancellationToken.None))
            {
                read++;
            }

            return read;
        });
        for (var i = 0; i < 1000; i++)
        {
            await call.RequestStream.WriteAsync(new ChatMessage { Text = "x" }).Soon();
        }

        await call.RequestStream.CompleteAsync().Soon();
        Assert.Equal(1000, await reading.Soon());
    }

    [Fact]
    public async Task Deadline_EndsEachKind()
    {
        var options = new CallOptions(deadline: DateTime.UtcNow.AddMilliseconds(200));
        var unary = await Assert.ThrowsAsync<RpcException>(() => _client.GetNameAsync(new GetNameRequest { DelayMs = 20_000 }, options).ResponseAsync.Soon());
        var listing = _client.ListNames(new ListNamesRequest { Count = 2, DelayMs = 20_000 }, options);
        var stream = await Assert.ThrowsAsync<RpcException>(() => listing.ResponseStream.MoveNext(CancellationToken.None).Soon());

        Assert.Equal(StatusCode.DeadlineExceeded, unary.StatusCode);
        Assert.Equal(StatusCode.DeadlineExceeded, stream.StatusCode);
        Assert.Equal(StatusCode.DeadlineExceeded, listing.GetStatus().StatusCode);
    }

    [Fact]
    public async Task Cancellation_CarriesTheTokenOfTheCaller()
    {
        using var cancellation = new CancellationTokenSource();
        var call = _client.GetNameAsync(new GetNameRequest { DelayMs = 20_000 }, cancellationToken: cancellation.Token);
        await cancellation.CancelAsync();

        var exception = await Assert.ThrowsAsync<RpcException>(() => call.ResponseAsync.Soon());
        Assert.Equal(StatusCode.Cancelled, exception.StatusCode);
        Assert.Equal(cancellation.Token, Assert.IsType<OperationCanceledException>(exception.Status.DebugException).CancellationToken);
    }
}

public sealed class CallTests_OverTheInvoker : CallTests
{
    protected override User.UserClient CreateClient(PoolingCallInvoker invoker) => new(invoker);
}

public sealed class CallTests_OverTheInvokerAsChannel : CallTests
{
    protected override User.UserClient CreateClient(PoolingCallInvoker invoker) => new(invoker.AsChannel());
}

public sealed class CallTests_OverTheInterceptor : CallTests
{
    // Nothing listens there: every call that does not go through the pool fails.
    private readonly GrpcChannel _existing = GrpcChannel.ForAddress("http://127.0.0.1:1");

    protected override User.UserClient CreateClient(PoolingCallInvoker invoker) =>
        new(_existing.CreateCallInvoker().Intercept(new PoolingInterceptor(invoker)));
}

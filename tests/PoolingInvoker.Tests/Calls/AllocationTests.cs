using Google.Protobuf;
using Grpc.Core;
using Grpc.Net.Client;
using PoolingInvoker.Protos;

namespace PoolingInvoker.Tests.Calls;

/// <summary>
/// What the pool costs a call, in bytes on top of a bare channel over the same handler, which answers at once. Allocations are exact, to
/// the few bytes of a stream that depend on which thread is first. Nothing else runs meanwhile.
/// </summary>
[Collection(nameof(AllocationTests))]
public sealed class AllocationTests(ITestOutputHelper output)
{
    private const int Rounds = 10;
    private const int Calls = 400;

    [Fact]
    public void AUnaryCall()
    {
        var bare = Measure(static client => client.GetNameAsync(new GetNameRequest()).ResponseAsync.GetAwaiter().GetResult());
        output.WriteLine($"{bare.Bare} bytes a call on a bare channel, {bare.Pooled} through the pool: {bare.Pooled - bare.Bare} on top");
        Assert.InRange(bare.Pooled - bare.Bare, 0, 530);
    }

    [Fact]
    public void AUnaryCall_WithHeaders()
    {
        var headers = new Metadata { { "tenant", "7" }, { "trace", "1" } };
        var bare = Measure(client => client.GetNameAsync(new GetNameRequest(), headers).ResponseAsync.GetAwaiter().GetResult());
        output.WriteLine($"{bare.Bare} bytes a call on a bare channel, {bare.Pooled} through the pool: {bare.Pooled - bare.Bare} on top");
        Assert.InRange(bare.Pooled - bare.Bare, 0, 650);
    }

    [Fact]
    public void AServerStream()
    {
        var bare = Measure(static client =>
        {
            using var call = client.ListNames(new ListNamesRequest());
            Assert.True(call.ResponseStream.MoveNext(CancellationToken.None).GetAwaiter().GetResult());
            Assert.False(call.ResponseStream.MoveNext(CancellationToken.None).GetAwaiter().GetResult());
        });
        output.WriteLine($"{bare.Bare} bytes a call on a bare channel, {bare.Pooled} through the pool: {bare.Pooled - bare.Bare} on top");
        Assert.InRange(bare.Pooled - bare.Bare, 0, 2300);
    }

    private static (long Bare, long Pooled) Measure(Action<User.UserClient> call)
    {
        using var channel = NewChannel();
        using var pool = new ChannelPool(new StubPolicy { OnCreate = NewChannel });
        return (Measure(new User.UserClient(channel), call), Measure(new User.UserClient(new PoolingCallInvoker(pool)), call));
    }

    private static long Measure(User.UserClient client, Action<User.UserClient> call)
    {
        // The least of some rounds: what the runtime does beside, such as compiling what is hot, only adds to it.
        return Enumerable.Range(0, Rounds).Min(_ =>
        {
            var before = GC.GetTotalAllocatedBytes(precise: true);
            for (var i = 0; i < Calls; i++)
            {
                call(client);
            }

            return (GC.GetTotalAllocatedBytes(precise: true) - before) / Calls;
        });
    }

    private static GrpcChannel NewChannel() => StubPolicy.NewChannel(new AnsweringHandler());

    private sealed class AnsweringHandler : HttpMessageHandler
    {
        private static readonly byte[] Frame = [0, 0, 0, 0, 6, .. new GetNameReply { Name = "anna" }.ToByteArray()];

        protected override Task<HttpResponseMessage> SendAsync(HttpRequestMessage request, CancellationToken cancellationToken)
        {
            var response = new HttpResponseMessage { Version = new Version(2, 0), Content = new ByteArrayContent(Frame) };
            response.Content.Headers.ContentType = new("application/grpc");
            response.TrailingHeaders.Add("grpc-status", "0");
            return Task.FromResult(response);
        }
    }
}

[CollectionDefinition(nameof(AllocationTests), DisableParallelization = true)]
public sealed class AllocationTestsRunAlone;

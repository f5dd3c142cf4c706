using Google.Protobuf;
using Google.Protobuf.Reflection;
using Grpc.Core;
using Polly;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.Tests.Calls;

/// <summary>Code of the user's that does what it should not: no lease stays out, and the caller has an outcome with a name.</summary>
public sealed class ForeignCodeInCallsTests : ScriptedCalls
{
    [Theory]
    [InlineData(MethodType.Unary)]
    [InlineData(MethodType.ServerStreaming)]
    public async Task AMessageWithoutADescriptor_IsNotIdempotent(MethodType kind)
    {
        var (_, pool) = NewClient();
        var invoker = new PoolingCallInvoker(pool);
        var marshaller = Marshallers.Create<BareMessage>(static _ => [], static _ => new BareMessage());
        var method = new Method<BareMessage, BareMessage>(kind, "user.v1.User", $"ByHand{kind}", marshaller, marshaller);
        Server.ThenBreak();
        var exception = await Assert.ThrowsAsync<RpcException>(() => kind == MethodType.Unary
            ? invoker.AsyncUnaryCall(method, null, default, new BareMessage()).ResponseAsync.Soon()
            : invoker.AsyncServerStreamingCall(method, null, default, new BareMessage()).ResponseStream.MoveNext(CancellationToken.None).Soon());
        Assert.Equal(StatusCode.Unavailable, exception.StatusCode);
        await Waiting.Until(() => pool.GetStatistics().CallsInFlight == 0);
    }

    [Fact]
    public async Task TrailersOfAnExceptionOfAStrategy_ReachTheCaller()
    {
        var (client, _) = NewClient(static options => options.ConfigurePipeline = static pipeline => pipeline.AddStrategy(_ => new Thrower(), new ThrowerOptions()));
        var call = client.GetNameAsync(new GetNameRequest());
        var exception = await Assert.ThrowsAsync<RpcException>(() => call.ResponseAsync.Soon());
        Assert.Equal("because", exception.Trailers.GetValue("why"));
        Assert.Equal(StatusCode.FailedPrecondition, call.GetStatus().StatusCode);
        Assert.Equal("because", call.GetTrailers().GetValue("why"));
    }

    private sealed class ThrowerOptions : ResilienceStrategyOptions;

    private sealed class Thrower : ResilienceStrategy
    {
        protected override ValueTask<Outcome<TResult>> ExecuteCore<TResult, TState>(
            Func<ResilienceContext, TState, ValueTask<Outcome<TResult>>> callback, ResilienceContext context, TState state) =>
            ValueTask.FromResult(Outcome.FromException<TResult>(new RpcException(new Status(StatusCode.FailedPrecondition, "not now"), new Metadata { { "why", "because" } })));
    }

    private sealed class BareMessage : IMessage
    {
        public MessageDescriptor Descriptor => null!;

        public void MergeFrom(CodedInputStream input)
        {
        }

        public void WriteTo(CodedOutputStream output)
        {
        }

        public int CalculateSize() => 0;
    }
}

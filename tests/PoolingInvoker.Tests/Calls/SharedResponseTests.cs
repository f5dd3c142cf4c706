using Google.Protobuf;
using Grpc.Core;
using Grpc.Net.Client.Configuration;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.Tests.Calls;

/// <summary>A marshaller may give one object for several answers: the object does not say which attempt is the call.</summary>
public sealed class SharedResponseTests : ScriptedCalls
{
    [Fact]
    public async Task TheCall_IsTheHedgeWhoseOutcomeWasTaken()
    {
        var judged = 0;
        var hedging = new ChannelHedgingStrategyOptions { ShouldHandle = _ => ValueTask.FromResult(Interlocked.Increment(ref judged) == 1) };
        var invoker = NewInvoker(options => options.MethodConfigs.Add(new PooledMethodConfig { Names = { MethodName.Default }, Hedging = hedging, Idempotent = true }));
        var shared = new GetNameReply();
        var method = new Method<GetNameRequest, GetNameReply>(
            MethodType.Unary,
            "user.v1.User",
            "GetName",
            Marshallers.Create(static request => request.ToByteArray(), GetNameRequest.Parser.ParseFrom),
            Marshallers.Create(static reply => reply.ToByteArray(), _ => shared));
        Server.ThenNameWithHeader("anna", "answer", "1");
        Server.ThenNameWithHeader("anna", "answer", "2");
        using var call = invoker.AsyncUnaryCall(method, null, default, new GetNameRequest());
        Assert.Same(shared, await call.ResponseAsync.Soon());
        Assert.Equal(2, judged);
        Assert.Equal("2", (await call.ResponseHeadersAsync.Soon()).GetValue("answer"));
    }
}

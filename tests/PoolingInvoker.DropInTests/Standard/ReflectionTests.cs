using Google.Protobuf.Reflection;
using Grpc.Core;
using Grpc.Reflection.V1;

namespace PoolingInvoker.DropInTests.Standard;

/// <summary>The client of Grpc.Reflection.</summary>
public sealed class ReflectionTests(StandardServer server) : IClassFixture<StandardServer>
{
    public static TheoryData<PoolKind> EachPool => DropIn.EachPool;

    [Theory]
    [MemberData(nameof(EachPool))]
    public async Task ListsServices_AndWhatTheyAreMadeOf(PoolKind pool)
    {
        var seen = await DropIn.SameAsBareAsync(server.Address, pool, static async (invoker, transcript) =>
        {
            using var call = new ServerReflection.ServerReflectionClient(invoker).ServerReflectionInfo();
            await AskAsync(call, new ServerReflectionRequest { ListServices = "" }, transcript);
            await AskAsync(call, new ServerReflectionRequest { FileContainingSymbol = "grpc.health.v1.Health" }, transcript);
            await AskAsync(call, new ServerReflectionRequest { FileContainingSymbol = "nobody" }, transcript);
            await call.RequestStream.CompleteAsync();
            await transcript.StepAsync("end", async () => $"{await call.ResponseStream.MoveNext(CancellationToken.None)}");
            transcript.Add($"headers: {Transcript.Describe(await call.ResponseHeadersAsync)}");
            transcript.Add($"status: {Transcript.Describe(call.GetStatus())}");
        });
        Assert.StartsWith("services: ", seen[0], StringComparison.Ordinal);
        Assert.Contains("grpc.health.v1.Health", seen[0], StringComparison.Ordinal);
        Assert.Equal(["file: Health", "error: NotFound", "end: False"], seen.Skip(1).Take(3));
        Assert.Equal("status: OK ''", seen[^1]);
    }

    [Theory]
    [MemberData(nameof(EachPool))]
    public async Task LeftInTheMiddle(PoolKind pool)
    {
        var seen = await DropIn.SameAsBareAsync(server.Address, pool, static async (invoker, transcript) =>
        {
            using var call = new ServerReflection.ServerReflectionClient(invoker).ServerReflectionInfo();
            await AskAsync(call, new ServerReflectionRequest { ListServices = "" }, transcript);
        });
        Assert.Single(seen);
    }

    private static async Task AskAsync(AsyncDuplexStreamingCall<ServerReflectionRequest, ServerReflectionResponse> call, ServerReflectionRequest request, Transcript transcript)
    {
        await call.RequestStream.WriteAsync(request);
        Assert.True(await call.ResponseStream.MoveNext(CancellationToken.None));
        var response = call.ResponseStream.Current;
        transcript.Add(response.MessageResponseCase switch
        {
            ServerReflectionResponse.MessageResponseOneofCase.ListServicesResponse =>
                $"services: {string.Join(", ", response.ListServicesResponse.Service.Select(static service => service.Name))}",
            ServerReflectionResponse.MessageResponseOneofCase.FileDescriptorResponse =>
                $"file: {string.Join(", ", FileDescriptorProto.Parser.ParseFrom(response.FileDescriptorResponse.FileDescriptorProto[0]).Service.Select(static service => service.Name))}",
            _ => $"error: {(StatusCode)response.ErrorResponse.ErrorCode}",
        });
    }
}

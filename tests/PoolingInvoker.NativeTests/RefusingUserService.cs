using Grpc.Core;
using PoolingInvoker.Protos;

namespace PoolingInvoker.NativeTests;

/// <summary>Refuses the first attempt of each call when it has all of its requests, and answers the second.</summary>
internal sealed class RefusingUserService : User.UserBase
{
    public override Task<GetNameReply> GetName(GetNameRequest request, ServerCallContext context)
    {
        RefuseFirst(context);
        return Task.FromResult(new GetNameReply { Name = $"user {request.Id}" });
    }

    public override async Task ListNames(ListNamesRequest request, IServerStreamWriter<NameReply> responseStream, ServerCallContext context)
    {
        RefuseFirst(context);
        for (var i = 0; i < request.Count; i++)
        {
            await responseStream.WriteAsync(new NameReply { Name = $"user {i}" });
        }
    }

    public override async Task<ImportNamesReply> ImportNames(IAsyncStreamReader<ImportNameRequest> requestStream, ServerCallContext context)
    {
        var reply = new ImportNamesReply();
        while (await requestStream.MoveNext(CancellationToken.None))
        {
            reply.Imported++;
        }

        RefuseFirst(context);
        return reply;
    }

    public override async Task Chat(IAsyncStreamReader<ChatMessage> requestStream, IServerStreamWriter<ChatMessage> responseStream, ServerCallContext context)
    {
        var messages = new List<ChatMessage>();
        while (await requestStream.MoveNext(CancellationToken.None))
        {
            messages.Add(requestStream.Current);
        }

        RefuseFirst(context);
        foreach (var message in messages)
        {
            await responseStream.WriteAsync(message);
        }
    }

    private static void RefuseFirst(ServerCallContext context)
    {
        if (context.RequestHeaders.GetValue("grpc-previous-rpc-attempts") is null)
        {
            throw new RpcException(new Status(StatusCode.Unavailable, "not yet"));
        }
    }
}

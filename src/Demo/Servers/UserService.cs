using Google.Protobuf;
using Grpc.Core;
using PoolingInvoker.Protos;

namespace PoolingInvoker.Demo.Servers;

/// <summary>The service of protos/user.proto.</summary>
public sealed class UserService(ServerJournal journal) : User.UserBase
{
    public static string NameOf(int id) => $"user-{id}";

    public override async Task<GetNameReply> GetName(GetNameRequest request, ServerCallContext context)
    {
        using var call = journal.BeginCall();
        await Wait(request.DelayMs, context);
        return new GetNameReply { Id = request.Id, Name = NameOf(request.Id), Origin = OriginOf(context) };
    }

    public override async Task<GetProfileReply> GetProfile(GetProfileRequest request, ServerCallContext context)
    {
        using var call = journal.BeginCall();
        await Wait(request.DelayMs, context);
        return new GetProfileReply
        {
            Id = request.Id,
            Name = NameOf(request.Id),
            Picture = UnsafeByteOperations.UnsafeWrap(new byte[request.PictureBytes]),
            Origin = OriginOf(context),
        };
    }

    public override async Task<RenameReply> Rename(RenameRequest request, ServerCallContext context)
    {
        using var call = journal.BeginCall();
        journal.Execute(request.RequestId);
        await Wait(request.DelayMs, context);
        return new RenameReply { Origin = OriginOf(context) };
    }

    public override async Task ListNames(ListNamesRequest request, IServerStreamWriter<NameReply> responseStream, ServerCallContext context)
    {
        using var call = journal.BeginCall();
        for (var id = 0; id < request.Count; id++)
        {
            await Wait(request.DelayMs, context);
            await responseStream.WriteAsync(new NameReply { Id = id, Name = NameOf(id), Origin = OriginOf(context) }, context.CancellationToken);
        }
    }

    public override async Task<ImportNamesReply> ImportNames(IAsyncStreamReader<ImportNameRequest> requestStream, ServerCallContext context)
    {
        using var call = journal.BeginCall();
        var imported = 0;
        await foreach (var name in requestStream.ReadAllAsync(context.CancellationToken))
        {
            journal.Execute(name.RequestId);
            imported++;
        }

        return new ImportNamesReply { Imported = imported, Origin = OriginOf(context) };
    }

    public override async Task Chat(IAsyncStreamReader<ChatMessage> requestStream, IServerStreamWriter<ChatMessage> responseStream, ServerCallContext context)
    {
        using var call = journal.BeginCall();
        await foreach (var message in requestStream.ReadAllAsync(context.CancellationToken))
        {
            await responseStream.WriteAsync(new ChatMessage { Text = message.Text, Origin = OriginOf(context) }, context.CancellationToken);
        }
    }

    private static Task Wait(int milliseconds, ServerCallContext context) =>
        milliseconds > 0 ? Task.Delay(milliseconds, context.CancellationToken) : Task.CompletedTask;

    private Origin OriginOf(ServerCallContext context) =>
        new() { Server = journal.ServerName, Connection = context.GetHttpContext().Connection.Id };
}

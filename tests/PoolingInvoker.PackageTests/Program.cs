using System.Net;
using Grpc.Core;
using Microsoft.AspNetCore.Server.Kestrel.Core;
using PoolingInvoker.Protos;

namespace PoolingInvoker.PackageTests;

/// <summary>A server on a free loopback port, which it writes as its first line. It ends when its input does.</summary>
internal static class Program
{
    private static async Task Main()
    {
        var builder = WebApplication.CreateEmptyBuilder(new WebApplicationOptions());
        builder.WebHost.UseKestrelCore().ConfigureKestrel(static kestrel => kestrel.Listen(IPAddress.Loopback, 0, static listen => listen.Protocols = HttpProtocols.Http2));
        builder.Services.AddGrpc();
        await using var app = builder.Build();
        app.MapGrpcService<Service>();
        await app.StartAsync();
        Console.WriteLine(new Uri(app.Urls.Single()).Port);
        while (await Console.In.ReadLineAsync() is not null)
        {
        }

        await app.StopAsync();
    }

    private sealed class Service : User.UserBase
    {
        public override Task<GetNameReply> GetName(GetNameRequest request, ServerCallContext context) =>
            Task.FromResult(new GetNameReply { Id = request.Id, Name = $"Ada {request.Id}" });
    }
}

using System.Net;
using Microsoft.AspNetCore.Server.Kestrel.Core;
using PoolingInvoker.Protos;

namespace PoolingInvoker.Demo.Web;

/// <summary>A web front that asks a gRPC service: its handlers know a generated client, and nothing of the pool under it.</summary>
internal static class WebFront
{
    private static readonly TimeSpan Patience = TimeSpan.FromSeconds(5);

    /// <param name="users">Where the user service is.</param>
    public static WebApplication Build(Uri users)
    {
        var builder = WebApplication.CreateEmptyBuilder(new WebApplicationOptions());
        builder.WebHost.UseKestrelCore().ConfigureKestrel(static kestrel =>
            kestrel.Listen(IPAddress.Loopback, 0, static listen => listen.Protocols = HttpProtocols.Http1));
        builder.Services.AddRoutingCore();
        builder.Services.AddSingleton(_ => PoolingCallInvoker.ForAddress(users, new PoolingCallInvokerOptions { Pool = { MinPoolSize = 3 } }));
        builder.Services.AddSingleton(static services => new User.UserClient(services.GetRequiredService<PoolingCallInvoker>()));
        builder.Services.AddSingleton<LastReplies>();
        builder.Services.AddProblemDetails(static options => options.CustomizeProblemDetails = GrpcProblems.Describe);

        var application = builder.Build();
        application.UseExceptionHandler(new ExceptionHandlerOptions { StatusCodeSelector = GrpcProblems.StatusOf });
        application.UseStatusCodePages();
        application.MapGet("/", Page);
        application.MapGet("/users/{id:int}", GetUserAsync);
        application.MapGet("/pool", static (PoolingCallInvoker invoker, LastReplies replies) =>
            new { Statistics = invoker.Pool.GetStatistics(), LastReplies = replies.NewestFirst });
        return application;
    }

    // The whole of the handler. A delay, in milliseconds, is there to see the pool at work.
    private static async Task<UserReply> GetUserAsync(int id, int? delay, User.UserClient users, LastReplies replies, CancellationToken aborted)
    {
        var request = new GetNameRequest { Id = id, DelayMs = delay ?? 0 };
        var reply = await users.GetNameAsync(request, deadline: DateTime.UtcNow + Patience, cancellationToken: aborted);
        return replies.Add(new UserReply(reply.Id, reply.Name, reply.Origin.Server, reply.Origin.Connection));
    }

    private static IResult Page() =>
        Results.Stream(typeof(WebFront).Assembly.GetManifestResourceStream("index.html")!, "text/html; charset=utf-8");
}

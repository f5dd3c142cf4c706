using System.Net;
using System.Text.Json.Serialization;
using Microsoft.AspNetCore.Server.Kestrel.Core;
using PoolingInvoker.Demo.Servers;
using PoolingInvoker.Protos;

namespace PoolingInvoker.Demo.Web;

/// <summary>A web front that asks a gRPC service: its handlers know a generated client, and nothing of the pool under it.</summary>
internal static class WebFront
{
    private static readonly TimeSpan Patience = TimeSpan.FromSeconds(5);

    private static readonly string[] Files = ["index.html", "demo.js", "demo.css"];

    /// <param name="servers">The user service.</param>
    /// <param name="settings">A file with the options of the pool, which may change.</param>
    public static WebApplication Build(ServerFleet servers, string settings)
    {
        var builder = WebApplication.CreateEmptyBuilder(new WebApplicationOptions());
        builder.Configuration.AddJsonFile(settings, optional: true, reloadOnChange: true).AddInMemoryCollection();
        builder.WebHost.UseKestrelCore().ConfigureKestrel(static kestrel =>
            kestrel.Listen(IPAddress.Loopback, 0, static listen => listen.Protocols = HttpProtocols.Http1));
        builder.Services.AddRoutingCore();
        builder.Services.ConfigureHttpJsonOptions(static options => options.SerializerOptions.Converters.Add(new JsonStringEnumConverter()));
        builder.Services.AddSingleton(servers);
        builder.Services.AddGrpcClient<User.UserClient>(options => options.Address = servers.Address)
            .AddChannelPool(builder.Configuration.GetSection(Experiment.Section), static options => options.Pool.DrainTimeout = TimeSpan.FromSeconds(2));
        builder.Services.AddSingleton<Experiment>();
        builder.Services.AddHostedService(static services => services.GetRequiredService<Experiment>());
        builder.Services.AddSingleton<LastReplies>();
        builder.Services.AddProblemDetails(static options => options.CustomizeProblemDetails = GrpcProblems.Describe);

        var application = builder.Build();
        application.UseExceptionHandler(new ExceptionHandlerOptions { StatusCodeSelector = GrpcProblems.StatusOf });
        application.UseStatusCodePages();
        foreach (var file in Files)
        {
            application.MapGet(file is "index.html" ? "/" : $"/{file}", () => FileOf(file));
        }

        application.MapGet("/users/{id:int}", GetUserAsync);
        application.MapGet("/pool", static (IServiceProvider services, LastReplies replies) =>
            new { Statistics = PoolOf(services).GetStatistics(), LastReplies = replies.NewestFirst });
        application.MapChannelPools("/pools");
        Controls.Map(application);
        return application;
    }

    /// <summary>The pool under the client.</summary>
    public static ChannelPool PoolOf(IServiceProvider services) => services.GetRequiredKeyedService<PoolingCallInvoker>(nameof(User.UserClient)).Pool;

    // The whole of the handler. A delay, in milliseconds, is there to see the pool at work.
    private static async Task<UserReply> GetUserAsync(int id, int? delay, User.UserClient users, LastReplies replies, CancellationToken aborted)
    {
        var request = new GetNameRequest { Id = id, DelayMs = delay ?? 0 };
        var reply = await users.GetNameAsync(request, deadline: DateTime.UtcNow + Patience, cancellationToken: aborted);
        return replies.Add(new UserReply(reply.Id, reply.Name, reply.Origin.Server, reply.Origin.Connection));
    }

    private static IResult FileOf(string name) => Results.Stream(
        typeof(WebFront).Assembly.GetManifestResourceStream(name)!,
        Path.GetExtension(name) switch { ".js" => "text/javascript; charset=utf-8", ".css" => "text/css; charset=utf-8", _ => "text/html; charset=utf-8" });
}

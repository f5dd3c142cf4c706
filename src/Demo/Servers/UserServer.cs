using System.Net;
using Microsoft.AspNetCore.Connections;
using Microsoft.AspNetCore.Hosting.Server;
using Microsoft.AspNetCore.Hosting.Server.Features;
using Microsoft.AspNetCore.Server.Kestrel.Core;

namespace PoolingInvoker.Demo.Servers;

/// <summary>One gRPC server: Kestrel over plaintext HTTP/2, on a loopback port as a rule.</summary>
public sealed class UserServer : IAsyncDisposable
{
    private readonly WebApplication _application;

    private UserServer(WebApplication application, ServerJournal journal, Uri address)
    {
        _application = application;
        Journal = journal;
        Address = address;
    }

    public Uri Address { get; }

    public ServerJournal Journal { get; }

    /// <param name="name">What the server calls itself in its replies.</param>
    /// <param name="port">The port, or 0 for a free one.</param>
    /// <param name="journalFile">Where to write down the requests with side effects that were run, beside the memory.</param>
    /// <param name="configure">Changes the limits of Kestrel.</param>
    /// <param name="address">Where it listens, or null for the loopback.</param>
    public static async Task<UserServer> StartAsync(
        string name, int port = 0, string? journalFile = null, Action<KestrelServerOptions>? configure = null, IPAddress? address = null)
    {
        var journal = new ServerJournal(name, journalFile);
        // An empty builder reads no configuration: others watch the working directory, with all that is in it, for changes of theirs.
        var builder = WebApplication.CreateEmptyBuilder(new WebApplicationOptions());
        builder.Services.AddGrpc();
        builder.Services.AddSingleton(journal);
        builder.WebHost.UseKestrelCore().ConfigureKestrel(kestrel =>
        {
            configure?.Invoke(kestrel);
            kestrel.Listen(address ?? IPAddress.Loopback, port, listen =>
            {
                listen.Protocols = HttpProtocols.Http2;
                listen.Use(next => connection => CountAsync(journal, next, connection));
            });
        });

        var application = builder.Build();
        application.MapGrpcService<UserService>();
        await application.StartAsync();
        var addresses = application.Services.GetRequiredService<IServer>().Features.Get<IServerAddressesFeature>()!;
        return new UserServer(application, journal, new Uri(addresses.Addresses.Single()));
    }

    public Task WaitForShutdownAsync() => _application.WaitForShutdownAsync();

    /// <summary>Stops without waiting for calls in flight, as a server does that is killed: connections break, the port is closed.</summary>
    public async ValueTask DisposeAsync()
    {
        using var now = new CancellationTokenSource();
        await now.CancelAsync();
        await _application.StopAsync(now.Token);
        await _application.DisposeAsync();
        Journal.Dispose();
    }

    private static async Task CountAsync(ServerJournal journal, ConnectionDelegate next, ConnectionContext connection)
    {
        journal.ConnectionOpened();
        try
        {
            await next(connection);
        }
        finally
        {
            journal.ConnectionClosed();
        }
    }
}

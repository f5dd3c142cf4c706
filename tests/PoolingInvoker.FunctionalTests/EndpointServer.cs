using System.Collections.Concurrent;
using System.Net;
using System.Security.Cryptography.X509Certificates;
using Microsoft.AspNetCore.Builder;
using Microsoft.AspNetCore.Hosting;
using Microsoft.AspNetCore.Hosting.Server;
using Microsoft.AspNetCore.Hosting.Server.Features;
using Microsoft.AspNetCore.Server.Kestrel.Core;
using Microsoft.Extensions.DependencyInjection;
using PoolingInvoker.Demo.Servers;

namespace PoolingInvoker.FunctionalTests;

/// <summary>A server on an address of its own, plain or with TLS, that writes down by which names it is called.</summary>
internal sealed class EndpointServer : IAsyncDisposable
{
    private readonly WebApplication _application;

    private EndpointServer(WebApplication application, ServerJournal journal, ConcurrentQueue<string> authorities, ConcurrentQueue<string?> serverNames, IPEndPoint endPoint)
    {
        _application = application;
        Journal = journal;
        Authorities = authorities;
        ServerNames = serverNames;
        EndPoint = endPoint;
    }

    public IPEndPoint EndPoint { get; }

    public ServerJournal Journal { get; }

    /// <summary>The <c>:authority</c> of each call.</summary>
    public ConcurrentQueue<string> Authorities { get; }

    /// <summary>The name that TLS was asked for, of each connection.</summary>
    public ConcurrentQueue<string?> ServerNames { get; }

    /// <param name="address">The address, which is the name of the server in its replies, too.</param>
    /// <param name="port">The port, or 0 for a free one.</param>
    /// <param name="certificate">The certificate, for TLS.</param>
    public static async Task<EndpointServer> StartAsync(string address, int port = 0, X509Certificate2? certificate = null)
    {
        var journal = new ServerJournal(address, file: null);
        var authorities = new ConcurrentQueue<string>();
        var serverNames = new ConcurrentQueue<string?>();
        var builder = WebApplication.CreateEmptyBuilder(new WebApplicationOptions());
        builder.Services.AddGrpc();
        builder.Services.AddSingleton(journal);
        builder.WebHost.UseKestrelCore().UseKestrelHttpsConfiguration().ConfigureKestrel(kestrel => kestrel.Listen(IPAddress.Parse(address), port, listen =>
        {
            listen.Protocols = HttpProtocols.Http2;
            listen.Use(next => async connection =>
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
            });
            if (certificate is not null)
            {
                listen.UseHttps(https => https.ServerCertificateSelector = (_, name) =>
                {
                    serverNames.Enqueue(name);
                    return certificate;
                });
            }
        }));

        var application = builder.Build();
        application.Use((context, next) =>
        {
            authorities.Enqueue(context.Request.Host.Value ?? "");
            return next(context);
        });
        application.MapGrpcService<UserService>();
        await application.StartAsync();
        var listening = new Uri(application.Services.GetRequiredService<IServer>().Features.Get<IServerAddressesFeature>()!.Addresses.Single());
        return new EndpointServer(application, journal, authorities, serverNames, new IPEndPoint(IPAddress.Parse(address), listening.Port));
    }

    /// <summary>Servers on 127.0.0.2, 127.0.0.3 and so on, all on one port, as those behind a name of DNS are.</summary>
    public static async Task<EndpointServer[]> StartSeveralAsync(int count, X509Certificate2? certificate = null)
    {
        var servers = new EndpointServer[count];
        for (var i = 0; i < count; i++)
        {
            servers[i] = await StartAsync($"127.0.0.{i + 2}", i == 0 ? 0 : servers[0].EndPoint.Port, certificate);
        }

        return servers;
    }

    public async ValueTask DisposeAsync()
    {
        using var now = new CancellationTokenSource();
        await now.CancelAsync();
        await _application.StopAsync(now.Token);
        await _application.DisposeAsync();
        Journal.Dispose();
    }
}

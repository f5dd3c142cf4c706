using System.Collections.Concurrent;
using System.Net;
using System.Security.Cryptography.X509Certificates;
using Microsoft.AspNetCore.Builder;
using Microsoft.AspNetCore.Hosting;
using Microsoft.AspNetCore.Hosting.Server;
using Microsoft.AspNetCore.Hosting.Server.Features;
using Microsoft.AspNetCore.Http;
using Microsoft.AspNetCore.Server.Kestrel.Core;
using Microsoft.AspNetCore.Server.Kestrel.Https;
using Microsoft.Extensions.DependencyInjection;
using PoolingInvoker.Testing;

namespace PoolingInvoker.FunctionalTests;

/// <summary>A server whose answers are the test's, and that counts connections and requests.</summary>
internal sealed class HttpServer : IAsyncDisposable
{
    private readonly WebApplication _application;
    private readonly Counters _counters;

    private HttpServer(WebApplication application, Counters counters, Uri address)
    {
        _application = application;
        _counters = counters;
        Address = address;
    }

    public Uri Address { get; }

    /// <summary>How many connections there have been.</summary>
    public int Connections => Volatile.Read(ref _counters.Connections);

    /// <summary>How many of them are there.</summary>
    public int OpenConnections => Volatile.Read(ref _counters.OpenConnections);

    /// <summary>The paths of the requests that came.</summary>
    public IReadOnlyList<string> Requests => [.. _counters.Requests];

    public static Task<HttpServer> StartAsync(RequestDelegate answer, Setup? setup = null) => StartAsync(answer, 0, setup);

    public static async Task<HttpServer> StartAsync(RequestDelegate answer, int port, Setup? setup = null)
    {
        setup ??= new Setup();
        var counters = new Counters();
        var builder = WebApplication.CreateEmptyBuilder(new WebApplicationOptions());
        builder.WebHost.UseKestrelCore().UseKestrelHttpsConfiguration().ConfigureKestrel(kestrel =>
        {
            setup.Configure?.Invoke(kestrel);
            if (setup.UnixSocket is { } path)
            {
                kestrel.ListenUnixSocket(path, Listen);
            }
            else
            {
                kestrel.Listen(IPAddress.Loopback, port, Listen);
            }
        });
        var application = builder.Build();
        application.Run(context =>
        {
            counters.Requests.Enqueue(context.Request.Path);
            return answer(context);
        });
        await application.StartAsync();
        var address = application.Services.GetRequiredService<IServer>().Features.Get<IServerAddressesFeature>()!.Addresses.Single();
        return new HttpServer(application, counters, setup.UnixSocket is null ? new Uri(address) : new Uri("http://localhost"));

        void Listen(ListenOptions listen)
        {
            listen.Protocols = setup.Protocols;
            listen.Use(next => async connection =>
            {
                Interlocked.Increment(ref counters.Connections);
                Interlocked.Increment(ref counters.OpenConnections);
                try
                {
                    await next(connection);
                }
                finally
                {
                    Interlocked.Decrement(ref counters.OpenConnections);
                }
            });
            if (setup.Certificate is { } certificate)
            {
                var https = new HttpsConnectionAdapterOptions { ServerCertificate = certificate };
                setup.ConfigureHttps?.Invoke(https);
                listen.UseHttps(https);
            }
        }
    }

    /// <summary>Reads the request, and answers it with one message, or none, and a status.</summary>
    public static async Task ReplyAsync(HttpContext context, byte[]? message, string status = "0")
    {
        await context.Request.Body.CopyToAsync(Stream.Null);
        context.Response.ContentType = "application/grpc";
        context.Response.AppendTrailer("grpc-status", status);
        if (message is not null)
        {
            await context.Response.Body.WriteAsync((byte[])[0, 0, 0, 0, (byte)message.Length, .. message]);
        }
    }

    public async ValueTask DisposeAsync()
    {
        using var now = new CancellationTokenSource();
        await now.CancelAsync();
        await _application.StopAsync(now.Token);
        await _application.DisposeAsync().AsTask().Soon();
    }

    public sealed record Setup
    {
        public X509Certificate2? Certificate { get; init; }

        public HttpProtocols Protocols { get; init; } = HttpProtocols.Http2;

        public Action<KestrelServerOptions>? Configure { get; init; }

        public Action<HttpsConnectionAdapterOptions>? ConfigureHttps { get; init; }

        public string? UnixSocket { get; init; }
    }

    private sealed class Counters
    {
        public int Connections;
        public int OpenConnections;

        public ConcurrentQueue<string> Requests { get; } = new();
    }
}

using System.Net;
using System.Security.Claims;
using System.Text.Encodings.Web;
using Microsoft.AspNetCore.Authentication;
using Microsoft.AspNetCore.Routing;
using Microsoft.AspNetCore.Server.Kestrel.Core;
using Microsoft.Extensions.Logging;
using Microsoft.Extensions.Options;

namespace PoolingInvoker.AspNetCoreTests;

/// <summary>A web app with the page, on a free loopback port.</summary>
internal sealed class PageApp : IAsyncDisposable
{
    /// <summary>Who sends it as the scheme of its authorization may see what is protected.</summary>
    public const string TestScheme = "Test";

    private PageApp(WebApplication application)
    {
        Application = application;
        Address = new Uri($"{application.Urls.Single()}/");
        Sampler = ((IEndpointRouteBuilder)application).DataSources.SelectMany(static source => source.Endpoints)
            .Select(static endpoint => endpoint.Metadata.GetMetadata<PoolSampler>()).First(static sampler => sampler is not null)!;
        Http = new HttpClient(new SocketsHttpHandler { AllowAutoRedirect = false }) { BaseAddress = Address };
    }

    public WebApplication Application { get; }

    public Uri Address { get; }

    public PoolSampler Sampler { get; }

    public HttpClient Http { get; }

    public static async Task<PageApp> StartAsync(
        Action<ChannelPoolsPageOptions>? pools = null,
        Action<IServiceCollection>? services = null,
        Action<IEndpointConventionBuilder>? conventions = null,
        Action<WebApplication>? also = null,
        int port = 0)
    {
        var builder = WebApplication.CreateEmptyBuilder(new WebApplicationOptions());
        builder.WebHost.UseKestrelCore().ConfigureKestrel(kestrel =>
            kestrel.Listen(IPAddress.Loopback, port, static listen => listen.Protocols = HttpProtocols.Http1));
        builder.Services.AddRoutingCore();
        builder.Services.AddAuthorization().AddAuthentication(TestScheme).AddScheme<AuthenticationSchemeOptions, Authentication>(TestScheme, null);
        services?.Invoke(builder.Services);
        var application = builder.Build();
        application.UseRouting();
        application.UseAuthentication();
        application.UseAuthorization();
        var page = application.MapChannelPools("/pools", pools);
        conventions?.Invoke(page);
        also?.Invoke(application);
        await application.StartAsync();
        return new PageApp(application);
    }

    /// <summary>Watches, as the page does.</summary>
    public Task<FrameReader> WatchAsync() => FrameReader.OpenAsync(Http, "pools/live");

    public async ValueTask DisposeAsync()
    {
        Http.Dispose();
        await Application.DisposeAsync();
    }

    private sealed class Authentication(IOptionsMonitor<AuthenticationSchemeOptions> options, ILoggerFactory loggers, UrlEncoder encoder)
        : AuthenticationHandler<AuthenticationSchemeOptions>(options, loggers, encoder)
    {
        protected override Task<AuthenticateResult> HandleAuthenticateAsync() => Task.FromResult(
            Request.Headers.Authorization == TestScheme
                ? AuthenticateResult.Success(new AuthenticationTicket(new ClaimsPrincipal(new ClaimsIdentity(TestScheme)), TestScheme))
                : AuthenticateResult.NoResult());
    }
}

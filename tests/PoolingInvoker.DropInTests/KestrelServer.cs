using System.Net;
using Microsoft.AspNetCore.Builder;
using Microsoft.AspNetCore.Hosting;
using Microsoft.AspNetCore.Hosting.Server;
using Microsoft.AspNetCore.Hosting.Server.Features;
using Microsoft.AspNetCore.Server.Kestrel.Core;
using Microsoft.Extensions.DependencyInjection;

namespace PoolingInvoker.DropInTests;

/// <summary>Kestrel over plaintext HTTP/2 on a free loopback port, with the services that a test class puts on it.</summary>
public abstract class KestrelServer : IAsyncLifetime
{
    private WebApplication _application = null!;

    public Uri Address { get; private set; } = null!;

    public async ValueTask InitializeAsync()
    {
        // An empty builder reads no configuration, and watches no files.
        var builder = WebApplication.CreateEmptyBuilder(new WebApplicationOptions());
        builder.WebHost.UseKestrelCore().ConfigureKestrel(static kestrel => kestrel.Listen(IPAddress.Loopback, 0, static listen => listen.Protocols = HttpProtocols.Http2));
        AddServices(builder.Services);
        _application = builder.Build();
        Map(_application);
        await _application.StartAsync();
        Address = new Uri(_application.Services.GetRequiredService<IServer>().Features.Get<IServerAddressesFeature>()!.Addresses.Single());
    }

    /// <summary>Stops in good order: calls in flight may end.</summary>
    public Task StopAsync() => _application.StopAsync();

    public async ValueTask DisposeAsync()
    {
        using var now = new CancellationTokenSource();
        await now.CancelAsync();
        await _application.StopAsync(now.Token);
        await _application.DisposeAsync();
        GC.SuppressFinalize(this);
    }

    protected abstract void AddServices(IServiceCollection services);

    protected abstract void Map(WebApplication application);

    protected T Get<T>()
        where T : notnull => _application.Services.GetRequiredService<T>();
}

using Microsoft.AspNetCore.Connections.Features;
using Microsoft.AspNetCore.Http.Features;
using Microsoft.AspNetCore.Server.Kestrel.Core;
using PoolingInvoker.Demo.Servers;

namespace PoolingInvoker.RotationTests;

/// <summary>A maximum age of connections, which Kestrel does not have: one that reaches it is closed in good order.</summary>
internal static class KestrelAge
{
    private static readonly TimeSpan MaxAge = TimeSpan.FromMilliseconds(300);

    public static Task<UserServer> StartServerAsync() =>
        UserServer.StartAsync("kestrel", configure: static kestrel => kestrel.ConfigureEndpointDefaults(Limit));

    private static void Limit(ListenOptions listen) => listen.Use(static next => async connection =>
    {
        var lifetime = connection.Features.GetRequiredFeature<IConnectionLifetimeNotificationFeature>();
        await using var timer = TimeProvider.System.CreateTimer(_ => lifetime.RequestClose(), state: null, MaxAge, Timeout.InfiniteTimeSpan);
        await next(connection);
    });
}

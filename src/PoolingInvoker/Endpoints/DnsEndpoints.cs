using System.Net;
using System.Net.Sockets;
using Microsoft.AspNetCore.Http.Features;
using Microsoft.Extensions.Primitives;
using Microsoft.Extensions.ServiceDiscovery;
using static PoolingInvoker.ChannelPoolOptions;

namespace PoolingInvoker;

/// <summary>Finds the endpoints of a name of DNS: each of its addresses is a server, and all have the same port.</summary>
internal sealed class DnsEndpoints(Uri name, TimeProvider time, Func<string, CancellationToken, Task<IPAddress[]>>? getAddresses = null)
{
    public const string Scheme = "dns";

    // The resolver of the system tells no TTL. Other gRPC clients ask no more often than in 30 s, which is a common TTL in clusters.
    public static readonly TimeSpan RefreshInterval = TimeSpan.FromSeconds(30);

    /// <summary>
    /// Gives the http or https address that a <c>dns:</c> address stands for (gRPC name resolution,
    /// https://github.com/grpc/grpc/blob/master/doc/naming.md): <c>http://users:5000</c> for <c>dns:///users:5000</c>. Without a port it
    /// is that of the scheme.
    /// </summary>
    public static Uri NameOf(Uri address, bool isSecure)
    {
        var path = address.AbsolutePath;
        Require(
            address.Host.Length == 0,
            $"The address '{address.OriginalString}' names '{address.Authority}' as the DNS server to ask, and the pool asks that of the "
            + $"system. The name to resolve follows three slashes, as in 'dns:///{(path.Length > 1 ? path[1..] : address.Authority)}'.",
            nameof(address));

        // As in a URI of a scheme that has no port of its own: it tells whether there is one.
        var target = Uri.UnescapeDataString(address.GetComponents(UriComponents.PathAndQuery | UriComponents.Fragment, UriFormat.UriEscaped).TrimStart('/'));
        Require(
            Uri.TryCreate($"{Scheme}://{target}", UriKind.Absolute, out var parsed)
            && parsed is { UserInfo: "", PathAndQuery.Length: <= 1, Fragment: "" }
            && parsed.HostNameType is not (UriHostNameType.Unknown or UriHostNameType.Basic),
            $"The address '{address.OriginalString}' does not name a host. After 'dns:///' come a host and, if it is not 80, or 443 with "
            + "TLS, a port, as in 'dns:///users:5000'.",
            nameof(address));
        return new UriBuilder(isSecure ? Uri.UriSchemeHttps : Uri.UriSchemeHttp, parsed!.Host, parsed.Port).Uri;
    }

    public async ValueTask<ServiceEndpointSource> ResolveAsync(CancellationToken cancellationToken)
    {
        var host = name.IdnHost;
        if (IPAddress.TryParse(host, out var literal))
        {
            return Source([literal], CancellationToken.None);
        }

        IPAddress[] addresses;
        try
        {
            addresses = await (getAddresses ?? Dns.GetHostAddressesAsync)(host, cancellationToken).ConfigureAwait(false);
        }
        catch (SocketException exception)
        {
            throw new HttpRequestException(HttpRequestError.NameResolutionError, $"{exception.Message} ({host}:{name.Port})", exception);
        }

        return Source(addresses, new CancellationTokenSource(RefreshInterval, time).Token);
    }

    private ServiceEndpointSource Source(IEnumerable<IPAddress> addresses, CancellationToken changed) =>
        new([.. addresses.Select(address => ServiceEndpoint.Create(new IPEndPoint(address, name.Port)))], new CancellationChangeToken(changed), new FeatureCollection());
}

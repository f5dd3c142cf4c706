using System.Net;
using System.Net.Sockets;
using Microsoft.AspNetCore.Http.Features;
using Microsoft.Extensions.Primitives;
using Microsoft.Extensions.ServiceDiscovery;

namespace PoolingInvoker;

/// <summary>Finds the endpoints of a name of DNS: each of its addresses is a server, and all have the same port.</summary>
internal sealed class DnsEndpoints(Uri name, TimeProvider time, Func<string, CancellationToken, Task<IPAddress[]>>? getAddresses = null)
{
    public const string Scheme = "dns";

    // The resolver of the system tells no TTL. Other gRPC clients ask no more often than in 30 s, which is a common TTL in clusters.
    public static readonly TimeSpan RefreshInterval = TimeSpan.FromSeconds(30);

    private readonly Func<string, CancellationToken, Task<IPAddress[]>> _getAddresses = getAddresses ?? Dns.GetHostAddressesAsync;

    /// <summary>
    /// Gives the http or https address that a <c>dns:</c> address stands for (gRPC name resolution,
    /// https://github.com/grpc/grpc/blob/master/doc/naming.md): <c>http://users:5000</c> for <c>dns:///users:5000</c>. Without a port it
    /// is that of the scheme.
    /// </summary>
    public static Uri NameOf(Uri address, bool isSecure)
    {
        if (address.Host.Length > 0)
        {
            throw new ArgumentException(
                $"The address '{address.OriginalString}' names '{address.Authority}' as the DNS server to ask, and the pool asks that of the system. "
                + $"The name to resolve follows three slashes, as in 'dns:///{(address.AbsolutePath.Length > 1 ? address.AbsolutePath[1..] : address.Authority)}'.",
                nameof(address));
        }

        // As in a URI of a scheme that has no port of its own: it tells whether there is one.
        var target = Uri.UnescapeDataString(address.GetComponents(UriComponents.PathAndQuery | UriComponents.Fragment, UriFormat.UriEscaped).TrimStart('/'));
        if (!Uri.TryCreate($"{Scheme}://{target}", UriKind.Absolute, out var parsed)
            || parsed.HostNameType is UriHostNameType.Unknown or UriHostNameType.Basic || parsed.UserInfo.Length > 0 || parsed.PathAndQuery.Length > 1 || parsed.Fragment.Length > 0)
        {
            throw new ArgumentException(
                $"The address '{address.OriginalString}' does not name a host. After 'dns:///' come a host and, if it is not 80, or 443 with TLS, a port, as in 'dns:///users:5000'.",
                nameof(address));
        }

        return new UriBuilder(isSecure ? Uri.UriSchemeHttps : Uri.UriSchemeHttp, parsed.Host, parsed.Port).Uri;
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
            addresses = await _getAddresses(host, cancellationToken).ConfigureAwait(false);
        }
        catch (SocketException exception)
        {
            throw new HttpRequestException(HttpRequestError.NameResolutionError, $"{exception.Message} ({host}:{name.Port})", exception);
        }

        // A DNS server rotates its answers: in order they are the same when they are.
        var sorted = addresses.Distinct()
            .OrderBy(static address => address.AddressFamily)
            .ThenBy(static address => address.GetAddressBytes(), Comparer<byte[]>.Create(static (left, right) => left.AsSpan().SequenceCompareTo(right)));
        return Source(sorted, new CancellationTokenSource(RefreshInterval, time).Token);
    }

    private ServiceEndpointSource Source(IEnumerable<IPAddress> addresses, CancellationToken changed) =>
        new([.. addresses.Select(address => ServiceEndpoint.Create(new IPEndPoint(address, name.Port)))], new CancellationChangeToken(changed), new FeatureCollection());
}

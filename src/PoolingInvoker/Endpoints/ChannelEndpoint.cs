using System.Globalization;
using System.Net;
using Microsoft.Extensions.ServiceDiscovery;

namespace PoolingInvoker;

/// <summary>One server that a channel can go to.</summary>
/// <remarks>
/// One of a list has an address of its own. Channels to another one keep the name of the pool. Where a list is that of a service, its
/// channels are to the service as far as the application sees, and to the address as far as the server and TLS do.
/// </remarks>
internal sealed record ChannelEndpoint(EndPoint EndPoint, Uri? Address = null, Uri? Service = null)
{
    public int Weight { get; init; } = 1; // its share of the calls, which may change: it is the same endpoint
    public int Priority { get; init; } // so may this

    public bool Equals(ChannelEndpoint? other) => other is not null && EndPoint.Equals(other.EndPoint) && Address == other.Address && Service == other.Service;

    public override int GetHashCode() => HashCode.Combine(EndPoint, Address, Service);

    public override string ToString() => EndPoint is DnsEndPoint dns
        ? string.Create(CultureInfo.InvariantCulture, $"{dns.Host}:{dns.Port}")
        : EndPoint.ToString()!;

    public Uri ToUri(string scheme) => new($"{scheme}://{this}");

    /// <summary>Takes what a resolution gave: an IP endpoint, a DNS one, or a URI. Throws where no channel can go there.</summary>
    public static ChannelEndpoint From(EndPoint endPoint, Uri name)
    {
        var (host, port) = endPoint switch
        {
            IPEndPoint ip => ($"{ip.Address}", ip.Port),
            DnsEndPoint dns => (dns.Host, dns.Port),
            _ => HostAndPort(endPoint, name),
        };
        return new ChannelEndpoint(Parse(host, port > 0 ? port : name.Scheme == Uri.UriSchemeHttps ? 443 : 80));
    }

    /// <summary>
    /// Takes what service discovery gave as its handler for HttpClient does: the server and TLS get the address of the endpoint, or the name that
    /// comes with it. A URI has its own scheme, and so has the channel: what a call may carry depends on it.
    /// </summary>
    public static ChannelEndpoint OfService(ServiceEndpoint endpoint, Uri service)
    {
        var uri = endpoint.EndPoint is not (IPEndPoint or DnsEndPoint) && Uri.TryCreate(endpoint.EndPoint.ToString(), UriKind.Absolute, out var parsed) ? parsed : null;
        if (uri is { AbsolutePath.Length: > 1 })
        {
            throw new InvalidOperationException($"The endpoint '{uri}' has a path, and gRPC calls have none before that of their method. Give the endpoint without it.");
        }

        var scheme = uri?.Scheme == Uri.UriSchemeHttp || uri?.Scheme == Uri.UriSchemeHttps ? uri.Scheme : service.Scheme;
        var name = new UriBuilder(scheme, service.Host, service.IsDefaultPort ? -1 : service.Port).Uri;
        var found = From(endpoint.EndPoint, name);
        return found with
        {
            Address = endpoint.Features.Get<IHostNameFeature>() is { HostName: var host } ? new Uri($"{scheme}://{host}") : found.ToUri(scheme),
            Service = name,
        };
    }

    private static (string Host, int Port) HostAndPort(EndPoint endPoint, Uri name)
    {
        // What service discovery reads from configuration is of a type that not every version of the package shows. Its text is a URI.
        if (!Uri.TryCreate(endPoint.ToString(), UriKind.Absolute, out var uri) || uri.Host.Length == 0)
        {
            throw new InvalidOperationException($"The endpoint '{endPoint}' is neither an IP address nor the name of a host, and no channel can go there.");
        }

        if ((uri.Scheme == Uri.UriSchemeHttp || uri.Scheme == Uri.UriSchemeHttps) && uri.Scheme != name.Scheme)
        {
            throw new InvalidOperationException($"The endpoint '{uri}' speaks {uri.Scheme}, and the pool of '{name}' does not. Resolve endpoints of the scheme that the pool has.");
        }

        return (uri.IdnHost, uri.Port);
    }

    /// <summary>Reads an explicit list, each entry of which keeps its own authority.</summary>
    public static IReadOnlyList<ChannelEndpoint> ParseList(IEnumerable<ChannelAddress> addresses)
    {
        ArgumentNullException.ThrowIfNull(addresses);
        ChannelAddress[] given = [.. addresses];
        Uri[] all = [.. given.Select(static one => AddressChannelPolicy.Checked(AddressChannelPolicy.ParseAddress(one?.Address!)))];
        var wrong = Array.Find(given, static one => one.Weight is < 1 or > ChannelAddress.MostWeight);
        ChannelPoolOptions.Require(
            wrong is null,
            $"The address '{wrong?.Address}' has the weight {wrong?.Weight}. It must be from 1 to {ChannelAddress.MostWeight}.",
            nameof(addresses));
        wrong = Array.Find(given, static one => one.Priority is < 0 or > ChannelAddress.LastPriority);
        ChannelPoolOptions.Require(
            wrong is null,
            $"The address '{wrong?.Address}' has the priority {wrong?.Priority}. It must be from 0 to {ChannelAddress.LastPriority}.",
            nameof(addresses));
        ChannelPoolOptions.Require(
            all.Length > 0,
            "There are no addresses. A pool needs at least one, as in 'http://users:5000'.",
            nameof(addresses));
        var other = Array.Find(all, address => address.Scheme != all[0].Scheme);
        ChannelPoolOptions.Require(
            other is null,
            $"The addresses '{all[0].OriginalString}' and '{other?.OriginalString}' have different schemes. "
            + "All addresses of a pool must have the same one.",
            nameof(addresses));

        return [.. all.Select((uri, index) => OwnOf(uri) with { Weight = given[index].Weight, Priority = given[index].Priority }).Distinct()];

        // As a bare channel does, without a path.
        static ChannelEndpoint OwnOf(Uri uri) => new(Parse(uri.IdnHost, uri.Port), new Uri(uri.GetLeftPart(UriPartial.Authority)));
    }

    private static EndPoint Parse(string host, int port) => IPAddress.TryParse(host, out var address)
        ? new IPEndPoint(address, port)
        : new DnsEndPoint(host, port);
}

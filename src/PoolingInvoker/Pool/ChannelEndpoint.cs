using System.Globalization;
using System.Net;

namespace PoolingInvoker;

/// <summary>One server that a channel can go to.</summary>
/// <remarks>One of an explicit list has an address of its own. Channels to another one keep the name of the pool.</remarks>
internal sealed record ChannelEndpoint(EndPoint EndPoint, Uri? Address = null)
{
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
    public static IReadOnlyList<ChannelEndpoint> ParseList(IEnumerable<string> addresses)
    {
        ArgumentNullException.ThrowIfNull(addresses);
        List<ChannelEndpoint> endpoints = [];
        foreach (var text in addresses)
        {
            var address = AddressChannelPolicy.Checked(AddressChannelPolicy.ParseAddress(text));
            if (endpoints is [{ Address: { } first }, ..] && first.Scheme != address.Scheme)
            {
                throw new ArgumentException($"The addresses '{first.OriginalString}' and '{text}' have different schemes. All addresses of a pool must have the same one.", nameof(addresses));
            }

            // As a bare channel does, without a path.
            endpoints.Add(new ChannelEndpoint(Parse(address.IdnHost, address.Port), new Uri(address.GetLeftPart(UriPartial.Authority))));
        }

        return endpoints.Count > 0
            ? [.. endpoints.Distinct()]
            : throw new ArgumentException("There are no addresses. A pool needs at least one, as in 'http://users:5000'.", nameof(addresses));
    }

    private static EndPoint Parse(string host, int port) => IPAddress.TryParse(host, out var address)
        ? new IPEndPoint(address, port)
        : new DnsEndPoint(host, port);
}

using System.Globalization;
using System.Net;

namespace PoolingInvoker;

/// <summary>One server that a channel can go to.</summary>
/// <param name="EndPoint">An <see cref="IPEndPoint"/> or a <see cref="DnsEndPoint"/>, with its port.</param>
/// <param name="Address">The address of its own, of an explicit list; null if the channel keeps the name of the pool and goes there.</param>
internal sealed record ChannelEndpoint(EndPoint EndPoint, Uri? Address = null)
{
    public override string ToString() => EndPoint is DnsEndPoint dns
        ? string.Create(CultureInfo.InvariantCulture, $"{dns.Host}:{dns.Port}")
        : EndPoint.ToString()!;

    /// <summary>The endpoint as an address that a handler can dial.</summary>
    public Uri ToUri(string scheme) => new($"{scheme}://{this}");

    /// <summary>Takes what a resolution gave.</summary>
    /// <param name="endPoint">An IP endpoint, a DNS one, or one that is a URI.</param>
    /// <param name="name">The name of the pool, whose scheme the endpoint has to speak, and whose default port it has if it has none.</param>
    /// <exception cref="InvalidOperationException">A channel of the pool cannot go there.</exception>
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
        // What service discovery reads from configuration is an endpoint whose type not every version of the package shows, and whose text is a URI.
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
    /// <exception cref="ArgumentException">The list is empty, an address is not an http or https one, or they have not all the same scheme.</exception>
    public static IReadOnlyList<ChannelEndpoint> ParseList(IEnumerable<string> addresses)
    {
        ArgumentNullException.ThrowIfNull(addresses);
        List<ChannelEndpoint> endpoints = [];
        foreach (var text in addresses)
        {
            var address = AddressChannelPolicy.ParseAddress(text);
            AddressChannelPolicy.CheckAddress(address);
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

namespace PoolingInvoker;

/// <summary>Addresses whose scheme only service discovery understands, as <c>https+http://users</c>: an endpoint of the first scheme that there is.</summary>
internal static class ClientAddress
{
    public static bool IsForDiscovery(Uri address) => address.IsAbsoluteUri && address.Scheme.Contains('+', StringComparison.Ordinal);

    /// <summary>What is wrong with an address that neither a pool nor service discovery understands; null if nothing is.</summary>
    public static string? Complaint(string address) => Uri.TryCreate(address, UriKind.Absolute, out var uri)
        && (IsForDiscovery(uri) || uri.Scheme == "dns" || ((uri.Scheme == Uri.UriSchemeHttp || uri.Scheme == Uri.UriSchemeHttps) && uri.Host.Length > 0))
        ? null
        : $"its address is '{address}'. It must begin with 'http://' or 'https://', as in 'http://{(address.Contains("://", StringComparison.Ordinal) || address.Length == 0 ? "users:5000" : address)}', "
            + "with 'dns:///', or, with service discovery, with 'https+http://'.";

    /// <summary>The same with the first of its schemes, which is that of endpoints that have none.</summary>
    public static Uri WithOneScheme(Uri address) => IsForDiscovery(address)
        ? new Uri($"{address.Scheme[..address.Scheme.IndexOf('+', StringComparison.Ordinal)]}://{address.Authority}")
        : address;
}

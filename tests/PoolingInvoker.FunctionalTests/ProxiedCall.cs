using PoolingInvoker.Protos;

namespace PoolingInvoker.FunctionalTests;

/// <summary>A call over a pool in a process of its own, whose environment names a proxy. <see cref="HttpProxyTests"/> starts it.</summary>
internal static class ProxiedCall
{
    public const string Command = "proxied-call";

    /// <summary>Makes the call, and prints how it ended.</summary>
    public static async Task<int> RunAsync(Uri address, string certificateHash)
    {
        await using var client = TestClient.Create(overPool: true, address, handler =>
            handler.SslOptions.RemoteCertificateValidationCallback = (_, certificate, _, _) => certificate?.GetCertHashString() == certificateHash);
        var end = await Outcome.OfAsync(() => client.User.GetNameAsync(new GetNameRequest()).ResponseAsync);
        Console.WriteLine(end.Status);
        return 0;
    }
}

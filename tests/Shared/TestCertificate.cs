using System.Security.Cryptography;
using System.Security.Cryptography.X509Certificates;

namespace PoolingInvoker.Testing;

/// <summary>Certificates of servers and clients that nobody has signed.</summary>
internal static class TestCertificate
{
    public static X509Certificate2 New(string name)
    {
        using var key = ECDsa.Create(ECCurve.NamedCurves.nistP256);
        var request = new CertificateRequest($"CN={name}", key, HashAlgorithmName.SHA256);
        var names = new SubjectAlternativeNameBuilder();
        names.AddDnsName(name);
        request.CertificateExtensions.Add(names.Build());
        var now = TimeProvider.System.GetUtcNow();
        return request.CreateSelfSigned(now.AddHours(-1), now.AddHours(1));
    }
}

using Grpc.Core;
using Microsoft.AspNetCore.Server.Kestrel.Core;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.FunctionalTests;

/// <summary>Connections that cannot get better by another try, over a pool and over a bare channel.</summary>
public sealed class HandshakeTests(ITestOutputHelper output)
{
    private const int Calls = 10;

    public static TheoryData<string, bool> Cases
    {
        get
        {
            var cases = new TheoryData<string, bool>();
            foreach (var what in (string[])["an untrusted certificate", "a certificate that the client refuses", "https to an http port", "HTTP/1.1 only", "HTTP/1.1 only, with TLS", "no ALPN"])
            {
                cases.Add(what, false);
                cases.Add(what, true);
            }

            return cases;
        }
    }

    [Theory]
    [MemberData(nameof(Cases))]
    public async Task IsTriedNoMoreThanByABareChannel_AndSaysWhy(string what, bool atATime)
    {
        // How many of the calls that are made at a time share a connection that fails is a matter of luck.
        var bare = await RunAsync(overPool: false, what, atATime);
        for (var i = 0; i < 2; i++)
        {
            var another = await RunAsync(overPool: false, what, atATime);
            bare = (Math.Max(bare.Connections, another.Connections), 0, [.. bare.Ends, .. another.Ends]);
        }

        var pool = await RunAsync(overPool: true, what, atATime);
        output.WriteLine($"bare: {bare.Connections} connections, {string.Join("; ", bare.Ends.Distinct())}");
        output.WriteLine($"pool: {pool.Connections} connections, {pool.Retries} retries, {string.Join("; ", pool.Ends.Distinct())}");
        Assert.InRange(pool.Connections, 1, bare.Connections);
        Assert.Equal(0, pool.Retries);

        // The handler of the channel wraps what an attempt to connect ended with once more.
        Assert.All(pool.Ends, end => Assert.Contains(bare.Ends, expected => expected.Status == end.Status && end.Cause.EndsWith(expected.Cause, StringComparison.Ordinal)));
    }

    private static async Task<(int Connections, long Retries, Outcome[] Ends)> RunAsync(bool overPool, string what, bool atATime)
    {
        using var certificate = TestCertificate.New("localhost");
        await using var plain = what == "no ALPN" ? null : await HttpServer.StartAsync(static context => HttpServer.ReplyAsync(context, []), new HttpServer.Setup
        {
            Certificate = what.Contains("certificate", StringComparison.Ordinal) || what.EndsWith("TLS", StringComparison.Ordinal) ? certificate : null,
            Protocols = what.StartsWith("HTTP/1.1", StringComparison.Ordinal) ? HttpProtocols.Http1 : HttpProtocols.Http2,
        });
        await using var raw = what == "no ALPN" ? SocketServer.WithoutAlpn(certificate) : null;
        var port = plain?.Address.Port ?? raw!.EndPoint.Port;
        Outcome[] ends;
        long retries;
        await using (var client = TestClient.Create(overPool, new Uri(what == "HTTP/1.1 only" ? $"http://localhost:{port}" : $"https://localhost:{port}"), handler =>
        {
            if (what != "an untrusted certificate")
            {
                handler.SslOptions.RemoteCertificateValidationCallback = (_, _, _, _) => what != "a certificate that the client refuses";
            }
        }))
        {
            if (atATime)
            {
                ends = await Task.WhenAll(Enumerable.Range(0, Calls).Select(_ => CallAsync(client)));
            }
            else
            {
                ends = new Outcome[Calls];
                for (var i = 0; i < Calls; i++)
                {
                    ends[i] = await CallAsync(client);
                }
            }

            retries = client.Retries;
        }

        Assert.All(ends, static end => Assert.NotEqual(StatusCode.OK, end.Status));
        return (raw is null ? plain!.Connections : await raw.CountAsync(), retries, ends);
    }

    private static Task<Outcome> CallAsync(TestClient client) =>
        Outcome.OfAsync(() => client.User.GetNameAsync(new GetNameRequest(), deadline: DateTime.UtcNow.AddSeconds(20)).ResponseAsync);
}

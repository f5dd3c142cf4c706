using System.Diagnostics;
using System.Net;
using System.Net.Sockets;
using Grpc.Core;
using PoolingInvoker.Protos;

namespace PoolingInvoker.Benchmarks.Scenarios;

/// <summary>
/// Eight callers of small calls beside four streams that carry as much as they can, where each connection carries 4 MB a second: a rate limit
/// per connection, or a thin line.
/// </summary>
internal sealed class BesideBulk : OneServerScenario
{
    private const int BytesPerSecond = 4_000_000;

    private readonly TcpListener _limiter = new(IPAddress.Loopback, 0);

    public override string Key => "bulk";

    public override string Name => "8 callers of small calls beside 4 bulk streams, 4 MB/s a connection";

    public override IReadOnlyList<Contender> Contenders { get; } = [Contender.DefaultChannel, Contender.OneConnection, Contender.InTurn, Contender.Pool];

    public override IReadOnlyList<Figure> Figures { get; } =
    [
        Figure.AtLeast("small calls/s", 100),
        new Figure("p99, ms", MoreIsBetter: false, "≤ 5", static (pool, _) => pool <= 5),
        Figure.AtLeast("bulk, MB/s", 0.9),
    ];

    public override int Rounds(bool quick) => quick ? 1 : 3;

    public override async Task StartAsync()
    {
        await base.StartAsync();
        _limiter.Start();
        _ = LimitAsync(new DnsEndPoint(Address.IdnHost, Address.Port));
    }

    public override async Task<double[]> MeasureAsync(Contender contender, bool quick)
    {
        await using var client = contender.Connect(new Uri($"http://127.0.0.1:{((IPEndPoint)_limiter.LocalEndpoint).Port}"));
        using var stop = new CancellationTokenSource();
        long bulk = 0;
        var streams = Enumerable.Range(0, 4).Select(_ => Task.Run(async () =>
        {
            using var chat = client.User.Chat(cancellationToken: stop.Token);
            var message = new ChatMessage { Text = new string('x', 64 * 1024) };
            try
            {
                while (true)
                {
                    await chat.RequestStream.WriteAsync(message, stop.Token);
                    await chat.ResponseStream.MoveNext(stop.Token);
                    Interlocked.Add(ref bulk, message.Text.Length);
                }
            }
            catch (RpcException) when (stop.IsCancellationRequested)
            {
            }
        })).ToList();
        await Load.OfNamesAsync(client, callers: 8, TimeSpan.FromSeconds(2)); // the pool learns which channels carry much
        var (before, since) = (Interlocked.Read(ref bulk), Stopwatch.GetTimestamp());
        var load = await Load.OfNamesAsync(client, callers: 8, TimeSpan.FromSeconds(quick ? 2 : 5));
        var carried = (Interlocked.Read(ref bulk) - before) / Stopwatch.GetElapsedTime(since).TotalSeconds / 1e6;
        await stop.CancelAsync();
        await Task.WhenAll(streams);
        return [load.PerSecond, load.P99, carried];
    }

    public override async ValueTask DisposeAsync()
    {
        await base.DisposeAsync();
        _limiter.Dispose();
    }

    private async Task LimitAsync(DnsEndPoint server)
    {
        try
        {
            while (true)
            {
                var client = await _limiter.AcceptSocketAsync();
                var upstream = new Socket(SocketType.Stream, ProtocolType.Tcp) { NoDelay = true };
                client.NoDelay = true;
                await upstream.ConnectAsync(server);
                _ = CopyAsync(client, upstream);
                _ = CopyAsync(upstream, client);
            }
        }
        catch (Exception exception) when (exception is SocketException or InvalidOperationException)
        {
            // It has been stopped.
        }
    }

    private static async Task CopyAsync(Socket from, Socket to)
    {
        var buffer = new byte[16 * 1024];
        var free = Stopwatch.GetTimestamp(); // when what was sent has gone through
        try
        {
            while (await from.ReceiveAsync(buffer) is var read && read > 0)
            {
                var now = Stopwatch.GetTimestamp();
                free = Math.Max(free, now) + ((long)read * Stopwatch.Frequency / BytesPerSecond);
                if (Stopwatch.GetElapsedTime(now, free) is var wait && wait > TimeSpan.FromMilliseconds(2))
                {
                    await Task.Delay(wait);
                }

                await to.SendAsync(buffer.AsMemory(0, read));
            }
        }
        catch (Exception exception) when (exception is SocketException or ObjectDisposedException)
        {
            // One side has gone: so does the other.
        }

        from.Dispose();
        to.Dispose();
    }
}

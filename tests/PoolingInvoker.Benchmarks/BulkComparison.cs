using System.Diagnostics;
using System.Globalization;
using System.Net;
using System.Net.Sockets;
using Grpc.Core;
using Grpc.Net.Client;
using PoolingInvoker.Protos;

namespace PoolingInvoker.Benchmarks;

/// <summary>
/// Eight callers of small calls beside four streams that carry as much as they can, where each connection carries 4 MB a second: a rate limit
/// per connection, or a thin line.
/// </summary>
internal static class BulkComparison
{
    private static readonly TcpListener Limiter = new(IPAddress.Loopback, 0); // until the program ends
    private const int Rate = 4_000_000;
    private static readonly TimeSpan WarmUp = TimeSpan.FromSeconds(2);
    private static readonly TimeSpan Measured = TimeSpan.FromSeconds(5);

    public static async Task RunAsync(Uri server)
    {
        Limiter.Start();
        _ = LimitAsync(new DnsEndPoint(server.IdnHost, server.Port));
        var address = new Uri($"http://127.0.0.1:{((IPEndPoint)Limiter.LocalEndpoint).Port}");
        using (var bare = GrpcChannel.ForAddress(address))
        {
            await MeasureAsync("default channel", bare.CreateCallInvoker());
        }

        await using (var pool = PoolingCallInvoker.ForAddress(address))
        {
            await MeasureAsync("pool, default options", pool);
            Console.WriteLine(string.Join('\n', pool.Pool.GetChannels()));
        }

        using var array = new ChannelArray(address, 8);
        await MeasureAsync("8 channels in turn", array);
    }

    private static async Task MeasureAsync(string name, CallInvoker invoker)
    {
        var client = new User.UserClient(invoker);
        using var stop = new CancellationTokenSource();
        long bulk = 0;
        var times = new List<double>();
        var streams = Enumerable.Range(0, 4).Select(_ => Task.Run(async () =>
        {
            using var chat = client.Chat(cancellationToken: stop.Token);
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
        var since = Stopwatch.StartNew();
        var callers = Enumerable.Range(0, 8).Select(_ => Task.Run(async () =>
        {
            while (since.Elapsed < WarmUp + Measured)
            {
                var began = since.Elapsed;
                await client.GetNameAsync(new GetNameRequest());
                if (began > WarmUp)
                {
                    lock (times)
                    {
                        times.Add((since.Elapsed - began).TotalMilliseconds);
                    }
                }
            }
        })).ToList();
        await Task.WhenAll(callers);
        await stop.CancelAsync();
        await Task.WhenAll(streams);
        times.Sort();
        Console.WriteLine(string.Create(CultureInfo.InvariantCulture,
            $"{name,-22} {times.Count / Measured.TotalSeconds,7:0} small calls/s, p50 {times[times.Count / 2]:0.0} ms, p99 {times[times.Count * 99 / 100]:0.0} ms, {bulk / since.Elapsed.TotalSeconds / 1e6:0.0} MB/s of bulk"));
    }

    private static async Task LimitAsync(DnsEndPoint server)
    {
        try
        {
            while (true)
            {
                var client = await Limiter.AcceptSocketAsync();
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
                free = Math.Max(free, now) + ((long)read * Stopwatch.Frequency / Rate);
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

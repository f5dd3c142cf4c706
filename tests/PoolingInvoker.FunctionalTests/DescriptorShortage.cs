using System.Net;
using System.Net.Sockets;
using Grpc.Core;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.FunctionalTests;

/// <summary>
/// A process of its own that has few file descriptors, and runs out of them: over a pool and over a bare channel, with and without a
/// connection. <see cref="DescriptorShortageTests"/> starts it.
/// </summary>
internal static class DescriptorShortage
{
    public const string Command = "descriptor-shortage";
    public const int Limit = 400;
    private const int Callers = 10;

    /// <summary>Makes the calls, and prints a line for how those of each kind ended.</summary>
    public static async Task<int> RunAsync(Uri address)
    {
        await using (var bare = TestClient.Create(overPool: false, address))
        await using (var cold = TestClient.Create(overPool: true, address))
        await using (var warm = TestClient.Create(overPool: true, address, pool: static options => options.Pool.MaxConcurrentCallsPerChannel = 1))
        {
            await LoadAssembliesAsync(address);
            Console.WriteLine(await CallAsync(warm));
            var taken = TakeAll();
            var (bareEnd, coldEnd) = (await CallAsync(bare), await CallAsync(cold));

            // The calls that the one channel has no room for wait, and more channels cannot be made.
            var warmEnds = await Task.WhenAll(Enumerable.Range(0, Callers).Select(_ => CallAsync(warm)));
            taken.ForEach(static socket => socket.Dispose());
            Console.WriteLine($"bare: {bareEnd}\ncold: {coldEnd}\nwarm: {string.Join(", ", warmEnds.Distinct())}");

            foreach (var (name, client) in new[] { ("cold", cold), ("warm", warm) })
            {
                while (await CallAsync(client) != "OK")
                {
                    // It leaves a pause between two attempts to connect.
                }

                Console.WriteLine($"{name} afterwards: OK");
            }

            // Streams that last take a channel each: there are as many as ever.
            var streams = Enumerable.Range(0, Callers).Select(_ => warm.User.Chat()).ToList();
            await Waiting.Until(() => warm.Pooled!.Pool.GetStatistics() is { Channels: >= Callers, CallsWaiting: 0 });
            streams.ForEach(static stream => stream.Dispose());
        }

        Console.WriteLine("disposed");
        return 0;
    }

    // A file of a program that runs needs a descriptor the first time it is used. What works and what fails has been done once.
    private static async Task LoadAssembliesAsync(Uri address)
    {
        using var closed = new Socket(AddressFamily.InterNetwork, SocketType.Stream, ProtocolType.Tcp);
        closed.Bind(new IPEndPoint(IPAddress.Loopback, 0));
        foreach (var overPool in (bool[])[false, true])
        {
            foreach (var server in (Uri[])[address, new Uri($"http://{closed.LocalEndPoint}")])
            {
                await using var client = TestClient.Create(overPool, server);
                await CallAsync(client);
            }
        }
    }

    private static async Task<string> CallAsync(TestClient client)
    {
        var end = await Outcome.OfAsync(() => client.User.GetNameAsync(new GetNameRequest(), deadline: DateTime.UtcNow.AddSeconds(20)).ResponseAsync);
        return end.Status == StatusCode.OK ? "OK" : $"{end.Status} {end.Cause}: {end.Detail}";
    }

    private static List<Socket> TakeAll()
    {
        List<Socket> taken = [];
        try
        {
            while (true)
            {
                taken.Add(new Socket(AddressFamily.InterNetwork, SocketType.Stream, ProtocolType.Tcp));
            }
        }
        catch (SocketException exception) when (exception.SocketErrorCode == SocketError.TooManyOpenSockets)
        {
            return taken;
        }
    }
}

using System.Globalization;
using Grpc.Core;
using Grpc.Net.Client;
using PoolingInvoker.Protos;

namespace PoolingInvoker.Benchmarks;

/// <summary>What a unary call allocates in this process over a real connection, one call after the other.</summary>
internal static class ByteComparison
{
    private const int Calls = 20_000;

    public static async Task RunAsync(Uri server)
    {
        using var bare = GrpcChannel.ForAddress(server);
        await using var pool = PoolingCallInvoker.ForAddress(server);
        (string Name, CallInvoker Invoker)[] contenders = [("default channel", bare.CreateCallInvoker()), ("pool", pool)];
        var request = new GetNameRequest { Id = 7 };
        for (var round = 0; round < 4; round++)
        {
            foreach (var (name, invoker) in contenders)
            {
                var client = new User.UserClient(invoker);
                await client.GetNameAsync(request);
                var before = GC.GetTotalAllocatedBytes(precise: true);
                for (var i = 0; i < Calls; i++)
                {
                    await client.GetNameAsync(request);
                }

                var bytes = (GC.GetTotalAllocatedBytes(precise: true) - before) / (double)Calls;
                if (round > 0) // the first one is for the compiler
                {
                    Console.WriteLine(string.Create(CultureInfo.InvariantCulture, $"{name,-16} {bytes,8:0} bytes a call"));
                }
            }
        }
    }
}

using System.Collections.Concurrent;
using System.Net;
using System.Net.Sockets;
using System.Runtime.CompilerServices;
using System.Text;
using Grpc.Core;
using PoolingInvoker.Testing;

#pragma warning disable CA2025 // What accepts is awaited before its listener is gone.
namespace PoolingInvoker.ContractTests;

/// <summary>
/// Connections that end as they should not leave no exception of the library unobserved. Reports of those are of the whole process, so
/// nothing else runs meanwhile.
/// </summary>
[Collection(nameof(SoakTests))]
public sealed class UnobservedTests(ContractServer server) : IClassFixture<ContractServer>
{
    private const int Rounds = 10;

    private static readonly Marshaller<string> Text = Marshallers.Create(Encoding.UTF8.GetBytes, Encoding.UTF8.GetString);
    private static readonly Method<string, string> Unary = new(MethodType.Unary, "contract", "Unary", Text, Text);
    private static readonly Method<string, string> Duplex = new(MethodType.DuplexStreaming, "contract", "Duplex", Text, Text);

    [Theory]
    [InlineData("closed")]
    [InlineData("reset")]
    [InlineData("closed after the SETTINGS")]
    public Task ConnectionsThatAreAcceptedAndEnd(string how) => Unobserved.LeavesNothingUnobservedAsync(async () =>
    {
        using var listener = new TcpListener(IPAddress.Loopback, 0);
        listener.Start();
        var accepting = AcceptAsync(listener, async socket =>
        {
            if (how == "closed after the SETTINGS")
            {
                await socket.SendAsync(new byte[] { 0, 0, 0, 4, 0, 0, 0, 0, 0 });
            }

            socket.LingerState = new LingerOption(how == "reset", 0);
            socket.Dispose();
        });
        await using (var pool = NewPool(AddressOf(listener)))
        {
            await Task.WhenAll(Enumerable.Range(0, Rounds).Select(async _ =>
                Assert.Equal(StatusCode.Unavailable, (await Assert.ThrowsAsync<RpcException>(() => pool.AsyncUnaryCall(Unary, null, default, "hello").ResponseAsync.Soon())).StatusCode)));
        }

        listener.Stop();
        await accepting;
    });

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public Task APoolThatIsDisposedWhileItConnects(bool drains) => Unobserved.LeavesNothingUnobservedAsync(async () =>
    {
        using var listener = new TcpListener(IPAddress.Loopback, 0);
        listener.Start();
        var sockets = new ConcurrentQueue<Socket>();
        var accepting = AcceptAsync(listener, socket =>
        {
            sockets.Enqueue(socket); // and nothing is said
            return Task.CompletedTask;
        });
        for (var i = 1; i <= Rounds; i++)
        {
            var before = sockets.Count;
            var pool = NewPool(AddressOf(listener));
            var connecting = pool.ConnectAsync();
            var call = pool.AsyncUnaryCall(Unary, null, default, "hello");
            await Waiting.Until(() => i % 2 == 0 || sockets.Count > before);
            await (drains ? pool.DisposeAsync().AsTask().Soon() : Task.Run(pool.Dispose).Soon());
            await connecting.ContinueWith(static connected => connected.Exception, TaskScheduler.Default).Soon();
            await Assert.ThrowsAsync<RpcException>(() => call.ResponseAsync.Soon());
        }

        listener.Stop();
        await accepting;
        foreach (var socket in sockets)
        {
            socket.Dispose();
        }
    });

    [Fact]
    public Task StreamsThatNobodyReads_OnAConnectionThatBreaks() => Unobserved.LeavesNothingUnobservedAsync(async () =>
    {
        await using var pool = NewPool(server.Address);
        for (var i = 0; i < Rounds; i++)
        {
            await BreakAsync(pool);
        }

        await Waiting.Until(() =>
        {
            Unobserved.Collect();
            return pool.Pool.GetStatistics().CallsInFlight == 0;
        });
    });

    [MethodImpl(MethodImplOptions.NoInlining)]
    private async Task BreakAsync(PoolingCallInvoker pool)
    {
        var id = Guid.NewGuid().ToString();
        try
        {
            for (var i = 0; i < 5; i++)
            {
                var headers = new Metadata { { "ending", Ending.HeldAfterMessage }, { "then", Ending.ConnectionLost }, { "id", id } };
                Assert.True(await pool.AsyncDuplexStreamingCall(Duplex, null, new CallOptions(headers)).ResponseStream.MoveNext(CancellationToken.None).Soon());
            }
        }
        catch (RpcException)
        {
            // It came upon the last connection, which was about to break.
        }

        server.Release(id);
    }

    private static PoolingCallInvoker NewPool(Uri address) =>
        PoolingCallInvoker.ForAddress(address, new PoolingCallInvokerOptions { Retry = { Delay = TimeSpan.Zero } });

    private static Uri AddressOf(TcpListener listener) => new($"http://{listener.LocalEndpoint}");

    private static async Task AcceptAsync(TcpListener listener, Func<Socket, Task> answer)
    {
        try
        {
            while (true)
            {
                await answer(await listener.AcceptSocketAsync());
            }
        }
        catch (Exception exception) when (exception is SocketException or InvalidOperationException)
        {
            // It was stopped.
        }
    }
}

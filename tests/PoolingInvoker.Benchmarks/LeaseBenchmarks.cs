using BenchmarkDotNet.Attributes;
using Grpc.Net.Client;
using Microsoft.Extensions.ObjectPool;

namespace PoolingInvoker.Benchmarks;

/// <summary>A lease and its return, with few channels and with many.</summary>
[MemoryDiagnoser]
[ThreadingDiagnoser]
public class LeaseBenchmarks
{
    private readonly string[] _keys = [.. Enumerable.Range(0, 10_000).Select(static number => $"session-{number}")];
    private ChannelPool _pool = null!;
    private uint _next;

    [Params(4, 1_000)]
    public int Channels { get; set; }

    [GlobalSetup]
    public async Task SetUpAsync()
    {
        _pool = new ChannelPool(new IdlePolicy(), new ChannelPoolOptions { MinPoolSize = Channels, MaxPoolSize = Channels, ProbeDelay = Timeout.InfiniteTimeSpan });
        await _pool.ConnectAsync();
    }

    [GlobalCleanup]
    public void CleanUp() => _pool.Dispose();

    [Benchmark]
    public bool LeaseAndReturn() => LeaseAndReturn(key: 0);

    /// <summary>The same for a call with a key, from the text of the key on.</summary>
    [Benchmark]
    public bool LeaseByKeyAndReturn() => LeaseAndReturn(ChannelAffinity.KeyOf(_keys[_next++ % _keys.Length]));

    private bool LeaseAndReturn(ulong key)
    {
        var leased = _pool.Picker.TryLease(new LeaseRequest(LeaseKind.Call, Key: key), out var lease);
        lease!.Return(LeaseOutcome.Answered);
        return leased;
    }

    private sealed class IdlePolicy : IPooledObjectPolicy<GrpcChannel>
    {
        public GrpcChannel Create() => GrpcChannel.ForAddress("http://idle", new GrpcChannelOptions { HttpHandler = new IdleHandler(), DisposeHttpClient = true });

        public bool Return(GrpcChannel obj) => true;
    }

    private sealed class IdleHandler : HttpMessageHandler
    {
        protected override Task<HttpResponseMessage> SendAsync(HttpRequestMessage request, CancellationToken cancellationToken) => throw new NotSupportedException();
    }
}

using System.Diagnostics;
using Grpc.Net.Client;
using Microsoft.Extensions.ObjectPool;

namespace PoolingInvoker.Benchmarks.Scenarios;

/// <summary>A lease and its return, with no call, beside Get and Return of an object pool.</summary>
internal sealed class LeaseByHand(int threads, int channels) : Scenario
{
    private const int Operations = 1_000_000;

    private static readonly Contender Objects = new("DefaultObjectPool", static _ => throw new NotSupportedException());

    private readonly ObjectPool<GrpcChannel> _objects = new DefaultObjectPool<GrpcChannel>(new UnconnectedPolicy(), channels);
    private readonly ChannelPool _pool = new(new UnconnectedPolicy(), new ChannelPoolOptions { MinPoolSize = channels, MaxPoolSize = channels });

    public override string Key => $"lease-{threads}-{channels}";

    public override string Name => $"lease and return by hand, {threads} {(threads == 1 ? "thread" : "threads")}, {channels:N0} channels";

    public override IReadOnlyList<Contender> Contenders { get; } = [Objects, Contender.Pool];

    public override IReadOnlyList<Figure> Figures { get; } = [Figure.AtMost("ns", 2), new Figure("bytes", MoreIsBetter: false)];

    public override Task StartAsync() => _pool.ConnectAsync();

    public override Task<double[]> MeasureAsync(Contender contender, bool quick)
    {
        Action operation = contender == Objects ? GetAndReturn : LeaseAndReturn;
        var before = GC.GetTotalAllocatedBytes(precise: true);
        var since = Stopwatch.GetTimestamp();
        var workers = Enumerable.Range(0, threads).Select(_ => new Thread(() =>
        {
            for (var i = 0; i < Operations; i++)
            {
                operation();
            }
        })).ToList();
        workers.ForEach(static worker => worker.Start());
        workers.ForEach(static worker => worker.Join());
        var elapsed = Stopwatch.GetElapsedTime(since);
        return Task.FromResult<double[]>(
        [
            elapsed.TotalNanoseconds / Operations / threads,
            Math.Floor((GC.GetTotalAllocatedBytes(precise: true) - before) / ((double)Operations * threads)),
        ]);
    }

    public override async ValueTask DisposeAsync()
    {
        await base.DisposeAsync();
        await _pool.DisposeAsync();
    }

    private void GetAndReturn() => _objects.Return(_objects.Get());

    private void LeaseAndReturn()
    {
        _pool.TryAcquire(out var lease);
        lease!.Dispose();
    }

    private sealed class UnconnectedPolicy : IPooledObjectPolicy<GrpcChannel>
    {
        public GrpcChannel Create() => GrpcChannel.ForAddress("http://idle", new GrpcChannelOptions { HttpHandler = new NoHandler(), DisposeHttpClient = true });

        public bool Return(GrpcChannel obj) => true;
    }

    private sealed class NoHandler : HttpMessageHandler
    {
        protected override Task<HttpResponseMessage> SendAsync(HttpRequestMessage request, CancellationToken cancellationToken) => throw new NotSupportedException();
    }
}

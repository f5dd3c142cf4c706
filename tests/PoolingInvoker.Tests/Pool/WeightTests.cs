using System.Net;
using Microsoft.AspNetCore.Http.Features;
using Microsoft.Extensions.Primitives;
using Microsoft.Extensions.ServiceDiscovery;
using PoolingInvoker.Testing;

namespace PoolingInvoker.Tests.Pool;

/// <summary>Endpoints that have different shares of the calls, in virtual time.</summary>
public sealed class WeightTests(ITestOutputHelper output) : IDisposable
{
    private const int Calls = 10_000;

    private static readonly TimeSpan Second = TimeSpan.FromSeconds(1);

    private readonly RecordingTime _time = new(DateTimeOffset.UnixEpoch);
    private readonly List<ChannelPool> _pools = [];

    public void Dispose() => _pools.ForEach(static pool => pool.Dispose());

    [Theory]
    [InlineData(1, new[] { 1, 2 })]
    [InlineData(1, new[] { 1, 9 })]
    [InlineData(1, new[] { 5, 3, 2 })]
    [InlineData(1, new[] { 100, 1 })]
    [InlineData(1, new[] { 1, 1, 1, 1, 1, 1, 1, 2 })]
    [InlineData(12, new[] { 5, 3, 2 })]
    [InlineData(40, new[] { 7, 1 })]
    public async Task Weights_HoldWithinFivePercent_WithOneChannelEach_AndWithMany(int channels, int[] weights)
    {
        foreach (var atATime in (int[])[1, 20])
        {
            var pool = await NewPoolAsync(weights, options => options.MinPoolSize = channels);
            var had = Call(pool, Calls, atATime);
            output.WriteLine($"{atATime} at a time: {string.Join(' ', had)}");
            for (var i = 0; i < weights.Length; i++)
            {
                var share = Calls * weights[i] / (double)weights.Sum();
                Assert.InRange(had[i], 0.95 * share, 1.05 * share);
            }
        }
    }

    [Fact]
    public async Task Streams_HaveTheSameShares()
    {
        var pool = await NewPoolAsync([3, 1]);
        var had = Call(pool, 400, atATime: 8, isStream: true);
        Assert.InRange(had[0], 285, 315);
    }

    [Fact]
    public async Task AnEndpointThatIsUnwell_IsPassedOver_AndDoesNotCatchUp()
    {
        var pool = await NewPoolAsync([2, 1, 1]);
        Assert.Equal([200, 100, 100], Call(pool, 400));
        var unwell = pool.State.Active.Single(channel => Number(channel) == 0);
        Signal(pool, unwell, ChannelSignal.Silent);
        Assert.Equal([0, 500, 500], Call(pool, 1_000));
        Signal(pool, unwell, ChannelSignal.Life);
        var back = Call(pool, 400);
        Assert.InRange(back[0], 199, 201);
        Assert.InRange(back[1], 99, 101);
    }

    [Fact]
    public async Task ARetry_GoesToAnotherEndpoint_WhateverTheWeights()
    {
        var pool = await NewPoolAsync([1_000, 1]);
        var heavy = pool.State.Active.Single(channel => Number(channel) == 0);
        for (var i = 0; i < 10; i++)
        {
            using var retry = PoolInTime.Take(pool, avoid: heavy);
            Assert.NotSame(heavy, retry.Pooled);
        }
    }

    [Fact]
    public async Task Channels_AreByTheWeights_AndEachEndpointHasOne()
    {
        foreach (var (weights, channels, expected) in (IEnumerable<(int[], int, int[])>)
            [([9, 1], 2, [1, 1]), ([9, 1], 10, [9, 1]), ([2, 1], 9, [6, 3]), ([1, 1, 1], 9, [3, 3, 3]), ([1_000, 1, 1], 6, [4, 1, 1])])
        {
            var pool = await NewPoolAsync(weights, options => options.MinPoolSize = channels);
            Assert.Equal(expected, Enumerable.Range(0, weights.Length).Select(number => pool.State.Active.Count(channel => Number(channel) == number)));
            Assert.False(pool.Balancer!.Endpoints.IsUneven(channels));
        }
    }

    [Fact]
    public async Task ANewWeight_Counts_AndMovesChannels_ButIsNoNewEndpoint()
    {
        var pool = await NewPoolAsync([1, 1], static options => options.MinPoolSize = 8);
        Assert.False(pool.Balancer!.Endpoints.IsWeighted);
        pool.Balancer.EndpointsChanged(Endpoints([3, 1]));
        Assert.InRange(Call(pool, 1_000)[0], 740, 760);
        Advance(20 * Second);
        Assert.Equal(6, pool.State.Active.Count(channel => Number(channel) == 0));
        Assert.Equal(2, pool.GetStatistics().ChannelsReplaced);
        pool.Balancer.EndpointsChanged(Endpoints([1, 1]));
        Assert.False(pool.Balancer.Endpoints.IsWeighted);
        Advance(20 * Second);
        Assert.InRange(Call(pool, 1_000)[0], 400, 600);
    }

    [Fact]
    public async Task Keys_AreByTheWeights_AndStayWhereTheyCan()
    {
        var pool = await NewPoolAsync([3, 1, 1, 1], static options => options.TargetConcurrentCallsPerChannel = 1);
        var before = Places(pool);
        var had = before.CountBy(static place => place).ToDictionary();
        output.WriteLine(string.Join(", ", had));
        Assert.InRange(had[0], 0.95 * Calls / 2, 1.05 * Calls / 2);
        Assert.All(Enumerable.Range(1, 3), number => Assert.InRange(had[number], 0.85 * Calls / 6, 1.15 * Calls / 6));

        // One of them gets more: keys move to it, and none elsewhere.
        pool.Balancer!.EndpointsChanged(Endpoints([3, 2, 1, 1]));
        var after = Places(pool);
        Assert.All(before.Zip(after), static pair => Assert.True(pair.First == pair.Second || pair.Second == 1));
        Assert.InRange(after.Count(static place => place == 1), 0.9 * 2 * Calls / 7, 1.1 * 2 * Calls / 7);

        // Many at a time: the heavy one may have more of them than the mean, and calls seldom have to move.
        var moved = pool.GetStatistics().AffinityMoves;
        var leases = Enumerable.Range(0, 200).Select(number => PoolInTime.Take(pool, key: $"{number}")).ToList();
        output.WriteLine($"moved {pool.GetStatistics().AffinityMoves - moved} of {leases.Count}");
        Assert.InRange(pool.GetStatistics().AffinityMoves - moved, 0, 20);
        leases.ForEach(static lease => lease.Dispose());
    }

    [Fact]
    public async Task ServiceDiscovery_HandsWeightsThrough_AndANewOneAlone_IsANewList()
    {
        var (weight, changes) = (3, new CancellationTokenSource());
        var pool = New(new EndpointList([], new Uri("http://users"), _ => ValueTask.FromResult(Source(Volatile.Read(ref changes)))), options =>
            options.EndpointWeight = endpoint => endpoint.EndPoint is IPEndPoint { Address: var address } && address.GetAddressBytes()[3] == 1 ? weight : 1);
        await pool.ConnectAsync().Soon();
        await Waiting.Until(() => pool.State.Active.Count == 2);
        Assert.InRange(Call(pool, 400)[0], 299, 301);

        // What is out of range leaves the list as it is.
        foreach (var (next, expected) in ((int, int)[])[(0, 300), (1, 200), (7, 350)])
        {
            weight = next;
            _time.Advance(TimeSpan.FromMinutes(5));
            await Interlocked.Exchange(ref changes, new CancellationTokenSource()).CancelAsync();
            await Waiting.Until(() =>
            {
                _time.Advance(Second);
                return Call(pool, 400)[0] is var had && had >= expected - 25 && had <= expected + 25;
            });
        }

        static ServiceEndpointSource Source(CancellationTokenSource changes) =>
            new([.. Endpoints([1, 1]).Select(static endpoint => ServiceEndpoint.Create(endpoint.EndPoint))], new CancellationChangeToken(changes.Token), new FeatureCollection());
    }

    [Fact]
    public void ListsOfTexts_OfAddresses_AndOfBoth()
    {
        string[] texts = ["http://a", "http://b"];
        using var both = ChannelPool.ForAddresses([new ChannelAddress("http://a") { Weight = 2 }, "http://b"]);
        using var addresses = ChannelPool.ForAddresses(texts.Select(static text => new ChannelAddress(text) { Weight = 2 }));
        using var ofTexts = ChannelPool.ForAddresses(texts);
        using var listed = ChannelPool.ForAddresses(["http://a", "http://b"]);
        Assert.True(both.Balancer!.Endpoints.IsWeighted);
        Assert.All((ChannelPool[])[addresses, ofTexts, listed], static pool => Assert.False(pool.Balancer!.Endpoints.IsWeighted));
        Assert.Equal("The address 'http://a' has the weight 0. It must be from 1 to 1000000. (Parameter 'addresses')", Assert.Throws<ArgumentException>(
            () => ChannelPool.ForAddresses([new ChannelAddress("http://a") { Weight = 0 }])).Message);
        Assert.Throws<ArgumentNullException>(() => ChannelPool.ForAddresses((IEnumerable<ChannelAddress>)null!));
        Assert.Throws<ArgumentNullException>(() => ChannelPool.ForAddresses((IEnumerable<string>)null!));
        Assert.Throws<ArgumentNullException>(() => ChannelPool.ForAddresses([(string)null!]));
        Assert.Throws<ArgumentNullException>(() => ChannelPool.ForAddresses([(ChannelAddress)null!]));
    }

    private static IReadOnlyList<ChannelEndpoint> Endpoints(int[] weights) =>
        [.. weights.Select(static (weight, number) => new ChannelEndpoint(new IPEndPoint(new IPAddress([10, 0, 0, (byte)(number + 1)]), 5000)) { Weight = weight })];

    private static int Number(PooledChannel channel) => IPEndPoint.Parse(channel.Endpoint).Address.GetAddressBytes()[3] - 1;

    private static void Signal(ChannelPool pool, PooledChannel channel, ChannelSignal signal)
    {
        using var section = pool.State.Enter();
        channel.Signal(signal);
        pool.State.Active.Update(channel);
    }

    private void Advance(TimeSpan time)
    {
        for (; time > TimeSpan.Zero; time -= Second)
        {
            _time.Advance(Second);
        }
    }

    /// <summary>Makes calls, so many at a time, and says how many each endpoint had.</summary>
    private static int[] Call(ChannelPool pool, int count, int atATime = 1, bool isStream = false)
    {
        var had = new int[pool.State.Active.Max(Number) + 1];
        var calling = new Queue<ChannelLease>();
        for (var i = 0; i < count; i++)
        {
            var lease = PoolInTime.Take(pool, isStream);
            had[Number(lease.Pooled)]++;
            calling.Enqueue(lease);
            if (calling.Count == atATime)
            {
                calling.Dequeue().Return(LeaseOutcome.Answered);
            }
        }

        foreach (var lease in calling)
        {
            lease.Return(LeaseOutcome.Answered);
        }

        return had;
    }

    private static List<int> Places(ChannelPool pool) => [.. Enumerable.Range(0, Calls).Select(key =>
    {
        using var lease = PoolInTime.Take(pool, key: $"user-{key}");
        return Number(lease.Pooled);
    })];

    private async Task<ChannelPool> NewPoolAsync(int[] weights, Action<ChannelPoolOptions>? configure = null)
    {
        var pool = New(new EndpointList(Endpoints(weights), Name: null, Resolve: null), configure);
        await pool.ConnectAsync().Soon();
        PoolInTime.Answer(pool);
        return pool;
    }

    private ChannelPool New(EndpointList list, Action<ChannelPoolOptions>? configure = null)
    {
        var policy = new EndpointPolicy(_time);
        var options = new ChannelPoolOptions
        {
            TimeProvider = _time,
            Queue = InlineWork.Queue,
            PrimeCallback = policy.ConnectAsync,
            ProbeDelay = Timeout.InfiniteTimeSpan,
            PooledChannelLifetime = Timeout.InfiniteTimeSpan,
            TargetConcurrentCallsPerChannel = 100,
        };
        configure?.Invoke(options);
        var pool = new ChannelPool(policy, options.ValidatedCopy(), new Random(1), list);
        _pools.Add(pool);
        return pool;
    }
}

using System.Collections.Concurrent;
using System.Net;
using System.Runtime.CompilerServices;
using Grpc.Core;
using Microsoft.AspNetCore.Http.Features;
using Microsoft.Extensions.Primitives;
using Microsoft.Extensions.ServiceDiscovery;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.Tests.Pool;

/// <summary>A pool over several endpoints, in virtual time.</summary>
public sealed class EndpointPoolTests : IDisposable
{
    private static readonly ChannelEndpoint[] Servers = [.. Enumerable.Range(1, 200).Select(static number => new ChannelEndpoint(new IPEndPoint(new IPAddress([10, 0, 0, (byte)number]), 5000)))];
    private static readonly (ChannelEndpoint A, ChannelEndpoint B, ChannelEndpoint C) Three = (Servers[0], Servers[1], Servers[2]);
    private static readonly TimeSpan Second = TimeSpan.FromSeconds(1);

    private readonly RecordingTime _time = new(DateTimeOffset.UnixEpoch);
    private readonly EndpointPolicy _policy;
    private readonly List<ChannelPool> _pools = [];

    public EndpointPoolTests() => _policy = new EndpointPolicy(_time);

    public void Dispose() => _pools.ForEach(static pool => pool.Dispose());

    [Fact]
    public async Task AsThePoolGrows_ItsChannelsAreEven()
    {
        var pool = NewPool(Servers[..3], static options =>
        {
            options.MaxConcurrentCallsPerChannel = 1;
            options.MaxPoolSize = 20;
        });
        for (var calls = 1; calls <= 20; calls++)
        {
            await pool.AcquireAsync().Soon();
            var channels = ChannelsOf(pool);
            Assert.Equal(3, channels.Count);
            Assert.InRange(channels.Values.Max() - channels.Values.Min(), 0, 1);
        }

        Assert.Equal(20, pool.GetStatistics().Channels);
    }

    [Theory]
    [InlineData(1, 1, 100, 1)]
    [InlineData(3, 1, 100, 3)]
    [InlineData(3, 8, 100, 8)]
    [InlineData(10, 1, 4, 4)]
    [InlineData(50, 1, 100, 50)]
    [InlineData(200, 1, 100, PoolEndpoints.SubsetSize)]
    [InlineData(200, 60, 100, 60)]
    public async Task ThereAreAsManyChannelsAsEndpoints_UpToTheLimits(int servers, int min, int max, int expected)
    {
        var (connected, called) = (NewPool(Servers[..servers], Sizes), NewPool(Servers[..servers], Sizes));
        await connected.ConnectAsync().Soon();
        (await called.AcquireAsync().Soon()).Dispose();
        foreach (var pool in (ChannelPool[])[connected, called])
        {
            Assert.Equal(expected, ChannelsOf(pool).Values.Sum());
            Assert.Equal(Math.Min(expected, servers), ChannelsOf(pool).Count);
        }

        void Sizes(ChannelPoolOptions options) => (options.MinPoolSize, options.MaxPoolSize) = (min, max);
    }

    [Theory]
    [InlineData(2, 3)]
    [InlineData(3, 4)]
    [InlineData(3, 8)]
    [InlineData(5, 9)]
    public async Task CallsAreEven_AlsoWhereChannelsAreNot(int servers, int channels)
    {
        var pool = NewPool(Servers[..servers], options => options.MinPoolSize = channels);
        await pool.ConnectAsync().Soon();
        Assert.NotEqual(ChannelsOf(pool).Values.Min(), ChannelsOf(pool).Values.Max());

        var random = new Random(1);
        List<ChannelLease> leases = [];
        var picks = new Dictionary<ChannelEndpoint, int>();
        for (var call = 0; call < 5_000; call++)
        {
            if (leases.Count == 12 * servers)
            {
                var ended = random.Next(leases.Count);
                leases[ended].Dispose();
                leases.RemoveAt(ended);
            }

            leases.Add(await pool.AcquireAsync());
            var endpoint = EndpointOf(leases[^1]);
            picks[endpoint] = picks.GetValueOrDefault(endpoint) + 1;
            if (leases.Count == 12 * servers)
            {
                Assert.InRange(LeasesOf(pool).Values.Max(), 12, 18);
            }
        }

        Assert.Equal(servers, picks.Count);
        Assert.InRange(picks.Values.Max() / picks.Values.Average(), 1, 1.1);
    }

    [Theory]
    [InlineData(3, 4)]
    [InlineData(3, 12)]
    [InlineData(2, 12)]
    public async Task AnEndpointThatFallsSilent_DoesNotGetAllCallers(int servers, int channels)
    {
        // 48 callers, each with one call at a time. On one endpoint nothing ends, and nobody knows yet.
        const int Callers = 48;
        var pool = NewPool(Servers[..servers], options => options.MinPoolSize = channels);
        await pool.ConnectAsync().Soon();
        var silent = ChannelsOf(pool).MaxBy(static endpoint => endpoint.Value).Key;
        var calling = new Queue<ChannelLease>();
        for (var caller = 0; caller < Callers; caller++)
        {
            calling.Enqueue(await pool.AcquireAsync());
        }

        var stuck = 0;
        for (var call = 0; call < 50 * Callers && calling.TryDequeue(out var lease); call++)
        {
            if (EndpointOf(lease) == silent)
            {
                stuck++;
                continue;
            }

            lease.Dispose();
            calling.Enqueue(await pool.AcquireAsync());
        }

        Assert.InRange(stuck, Callers / servers / 2, (Callers / servers) + 10);
    }

    [Fact]
    public async Task ANewEndpoint_GetsItsShare_AFewChannelsAtATime()
    {
        var pool = NewPool(Servers[..2], static options => options.MinPoolSize = 6);
        var lease = await pool.AcquireAsync().Soon();
        Assert.Equal([3, 3], ChannelsOf(pool).Values);
        pool.Balancer!.EndpointsChanged(Servers[..3]);
        Assert.Equal(1, ChannelsOf(pool)[Three.C]);
        Advance(Second);
        Assert.Equal([2, 2, 2], ChannelsOf(pool).Values);
        Advance(10 * Second);
        Assert.Equal(2, pool.GetStatistics().ChannelsReplaced);
        Assert.Equal(6, pool.GetStatistics().Channels);
        Assert.False(StubPolicy.IsDisposed(lease.Channel));
    }

    [Fact]
    public async Task MoreEndpointsThanChannels_MakeMoreChannels()
    {
        var pool = NewPool(Servers[..2]);
        (await pool.AcquireAsync().Soon()).Dispose();
        pool.Balancer!.EndpointsChanged(Servers[..5]);
        Assert.Equal([1, 1, 1, 1, 1], ChannelsOf(pool).Values);
        Assert.Equal(0, pool.GetStatistics().ChannelsReplaced);
    }

    [Theory]
    [InlineData(1, true)]
    [InlineData(2, true)]
    [InlineData(3, true)] // the third goes to one that lives
    [InlineData(0, true)]
    [InlineData(1, false)]
    public async Task ConnectAsync_WhileAnEndpointIsDead_IsASuccess_IfTheMinimumIsThere(int min, bool othersLive)
    {
        foreach (var dead in othersLive ? Servers[..1] : Servers[..3])
        {
            _policy.Dead.Add(dead);
        }

        var failed = 0;
        var pool = NewPool(Servers[..3], options =>
        {
            options.MinPoolSize = min;
            options.OnEvent = told => failed += told.Kind == ChannelPoolEventKind.ConnectFailed ? 1 : 0;
        });
        if (othersLive)
        {
            await pool.ConnectAsync().Soon();
            Assert.InRange(pool.GetStatistics().Channels, Math.Max(2, min), 3);
        }
        else
        {
            await Assert.ThrowsAsync<HttpRequestException>(() => pool.ConnectAsync().Soon());
        }

        Assert.True(failed >= 1);
    }

    [Fact]
    public async Task ADialOfADeadEndpoint_IsNotTheFailureOfTheChannelThatWasToMoveThere()
    {
        _policy.Dead.Add(Three.B);
        var events = new ConcurrentQueue<ChannelPoolEvent>();
        var pool = NewPool(Servers[..2], options => (options.MinPoolSize, options.OnEvent) = (2, events.Enqueue));
        await pool.ConnectAsync().Soon();
        await Waiting.Until(() =>
        {
            Advance(Second);
            return events.Any(IsOfAChannel);
        });
        var failed = events.First(IsOfAChannel);
        Assert.Equal($"{Three.A}", failed.Endpoint);
        Assert.EndsWith($" to {Three.B}", failed.Message, StringComparison.Ordinal);
        Assert.Null(pool.GetChannels().Single(channel => channel.Id == failed.ChannelId).LastError);

        static bool IsOfAChannel(ChannelPoolEvent one) => one is { Kind: ChannelPoolEventKind.ConnectFailed, ChannelId: > 0 };
    }

    [Fact]
    public async Task APoolWithoutChannels_MakesNone_BecauseEndpointsChange()
    {
        var pool = NewPool(Servers[..2]);
        pool.Balancer!.EndpointsChanged(Servers[..5]);
        Advance(10 * Second);
        Assert.Empty(_policy.Dials);
        (await pool.AcquireAsync().Soon()).Dispose();
        Assert.Equal(5, _policy.Dials.Count);
    }

    [Fact]
    public async Task AVanishedEndpoint_Drains_WhenTheNewChannelIsThere()
    {
        var pool = NewPool(Servers[..3]);
        var leases = await AcquireAsync(pool, 30);
        var onGone = leases.FindAll(lease => EndpointOf(lease) == Three.A);
        var gone = onGone[0].Channel;
        var pooled = onGone[0].Pooled;
        var connected = new TaskCompletionSource();
        _policy.Connected = connected.Task;
        pool.Balancer!.EndpointsChanged([Three.B, Three.C]);

        // Until there is another one it takes calls.
        Assert.Equal(PooledChannelState.Refreshing, pooled.State);
        var meanwhile = await AcquireAsync(pool, 30);
        Assert.Contains(meanwhile, lease => lease.Channel == gone);
        connected.SetResult();
        await Waiting.Until(() => pooled.State == PooledChannelState.Draining);

        // Then it takes none, and those that it has run to their end.
        Assert.Equal([1, 2], ChannelsOf(pool).Values.Order());
        Assert.DoesNotContain(await AcquireAsync(pool, 100), lease => lease.Channel == gone);
        onGone.AddRange(meanwhile.FindAll(lease => lease.Channel == gone));
        foreach (var lease in onGone)
        {
            Assert.False(StubPolicy.IsDisposed(gone));
            lease.Dispose();
        }

        Assert.True(StubPolicy.IsDisposed(gone));
        Assert.DoesNotContain(Three.A, ChannelsOf(pool));
    }

    [Fact]
    public async Task AVanishedEndpoint_ThatCarriesNothing_ClosesAtOnce_AndOneThatIsBackIsUsed()
    {
        var pool = NewPool(Servers[..3]);
        await pool.ConnectAsync().Soon();
        pool.Balancer!.EndpointsChanged([Three.B, Three.C]);
        Assert.Equal([Three.B, Three.C], ChannelsOf(pool).Keys.OrderBy(static endpoint => endpoint.ToString()));
        Assert.Equal(2, pool.GetStatistics().Channels);
        Assert.DoesNotContain(await AcquireAsync(pool, 20), lease => EndpointOf(lease) == Three.A);

        pool.Balancer!.EndpointsChanged(Servers[..3]);
        Assert.Equal([1, 1, 1], ChannelsOf(pool).Values);
        Assert.Contains(await AcquireAsync(pool, 20), lease => EndpointOf(lease) == Three.A);
    }

    [Fact]
    public async Task AnEndpointThatIsBack_WhileItDrains_IsUsedAgain()
    {
        var pool = NewPool(Servers[..3]);
        var leases = await AcquireAsync(pool, 9);
        pool.Balancer!.EndpointsChanged([Three.B, Three.C]);
        Assert.Equal(1, pool.GetStatistics().DrainingChannels);
        pool.Balancer!.EndpointsChanged(Servers[..3]);
        Advance(3 * Second);
        Assert.Equal([1, 1, 1], ChannelsOf(pool).Values);
        leases.ForEach(static lease => lease.Dispose());
        Assert.Equal(0, pool.GetStatistics().DrainingChannels);
        Assert.Equal([1, 1, 1], ChannelsOf(pool).Values);
    }

    [Fact]
    public async Task AllEndpointsVanish_AndOthersTakeTheirPlace()
    {
        var pool = NewPool(Servers[..3]);
        var leases = await AcquireAsync(pool, 9);
        pool.Balancer!.EndpointsChanged(Servers[3..6]);
        Advance(5 * Second);
        Assert.Equal(Servers[3..6], ChannelsOf(pool).Keys.OrderBy(static endpoint => endpoint.ToString()));
        Assert.Equal(3, pool.GetStatistics().DrainingChannels);
        leases.ForEach(static lease => lease.Dispose());
        Assert.Equal(0, pool.GetStatistics().DrainingChannels);
    }

    [Fact]
    public async Task ADeadEndpoint_IsLeftOut_TriedAgainLaterAndLater_AndGetsItsShareWhenItIsBack()
    {
        var pool = NewPool(Servers[..3]);
        _policy.Dead.Add(Three.A);
        for (var second = 0; second < 300; second++)
        {
            var lease = await pool.AcquireAsync().Soon();
            Assert.NotEqual(Three.A, EndpointOf(lease));
            lease.Return(LeaseOutcome.Answered);
            Advance(Second);
            Assert.True(second < 2 || ChannelsOf(pool).Values.Sum() == 3);
        }

        // Each pause is up to a second longer: the channels are looked at once a second.
        var dials = _policy.Dials.Where(static dial => dial.Endpoint == Three.A).Select(static dial => dial.At).ToList();
        var pause = Second;
        foreach (var (dial, next) in dials.Zip(dials.Skip(1)))
        {
            Assert.InRange(next - dial, 0.8 * pause, (1.2 * pause) + (2 * Second));
            pause = pause * 1.6 < 30 * Second ? pause * 1.6 : 30 * Second;
        }

        Assert.InRange(dials.Count, 13, 18);
        _policy.Dead.Clear();
        Advance(38 * Second);
        Assert.Equal([1, 1, 1], ChannelsOf(pool).Values);
        Advance(60 * Second);
        Assert.Equal(0, _time.Armed - 1); // what is even is not looked at; the maintenance goes on
    }

    [Fact]
    public async Task WhereOneOfThreeCanBeReached_TheFirstCallGetsThatOne()
    {
        foreach (var alive in Servers[..3])
        {
            _policy.Dead.UnionWith(Servers[..3]);
            _policy.Dead.Remove(alive);
            Assert.Equal(alive, EndpointOf(await NewPool(Servers[..3]).AcquireAsync().Soon()));

            var resolver = new Resolver();
            var acquiring = NewPool(resolver).AcquireAsync();
            await Waiting.Until(() => resolver.Asked == 1);
            resolver.Give(Servers[..3]);
            Assert.Equal(alive, EndpointOf(await acquiring.Soon()));
        }
    }

    [Fact]
    public async Task AnEndpointThatDies_IsLeft_WhenItsCallsFail()
    {
        var pool = NewPool(Servers[..3]);
        await pool.ConnectAsync().Soon();
        _policy.Dead.Add(Three.A);
        var failed = 0;
        for (var call = 0; call < 300; call++)
        {
            var lease = await pool.AcquireAsync().Soon();
            var isDead = EndpointOf(lease) == Three.A;
            failed += isDead ? 1 : 0;
            lease.Return(isDead ? LeaseOutcome.ChannelFailed : LeaseOutcome.Answered);
            Advance(Second / 100);
        }

        Assert.InRange(failed, 1, 3);
        Assert.Equal(3, ChannelsOf(pool).Values.Sum());
        Assert.DoesNotContain(Three.A, ChannelsOf(pool));
        _policy.Dead.Clear();
        Advance(8 * Second);
        Assert.Equal([1, 1, 1], ChannelsOf(pool).Values);
        Assert.Contains(await AcquireAsync(pool, 10), lease => EndpointOf(lease) == Three.A);
    }

    [Fact]
    public async Task AllEndpointsAreDead_CallsAreNotKeptWaiting_AndTheFirstOneThatIsBackIsFound()
    {
        foreach (var back in Servers[..3])
        {
            var pool = NewPool(Servers[..3]);
            _policy.Dead.UnionWith(Servers[..3]);
            var before = _policy.Dials.Count;
            for (var call = 0; call < 3_000; call++)
            {
                await CallAsync(pool);
                Advance(Second / 10);
            }

            Assert.InRange(_policy.Dials.Count - before, 200, 1_500); // some two a second: one in place of the broken one, one more
            _policy.Dead.Remove(back);
            var since = _time.GetUtcNow();
            while (!await CallAsync(pool))
            {
                Advance(Second / 10);
                Assert.True(_time.GetUtcNow() - since < 10 * Second, $"{back} is back, and not found.");
            }

            // Those that are still dead are left out.
            for (var call = 0; call < 600; call++)
            {
                await CallAsync(pool);
                Advance(Second / 10);
            }

            Assert.Equal([back], ChannelsOf(pool).Keys);
            _policy.Dead.Clear();
            for (var call = 0; call < 400; call++)
            {
                Assert.True(await CallAsync(pool));
                Advance(Second / 10);
            }

            Assert.Equal([1, 1, 1], ChannelsOf(pool).Values);
            pool.Dispose();
        }

        async Task<bool> CallAsync(ChannelPool pool)
        {
            var lease = await pool.AcquireAsync().Soon();
            var works = !_policy.Dead.Contains(EndpointOf(lease));
            lease.Return(works ? LeaseOutcome.Answered : LeaseOutcome.CouldNotConnect);
            return works;
        }
    }

    [Fact]
    public async Task WhatIsOld_IsReplacedAtTheSameEndpoint()
    {
        var pool = NewPool(Servers[..3], static options =>
        {
            options.MinPoolSize = 7;
            options.PooledChannelLifetime = TimeSpan.FromMinutes(1);
        });
        await pool.ConnectAsync().Soon();
        var before = ChannelsOf(pool);
        for (var i = 0; i < 600; i++)
        {
            (await pool.AcquireAsync().Soon()).Dispose();
            Advance(Second);
            Assert.Equal(before, ChannelsOf(pool));
        }

        Assert.InRange(pool.GetStatistics().ChannelsReplaced, 50, 100);
    }

    [Fact]
    public async Task APoolThatShrinks_StaysEven()
    {
        var pool = NewPool(Servers[..3], static options =>
        {
            options.MaxConcurrentCallsPerChannel = 1;
            options.PooledChannelIdleTimeout = TimeSpan.FromMinutes(1);
        });
        var leases = await AcquireAsync(pool, 12);
        var kept = leases.FindAll(lease => EndpointOf(lease) == Three.A)[..3];
        leases.Except(kept).ToList().ForEach(static lease => lease.Dispose());
        for (var i = 0; i < 180; i++)
        {
            Advance(Second);
        }

        // Three carry calls, and are at one endpoint. As many as there are endpoints are even.
        Assert.Equal([1, 1, 1], ChannelsOf(pool).Values);
        kept.ForEach(static lease => lease.Dispose());
        Assert.Equal(3, pool.GetStatistics().Channels);
    }

    [Fact]
    public async Task WhatIsSetAside_LeavesNoEndpointOut()
    {
        for (var seed = 0; seed < 20; seed++)
        {
            var pool = NewPool(Servers[..3], static options => options.TargetConcurrentCallsPerChannel = 1, seed);
            var leases = await AcquireAsync(pool, 6);
            while (ChannelsOf(pool).Values.Sum() < 6)
            {
                pool.Growth.SampleLoad();
            }

            leases.ForEach(static lease => lease.Return(LeaseOutcome.Answered));
            for (var i = 0; i < 100; i++)
            {
                (await pool.AcquireAsync().Soon()).Return(LeaseOutcome.Answered);
                Advance(Second);
            }

            var picks = new Dictionary<ChannelEndpoint, int>();
            for (var i = 0; i < 300; i++)
            {
                var lease = await pool.AcquireAsync().Soon();
                picks[EndpointOf(lease)] = picks.GetValueOrDefault(EndpointOf(lease)) + 1;
                lease.Return(LeaseOutcome.Answered);
            }

            Assert.Equal(6, ChannelsOf(pool).Values.Sum());
            Assert.True(picks.Count == 3 && picks.Values.Max() < 150, $"seed {seed}: {string.Join(", ", picks.Values)} calls");
            pool.Dispose();
        }
    }

    [Fact]
    public async Task WithMoreEndpointsThanChannels_AVanishedOneIsReplaced_AndTheOthersStay()
    {
        var pool = NewPool(Servers[..150]);
        (await pool.AcquireAsync().Soon()).Dispose();
        var before = ChannelsOf(pool);
        Assert.Equal(PoolEndpoints.SubsetSize, before.Count);
        var gone = before.Keys.Take(4).ToList();
        pool.Balancer!.EndpointsChanged([.. Servers[..150].Except(gone)]);
        Advance(20 * Second);
        (await pool.AcquireAsync().Soon()).Dispose(); // what is missing is made when a call comes
        var after = ChannelsOf(pool);
        Assert.Equal(PoolEndpoints.SubsetSize, after.Count);
        Assert.Equal(4, before.Keys.Except(after.Keys).Count());
        Assert.Empty(after.Keys.Intersect(gone));
        Assert.All(after.Values, static channels => Assert.Equal(1, channels));
    }

    [Theory]
    [InlineData(typeof(InvalidOperationException))]
    [InlineData(typeof(TimeoutException))]
    [InlineData(typeof(OperationCanceledException))]
    [InlineData(typeof(ObjectDisposedException))]
    public async Task ResolutionFails_CallsFailAtOnceWithTheReason_UntilItWorks(Type type)
    {
        var resolver = new Resolver();
        var pool = NewPool(resolver);
        await using var invoker = new PoolingCallInvoker(pool, new PoolingCallInvokerOptions { Retry = { MaxRetryAttempts = 0 } });
        var user = new User.UserClient(invoker);
        List<Task<GetNameReply>> calls = [.. Enumerable.Range(0, 20).Select(_ => user.GetNameAsync(new GetNameRequest()).ResponseAsync)];
        await Waiting.Until(() => resolver.Asked == 1);
        Assert.All(calls, static call => Assert.False(call.IsCompleted));
        resolver.Fail((Exception)Activator.CreateInstance(type, "no such host: users")!);
        foreach (var call in calls)
        {
            await AssertNoSuchHostAsync(call);
        }

        // While the watcher waits nobody else does, and nothing is asked.
        await Waiting.Until(() => _time.Dues.Any(static due => due > 0.7 * Second && due < 1.3 * Second));
        for (var i = 0; i < 200; i++)
        {
            await AssertNoSuchHostAsync(user.GetNameAsync(new GetNameRequest()).ResponseAsync);
        }

        Assert.Equal(1, resolver.Asked);
        Advance(1.3 * Second);
        await Waiting.Until(() => resolver.Asked == 2);
        await AssertNoSuchHostAsync(user.GetNameAsync(new GetNameRequest()).ResponseAsync);
        resolver.Give(Servers[..3]);
        await Waiting.Until(() => TryAcquire(pool));
        await Waiting.Until(() => ChannelsOf(pool).Count == 3); // the first one served the caller
        Assert.Equal([1, 1, 1], ChannelsOf(pool).Values);

        static async Task AssertNoSuchHostAsync(Task call)
        {
            var exception = await Assert.ThrowsAsync<RpcException>(() => call.Soon());
            Assert.Equal(StatusCode.Unavailable, exception.StatusCode);
            Assert.Contains("no such host: users", exception.Status.Detail, StringComparison.Ordinal);
            Assert.InRange(exception.ToString().Length, 100, 20_000);
        }

        static bool TryAcquire(ChannelPool pool)
        {
            var acquiring = pool.AcquireAsync().AsTask();
            Assert.Equal(0, Task.WaitAny([acquiring], Waiting.Long));
            if (acquiring.IsCompletedSuccessfully)
            {
                acquiring.Result.Dispose();
            }

            return acquiring.IsCompletedSuccessfully;
        }
    }

    [Fact]
    public async Task ResolutionFailsLater_TheListStays()
    {
        var resolver = new Resolver();
        var pool = NewPool(resolver);
        var acquiring = pool.AcquireAsync();
        await Waiting.Until(() => resolver.Asked == 1);
        resolver.Give(Servers[..3]);
        (await acquiring.Soon()).Dispose();
        await Waiting.Until(() => ChannelsOf(pool).Count == 3);
        for (var asked = 2; asked < 5; asked++)
        {
            Advance(TimeSpan.FromMinutes(3));
            await Waiting.Until(() => resolver.Asked == asked || Passed(Second)); // it may have waited for the time by then, or not
            var dues = _time.Dues.Count;
            resolver.Fail(new IOException("no such host"));
            await Waiting.Until(() => _time.Dues.Count > dues);
            Assert.Equal([1, 1, 1], ChannelsOf(pool).Values);
            (await pool.AcquireAsync().Soon()).Dispose();
        }

        Advance(TimeSpan.FromMinutes(3));
        await Waiting.Until(() => resolver.Asked == 5 || Passed(Second));
        resolver.Give(Servers[1..4]);
        await Waiting.Until(() => ChannelsOf(pool).Keys.ToHashSet().SetEquals(Servers[1..4]) || Passed(Second));
    }

    [Fact]
    public async Task WhenConnectingFails_TheListIsAskedForAgain()
    {
        var resolver = new Resolver();
        var pool = NewPool(resolver);
        _policy.Dead.Add(Three.A);
        var acquiring = pool.AcquireAsync();
        await Waiting.Until(() => resolver.Asked == 1);
        resolver.Give(Servers[..2]);
        Assert.Equal(Three.B, EndpointOf(await acquiring.Soon()));
        await Waiting.Until(() => resolver.Asked == 2 || Passed(Second));
        resolver.Give(Servers[1..3]);
        await Waiting.Until(() => ChannelsOf(pool).ContainsKey(Three.C) || Passed(Second));
        Assert.True(_time.GetUtcNow() - DateTimeOffset.UnixEpoch < TimeSpan.FromMinutes(1));
    }

    [Fact]
    public async Task DisposeWhileItResolves_EndsWhoWaits()
    {
        foreach (var isAsync in (bool[])[false, true])
        {
            var resolver = new Resolver();
            var pool = NewPool(resolver);
            var acquiring = pool.AcquireAsync();
            var connecting = pool.ConnectAsync();
            await Waiting.Until(() => resolver.Asked == 1);
            var disposing = isAsync ? pool.DisposeAsync().AsTask() : Task.Run(pool.Dispose);
            await disposing.Soon();
            await Assert.ThrowsAsync<ObjectDisposedException>(() => acquiring.Soon());
            await Assert.ThrowsAsync<ObjectDisposedException>(() => connecting.Soon());
            await Waiting.Until(() => resolver.Token.IsCancellationRequested);
            resolver.Give(Servers[..3]);
            Assert.Throws<ObjectDisposedException>(() => pool.TryAcquire(out _));
            await Waiting.Until(() => pool.GetStatistics() is { Channels: 0, CallsWaiting: 0 });
            pool.Balancer!.EndpointsChanged(Servers[..3]);
            Assert.Empty(_policy.Dials);
            await Waiting.Until(() => _time.Armed == 0);
        }
    }

    [Theory]
    [InlineData(Stage.Fresh)]
    [InlineData(Stage.Resolving)]
    [InlineData(Stage.Even)]
    [InlineData(Stage.Uneven)]
    [InlineData(Stage.Failing)]
    public async Task AForgottenPool_IsCollected(Stage stage)
    {
        var resolver = new Resolver();
        var pool = await ForgetAsync(stage, resolver);
        await Waiting.Until(() =>
        {
            GC.Collect();
            GC.WaitForPendingFinalizers();
            return !pool.IsAlive;
        });
        resolver.Give(Servers[..5]);
        Advance(TimeSpan.FromMinutes(10));
    }

    public enum Stage
    {
        Fresh,
        Resolving,
        Even,
        Uneven,
        Failing,
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private async Task<WeakReference> ForgetAsync(Stage stage, Resolver resolver)
    {
        var pool = Make(new EndpointList(stage == Stage.Resolving ? [] : Servers[..3], new Uri("http://users"), resolver.ResolveAsync), static _ => { }, seed: 1);
        if (stage == Stage.Resolving)
        {
            using var patience = new CancellationTokenSource();
            var acquiring = pool.ConnectAsync(patience.Token);
            await Waiting.Until(() => resolver.Asked == 1);
            await patience.CancelAsync();
            await Assert.ThrowsAnyAsync<OperationCanceledException>(() => acquiring);
        }
        else if (stage != Stage.Fresh)
        {
            (await pool.AcquireAsync().Soon()).Dispose();
            if (stage == Stage.Uneven)
            {
                pool.Balancer!.EndpointsChanged([Three.A]);
                pool.Balancer!.EndpointsChanged(Servers[..3]);
            }
            else if (stage == Stage.Failing)
            {
                _policy.Dead.Add(Servers[4]);
                pool.Balancer!.EndpointsChanged(Servers[..5]);
                Assert.Contains(_policy.Dials, static dial => dial.Endpoint == Servers[4]);
            }
        }

        return new WeakReference(pool);
    }

    private ChannelPool NewPool(IReadOnlyList<ChannelEndpoint> known, Action<ChannelPoolOptions>? configure = null, int seed = 1) =>
        Keep(Make(new EndpointList(known, Name: null, Resolve: null), configure, seed));

    private ChannelPool NewPool(Resolver resolver) => Keep(Make(new EndpointList([], new Uri("http://users"), resolver.ResolveAsync), configure: null, seed: 1));

    private ChannelPool Keep(ChannelPool pool)
    {
        _pools.Add(pool);
        return pool;
    }

    private ChannelPool Make(EndpointList list, Action<ChannelPoolOptions>? configure, int seed)
    {
        var options = new ChannelPoolOptions { TimeProvider = _time, Queue = InlineWork.Queue, PrimeCallback = _policy.ConnectAsync, ProbeDelay = Timeout.InfiniteTimeSpan };
        configure?.Invoke(options);
        return new ChannelPool(_policy, options.ValidatedCopy(), new Random(seed), list);
    }

    private void Advance(TimeSpan by)
    {
        for (; by > Second; by -= Second)
        {
            _time.Advance(Second);
        }

        _time.Advance(by);
    }

    // For what is waited for: lets time pass, and what it sets off on the thread pool begin, and gives false.
    private bool Passed(TimeSpan by)
    {
        Advance(by);
        using var passed = new ManualResetEventSlim();
        for (var i = 0; i < 10; i++)
        {
            passed.Reset();
            ThreadPool.UnsafeQueueUserWorkItem(static passed => passed.Set(), passed, preferLocal: false);
            Assert.True(passed.Wait(Waiting.Long));
        }

        return false;
    }

    private ChannelEndpoint EndpointOf(ChannelLease lease) => _policy.EndpointOf(lease.Channel);

    /// <summary>How many channels there are at each endpoint, without those that drain.</summary>
    private static Dictionary<ChannelEndpoint, int> ChannelsOf(ChannelPool pool) => Sums(pool, static _ => 1);

    private static Dictionary<ChannelEndpoint, int> LeasesOf(ChannelPool pool) => Sums(pool, static channel => channel.CallsInFlight);

    private static Dictionary<ChannelEndpoint, int> Sums(ChannelPool pool, Func<PooledChannelSnapshot, int> number) => pool.GetChannels()
        .Where(static channel => channel.State is not (PooledChannelState.Draining or PooledChannelState.Closed))
        .GroupBy(static channel => Servers.First(server => server.ToString() == channel.Endpoint))
        .ToDictionary(static channels => channels.Key, channels => channels.Sum(number));

    private static async Task<List<ChannelLease>> AcquireAsync(ChannelPool pool, int count)
    {
        List<ChannelLease> leases = [];
        while (leases.Count < count)
        {
            leases.Add(await pool.AcquireAsync().Soon());
        }

        return leases;
    }


    /// <summary>What finds the endpoints, one resolution at a time, each of which ends when the test says how.</summary>
    private sealed class Resolver
    {
        private readonly ConcurrentQueue<TaskCompletionSource<ServiceEndpointSource>> _asked = new();

        public int Asked => _asked.Count;

        public CancellationToken Token { get; private set; }

        public ValueTask<ServiceEndpointSource> ResolveAsync(CancellationToken cancellationToken)
        {
            Token = cancellationToken;
            var result = new TaskCompletionSource<ServiceEndpointSource>(TaskCreationOptions.RunContinuationsAsynchronously);
            _asked.Enqueue(result);
            return new ValueTask<ServiceEndpointSource>(result.Task);
        }

        public void Fail(Exception why) => _asked.Last().TrySetException(why);

        public void Give(IEnumerable<ChannelEndpoint> endpoints)
        {
            if (_asked.LastOrDefault() is { } last)
            {
                last.TrySetResult(new ServiceEndpointSource([.. endpoints.Select(static endpoint => ServiceEndpoint.Create(endpoint.EndPoint))], new NeverTold(), new FeatureCollection()));
            }
        }

        private sealed class NeverTold : IChangeToken
        {
            public bool HasChanged => false;

            public bool ActiveChangeCallbacks => false;

            public IDisposable RegisterChangeCallback(Action<object?> callback, object? state) => throw new NotSupportedException();
        }
    }
}

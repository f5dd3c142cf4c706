using System.Collections.Concurrent;
using Grpc.Core;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;
using PoolingInvoker.Tests.Calls;

namespace PoolingInvoker.Tests.Pool;

/// <summary>The end of a pool.</summary>
public sealed class GoingTests : ScriptedCalls
{
    private readonly PoolInTime _in = new();

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public async Task WhoComesOrWaits_IsToldAtOnce(bool waits)
    {
        var pool = _in.New(static options => (options.MaxPoolSize, options.MaxConcurrentCallsPerChannel) = (1, 1));
        var held = PoolInTime.Take(pool);
        var line = PoolInTime.Come(pool, 20);
        var disposing = Task.CompletedTask;
        if (waits)
        {
            disposing = pool.DisposeAsync().AsTask();
        }
        else
        {
            pool.Dispose();
        }

        line.Add(pool.AcquireAsync().AsTask());
        line.AddRange(PoolInTime.Come(pool, 1));
        foreach (var one in line)
        {
            Assert.Equal(typeof(ChannelPool).FullName, (await Assert.ThrowsAsync<ObjectDisposedException>(() => one.Soon())).ObjectName);
        }

        Assert.Throws<ObjectDisposedException>(() => pool.TryAcquire(out _));
        Assert.Throws<ObjectDisposedException>(pool.Get);
        await Assert.ThrowsAsync<ObjectDisposedException>(() => pool.ConnectAsync().Soon());
        Assert.Equal(0, pool.GetStatistics().CallsWaiting);
        held.Dispose();
        await disposing.Soon();
        Assert.Equal((0, 0), (pool.GetStatistics().CallsInFlight, _in.Open));
    }

    [Fact]
    public async Task WhoWaitsForAChannelThatIsBeingConnected_IsToldAtOnce()
    {
        var pool = _in.New(options => options.PrimeCallback = _in.PrimeByHand);
        var line = PoolInTime.Come(pool, 3);
        var disposing = pool.DisposeAsync().AsTask();
        await Task.WhenAll(line.Select(static one => Assert.ThrowsAsync<ObjectDisposedException>(() => one.Soon())));
        await disposing.Soon();
        Assert.Equal(0, _in.Open);
    }

    [Fact]
    public async Task CallsThatRun_MayEnd_UpToDrainTimeout()
    {
        var ends = new TaskCompletionSource();
        Server.ThenReplyAfter(ends.Task, new GetNameReply { Name = "a" }).ThenHang();
        var (client, pool) = NewClient(static options => options.Pool.DrainTimeout = TimeSpan.FromSeconds(10));
        var first = client.GetNameAsync(new GetNameRequest()).ResponseAsync;
        await Waiting.Until(() => Server.Sent is [{ IsComplete: true }]);
        var second = client.GetNameAsync(new GetNameRequest()).ResponseAsync;
        await Waiting.Until(() => Server.Requests.Count == 2);
        var disposing = pool.DisposeAsync().AsTask();
        Assert.Throws<ObjectDisposedException>(() => client.GetNameAsync(new GetNameRequest()));

        Time.Advance(TimeSpan.FromSeconds(5));
        ends.SetResult();
        Assert.Equal("a", (await first.Soon()).Name);
        Time.Advance(TimeSpan.FromSeconds(4.9));
        Assert.False(second.IsCompleted);
        Assert.False(disposing.IsCompleted);
        Time.Advance(TimeSpan.FromSeconds(0.1));
        await disposing.Soon();
        Assert.Equal(StatusCode.Cancelled, (await Assert.ThrowsAsync<RpcException>(() => second.Soon())).StatusCode);
        Assert.Equal(0, pool.GetStatistics().Retries);
    }

    [Fact]
    public async Task ItMayBeDisposedAgainAndAgain_AndEachWaits()
    {
        var pool = _in.New(static options => options.DrainTimeout = Timeout.InfiniteTimeSpan);
        var held = PoolInTime.Take(pool);
        var disposing = Enumerable.Range(0, 5).Select(_ => pool.DisposeAsync().AsTask()).ToList();
        Assert.All(disposing, static one => Assert.False(one.IsCompleted));
        held.Dispose();
        await Task.WhenAll(disposing).Soon();
        pool.Dispose();
        await pool.DisposeAsync().AsTask().Soon();
        Assert.Single(_in.Events, static told => told.Kind == ChannelPoolEventKind.Closed);
    }

    [Fact]
    public async Task Dispose_EndsADisposeAsyncThatWaits()
    {
        var pool = _in.New(static options => options.DrainTimeout = Timeout.InfiniteTimeSpan);
        var held = PoolInTime.Take(pool);
        var disposing = pool.DisposeAsync().AsTask();
        pool.Dispose();
        await disposing.Soon();
        held.Dispose();
        Assert.Equal((0, 0), (pool.GetStatistics().CallsInFlight, _in.Open));
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public async Task WhatAPrimingCallThrowsWhenItIsCancelled_DoesNotKeepThePoolOpen(bool waits)
    {
        var pool = _in.New(options =>
        {
            options.MinPoolSize = 2;
            options.PrimeCallback = (invoker, token) =>
            {
                token.Register(static () => throw new FormatException("of the user's"));
                return _in.PrimeByHand(invoker, token);
            };
        });
        var line = PoolInTime.Come(pool, 1);
        _in.Primes[0].Ends.SetResult();
        (await PoolInTime.ServedAsync(pool, line))[0].Dispose();
        if (waits)
        {
            await pool.DisposeAsync().AsTask().Soon();
        }
        else
        {
            pool.Dispose();
        }

        await Waiting.Until(() => _in.Open == 0);
    }

    [Fact]
    public async Task ADispose_RacesWithAllThatAPoolDoes()
    {
        for (var i = 0; i < 100; i++)
        {
            var policy = new StubPolicy();
            var unexpected = new ConcurrentQueue<Exception>();
            var pool = new ChannelPool(policy, new ChannelPoolOptions
            {
                MinPoolSize = 2,
                MaxPoolSize = 4,
                MaxConcurrentCallsPerChannel = 2,
                PrimeCallback = static async (_, _) => await Task.Yield(),
            });
            policy.OnReturn = _ => Random.Shared.Next(10) > 0;
            Func<Task>[] what =
            [
                () =>
                {
                    pool.Return(pool.Get());
                    return Task.CompletedTask;
                },
                async () => (await pool.AcquireAsync()).Dispose(),
                () =>
                {
                    pool.TryAcquire(out var lease);
                    lease?.Dispose();
                    return Task.CompletedTask;
                },
                () => pool.ConnectAsync(),
            ];
            var started = new CountdownEvent(what.Length);
            var running = what.Select(one => Task.Run(async () =>
            {
                started.Signal();
                try
                {
                    while (true)
                    {
                        await one();
                    }
                }
                catch (ObjectDisposedException)
                {
                    // The end.
                }
                catch (Exception exception)
                {
                    unexpected.Enqueue(exception);
                }
            })).ToList();
            Assert.True(started.Wait(Waiting.Long));
            Thread.SpinWait(i * 200);
            if (i % 2 == 0)
            {
                pool.Dispose();
            }

            await pool.DisposeAsync().AsTask().Soon();
            await Task.WhenAll(running).Soon();
            Assert.Empty(unexpected);
            await Waiting.Until(() => policy.Created.All(StubPolicy.IsDisposed));
            var statistics = pool.GetStatistics();
            Assert.Equal((0, 0, 0), (statistics.Channels, statistics.DrainingChannels, statistics.CallsWaiting));
            Assert.Empty(pool.GetChannels());
        }
    }
}

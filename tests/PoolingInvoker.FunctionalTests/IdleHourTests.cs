using System.Collections.Concurrent;
using Grpc.Core;
using Microsoft.Extensions.Time.Testing;
using PoolingInvoker.Demo.Servers;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.FunctionalTests;

/// <summary>A pool that was idle for an hour, while what lies between it and the server has forgotten its connections.</summary>
public sealed class IdleHourTests
{
    private const int Calls = 100;

    [Theory]
    [InlineData(1, false)]
    [InlineData(5, false)]
    [InlineData(1, true)]
    [InlineData(5, true)]
    public async Task AfterAnIdleHour_NoCallFailsOnADeadConnection(int min, bool primes)
    {
        await using var server = await UserServer.StartAsync("one");
        await using var relay = new FreezingRelay(server.Address, backlog: 128);
        var time = new FakeTimeProvider(TimeProvider.System.GetUtcNow());
        var primed = new ConcurrentDictionary<object, bool>(ReferenceEqualityComparer.Instance);
        using var invoker = PoolingCallInvoker.ForAddress(relay.Address, new PoolingCallInvokerOptions
        {
            Pool =
            {
                MinPoolSize = min,
                MaxConcurrentCallsPerChannel = 10,
                PrimeCallback = primes ? PrimeCallback : null,
                TimeProvider = time,
            },
        });
        var pool = invoker.Pool;
        await invoker.ConnectAsync().Soon();
        await CallAsync(invoker);
        await Waiting.Until(() => pool.GetChannels().All(static channel => channel is { State: PooledChannelState.Active, CallsInFlight: 0 }));

        var before = relay.Connections;
        Assert.InRange(before, min, int.MaxValue);
        relay.Freeze();
        for (var passed = TimeSpan.Zero; passed < TimeSpan.FromHours(1); passed += TimeSpan.FromSeconds(30))
        {
            time.Advance(TimeSpan.FromSeconds(30));
            await Waiting.Until(() => pool.GetChannels().All(static channel => channel.State == PooledChannelState.Active));
        }

        Assert.Equal(min, pool.GetStatistics().Channels);
        if (primes)
        {
            AssertPrimed();
        }
        else
        {
            Assert.Equal(before, relay.Connections); // nothing is connected for nobody
        }

        await CallAsync(invoker);
        Assert.Equal((0L, 0L), (pool.GetStatistics().Retries, pool.GetStatistics().ChannelsGivenUp));
        if (primes)
        {
            AssertPrimed();
        }

        async Task PrimeCallback(CallInvoker channel, CancellationToken cancellationToken)
        {
            await new User.UserClient(channel).GetNameAsync(new GetNameRequest(), cancellationToken: cancellationToken);
            Assert.True(primed.TryAdd(channel, true), "A channel was primed twice.");
        }

        void AssertPrimed()
        {
            List<ChannelLease> leases = [];
            while (leases.Count < 50 && pool.TryAcquire(out var lease))
            {
                leases.Add(lease);
            }

            Assert.NotEmpty(leases);
            Assert.All(leases, lease => Assert.True(primed.ContainsKey(lease.CallInvoker), "A channel takes calls that was not primed."));
            leases.ForEach(static lease => lease.Dispose());
        }
    }

    private static async Task CallAsync(PoolingCallInvoker invoker)
    {
        var client = new User.UserClient(invoker);
        await Task.WhenAll(Enumerable.Range(0, Calls).SelectMany(id => new Task[]
        {
            client.GetNameAsync(new GetNameRequest { Id = id }).ResponseAsync,
            client.RenameAsync(new RenameRequest { RequestId = $"{id}" }).ResponseAsync,
        })).Soon();
    }
}

using System.Collections.Concurrent;
using System.Net;
using System.Net.Sockets;
using PoolingInvoker.Testing;

namespace PoolingInvoker.Tests.Pool;

/// <summary>Endpoints of several priorities, where something is scarce or comes at a bad moment.</summary>
public sealed class PriorityFaultTests(ITestOutputHelper output) : PriorityPools
{
    [Fact]
    public async Task TheLastOnesKeepTheirChannels_UntilTheFirstHasSome()
    {
        var pool = await NewPoolAsync([1, 2]);
        Lose(pool, [(0, 1)]);
        Advance(5 * Second);
        Assert.Equal([0, 100], Call(pool, 100));
        Policy.Connected = new TaskCompletionSource().Task;
        var next = Endpoints([2, 2], weights: null);
        pool.Balancer!.EndpointsChanged(next.GetRange(1, 3));
        Advance(Second);
        Assert.Equal([0, 100], Call(pool, 100));
        Policy.Connected = Task.CompletedTask;
    }

    // Calls would spend their attempts on channels that are known to be broken, while one to the next is being connected.
    [Theory]
    [InlineData(2)]
    [InlineData(4)]
    [InlineData(8)]
    public async Task WhileTheNextIsBeingConnected_NobodyGetsALostChannel(int channels)
    {
        var pool = await NewPoolAsync([2, 2], options => options.MinPoolSize = channels);
        Assert.Equal((channels, 0), (ChannelsTo(pool, 0), ChannelsTo(pool, 1)));
        var (refused, connecting) = (new TaskCompletionSource(), new TaskCompletionSource());
        (Policy.Refused, Policy.Connected) = (refused.Task, connecting.Task);
        Lose(pool, [(0, 1), (0, 2)]);
        refused.SetResult();
        var waiting = PoolInTime.Come(pool, 10);
        Assert.All(waiting, static one => Assert.False(one.IsCompleted));
        Advance(3 * Second);
        Assert.All(waiting, static one => Assert.False(one.IsCompleted));
        connecting.SetResult();
        var served = await Task.WhenAll(waiting).Soon();
        Assert.All(served, static lease => Assert.Equal(1, PriorityOf(lease.Pooled)));
        Array.ForEach(served, static lease => lease.Return(LeaseOutcome.Answered));
        Assert.Equal(0, ChannelsTo(pool, 0));
    }

    [Fact]
    public async Task ThoseThatStandBy_LeaveRoomForTheFirst()
    {
        var pool = await NewPoolAsync([2, 3], static options => (options.MinPoolSize, options.MaxPoolSize, options.StandbyPoolSize) = (3, 5, 10));
        Advance(5 * Second);
        Assert.Equal((3, 2), (ChannelsTo(pool, 0), ChannelsTo(pool, 1)));
        var all = Endpoints([4, 3], weights: null);
        pool.Balancer!.EndpointsChanged(all);
        Advance(5 * Second);
        Assert.Equal(4, pool.State.Active.Where(static channel => PriorityOf(channel) == 0).DistinctBy(PlaceOf).Count());
        Assert.Equal(1, ChannelsTo(pool, 1));
        Assert.Equal([100, 0], Call(pool, 100));
        Advance(20 * Second);
        var dials = Time.Dues.Count;
        Advance(60 * Second);
        Assert.InRange(Time.Dues.Count - dials, 0, 5);
    }

    [Fact]
    public async Task ThoseThatStandBy_AreTheFirstToGo()
    {
        var pool = await NewPoolAsync([4, 2], static options => (options.MaxPoolSize, options.StandbyPoolSize) = (6, 2));
        Advance(3 * Second);
        Assert.Equal((4, 2), (ChannelsTo(pool, 0), ChannelsTo(pool, 1)));
        pool.UpdateOptions(new ChannelPoolOptions { MaxPoolSize = 4, StandbyPoolSize = 2 });
        Assert.Equal((4, 0), (ChannelsTo(pool, 0), ChannelsTo(pool, 1)));
        Advance(3 * Second);
        Assert.Equal((4, 0), (ChannelsTo(pool, 0), ChannelsTo(pool, 1)));
    }

    [Fact]
    public async Task ARefresh_LeavesEachPriorityItsChannels()
    {
        var pool = await NewPoolAsync([2, 3], static options => (options.MinPoolSize, options.MaxPoolSize, options.StandbyPoolSize) = (6, 8, 10));
        Advance(5 * Second);
        var before = (ChannelsTo(pool, 0), ChannelsTo(pool, 1));
        output.WriteLine($"{before}");
        await pool.RefreshAsync().Soon();
        Assert.Equal(before, (ChannelsTo(pool, 0), ChannelsTo(pool, 1)));
    }

    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    public async Task APoolThatIsFull_WaitsForTheDelayToo(int size)
    {
        var pool = await NewPoolAsync([size, 2], options => options.MaxPoolSize = size);
        Lose(pool, Enumerable.Range(1, size).Select(static number => (0, number)));
        Advance(5 * Second);
        Assert.Equal([0, 100], Call(pool, 100));
        Policy.Dead.Clear();
        List<int> back = [];
        for (var i = 0; i < 40; i++)
        {
            back.Add(Call(pool, 100)[0]);
            Advance(Second);
        }

        output.WriteLine(string.Join(' ', back));
        output.WriteLine($"{string.Join(", ", Policy.Dials.Select(static dial => $"{dial.Endpoint} at {dial.At:ss}"))}");
        Assert.All(back.Take(10), static calls => Assert.Equal(0, calls));
        Assert.Equal(100, back[^1]);
    }

    [Theory]
    [InlineData(200, 100)]
    [InlineData(200, 10)]
    [InlineData(30, 10)]
    public async Task OfMoreThanAreUsed_ThoseThatAreUsedCount(int endpoints, int size)
    {
        var pool = await NewPoolAsync([endpoints, 5], options => options.MaxPoolSize = size);
        output.WriteLine($"{ChannelsTo(pool, 0)}");
        Lose(pool, Enumerable.Range(1, endpoints).Select(static number => (0, number)));
        var waiting = PoolInTime.Come(pool, 20);
        var took = PassUntil(() => waiting.TrueForAll(static one => one.IsCompleted && PriorityOf(one.Result.Pooled) == 1));
        output.WriteLine($"{took}, {Policy.Dials.Count} dials");
        waiting.ForEach(static one => one.Result.Return(LeaseOutcome.Answered));
        Assert.InRange(took, TimeSpan.Zero, Second);
        Policy.Dead.Clear();
        Advance(90 * Second);
        Assert.Equal([100, 0], Call(pool, 100));
        Advance(60 * Second);
        Assert.Equal(0, ChannelsTo(pool, 1));
    }

    // Their connections stand, and no server says anything on them: nobody waits until these have failed.
    [Theory]
    [InlineData(1, 1)]
    [InlineData(2, 2)]
    [InlineData(3, 100)]
    [InlineData(8, 5)]
    public async Task WhereTheFirstSaysNothing_AColdPoolGoesToTheNext(int silent, int size)
    {
        List<TcpListener> listeners = [.. Enumerable.Range(0, silent + 1).Select(static _ => new TcpListener(IPAddress.Loopback, 0))];
        listeners.ForEach(static listener => listener.Start());
        var serving = AnswerAsync(listeners[^1]);
        var events = new ConcurrentQueue<ChannelPoolEvent>();
        await using (var pool = ChannelPool.ForAddresses(
            listeners.Select((listener, number) => new ChannelAddress($"http://{listener.LocalEndpoint}") { Priority = number < silent ? 0 : 1 }),
            new ChannelPoolOptions { MaxPoolSize = size, OnEvent = events.Enqueue }))
        {
            using var lease = await pool.AcquireAsync().Soon();
            Assert.Equal(1, pool.GetChannels().Single(static one => one.CallsInFlight > 0).Priority);
            await Waiting.Until(() => events.Any(static one => one.Kind == ChannelPoolEventKind.Created)); // it is told after what came before it
            Assert.DoesNotContain(
                events.TakeWhile(static one => one.Kind != ChannelPoolEventKind.Created),
                static one => one.Exception?.Message.Contains("within 5 s", StringComparison.Ordinal) == true);
        }

        listeners.ForEach(static listener => listener.Dispose());
        await serving;
    }

    [Fact]
    public async Task WhereTheFirstRefuses_TheWarmUpWaitsForTheNext()
    {
        using var first = NewRefusing();
        using var second = NewRefusing();
        List<TcpListener> listeners = [.. Enumerable.Range(0, 1).Select(static _ => new TcpListener(IPAddress.Loopback, 0))];
        listeners[0].Start();
        var addresses = new[] { first.LocalEndPoint, second.LocalEndPoint, listeners[0].LocalEndpoint }
            .Select(static (endPoint, number) => new ChannelAddress($"http://{endPoint}") { Priority = number / 2 }).ToList();
        var refused = 0;
        var bothRefused = new TaskCompletionSource();
        var options = new ChannelPoolOptions
        {
            OnEvent = one => _ = one.Kind == ChannelPoolEventKind.ConnectFailed && Interlocked.Increment(ref refused) == 2 && bothRefused.TrySetResult(),
        };
        var serving = listeners.ConvertAll(listener => AnswerAsync(listener, after: bothRefused));
        await using (var pool = ChannelPool.ForAddresses(addresses, options))
        {
            await pool.ConnectAsync().Soon();
            var joined = pool.GetChannels().Where(static one => one.State == PooledChannelState.Active).ToList(); // the first is dialled again, and fails again
            Assert.NotEmpty(joined);
            Assert.All(joined, static one => Assert.Equal(1, one.Priority)); // there may be one for each failure
        }

        listeners[0].Dispose();
        await Task.WhenAll(serving);
    }

    [Fact]
    public async Task WhereTheNextCarriesAPart_KeysStayInTheirPriority()
    {
        var pool = await NewPoolAsync([4, 4], static options => options.TargetConcurrentCallsPerChannel = 1);
        Lose(pool, [(0, 1), (0, 2), (0, 3)]);
        Advance(3 * Second);
        var leases = Enumerable.Range(0, 1_000).Select(key => PoolInTime.Take(pool, key: $"user-{key}")).ToList();
        var first = leases.Count(static lease => PriorityOf(lease.Pooled) == 0);
        leases.ForEach(static lease => lease.Return(LeaseOutcome.Answered));
        output.WriteLine($"{first}: {pool.GetStatistics()}");
        Assert.InRange(first, 300, 400);
    }

    [Fact]
    public async Task ABusyKey_GoesToAnotherOfItsPriority()
    {
        var pool = await NewPoolAsync([2, 2], static options => (options.StandbyPoolSize, options.TargetConcurrentCallsPerChannel) = (3, 1));
        Advance(3 * Second);
        var leases = Enumerable.Range(0, 50).Select(_ => PoolInTime.Take(pool, key: "hot")).ToList();
        Assert.All(leases, static lease => Assert.Equal(0, PriorityOf(lease.Pooled)));
        leases.ForEach(static lease => lease.Return(LeaseOutcome.Answered));
    }

    [Fact]
    public async Task APoolWhoseFirstIsFull_MakesNoChannelToTheNext()
    {
        var pool = await NewPoolAsync([2, 2], static options => (options.MaxConcurrentCallsPerChannel, options.MaxPoolSize) = (1, 4));
        var coming = PoolInTime.Come(pool, 10);
        Advance(3 * Second);
        Assert.Equal((4, 0), (ChannelsTo(pool, 0), ChannelsTo(pool, 1)));
        while (coming.Count > 0)
        {
            foreach (var lease in await PoolInTime.ServedAsync(pool, coming))
            {
                Assert.Equal(0, PriorityOf(lease.Pooled));
                coming.RemoveAll(one => one.IsCompleted && one.Result == lease);
                lease.Return(LeaseOutcome.Answered);
            }
        }
    }

    [Fact]
    public async Task ThoseThatStandBy_StayConnected()
    {
        List<TcpListener> listeners = [.. Enumerable.Range(0, 2).Select(static _ => new TcpListener(IPAddress.Loopback, 0))];
        listeners.ForEach(static listener => listener.Start());
        var clients = new ConcurrentBag<TcpClient>();
        var serving = listeners.ConvertAll(listener => AnswerAsync(listener, listener == listeners[1] ? clients : null));
        await using (var pool = ChannelPool.ForAddresses(
            listeners.Select(static (listener, number) => new ChannelAddress($"http://{listener.LocalEndpoint}") { Priority = number }),
            new ChannelPoolOptions { StandbyPoolSize = 1, PooledChannelIdleTimeout = TimeSpan.FromMilliseconds(200) }))
        {
            await pool.ConnectAsync().Soon();
            var first = 0;
            await Waiting.Until(() => (first = pool.GetChannels().FirstOrDefault(static one => one.Priority == 1).Id) > 0);
            await Waiting.Until(() => pool.GetChannels().Any(one => one.Id > first && one is { Priority: 1, ConnectivityState: Grpc.Core.ConnectivityState.Ready }));

            // No other one is renewed any more.
            pool.UpdateOptions(new ChannelPoolOptions { StandbyPoolSize = 1 });
            await Waiting.Until(() => pool.State is { Replacing: 0, Creating: 0 });
            var last = pool.GetChannels().Max(static one => one.Id);
            clients.ToList().ForEach(static client => client.Dispose());
            await Waiting.Until(() =>
            {
                CallOnce(pool);
                return pool.GetChannels().Any(one => one.Id > last && one is { Priority: 1, ConnectivityState: Grpc.Core.ConnectivityState.Ready });
            });
        }

        listeners.ForEach(static listener => listener.Dispose());
        await Task.WhenAll(serving);
    }

    [Fact]
    public async Task WhereNoneCanStandBy_TheFirstGetsNoMore()
    {
        var pool = New(new EndpointList(Endpoints([2, 2], weights: null), Name: null, Resolve: null), static options => options.StandbyPoolSize = 2);
        Policy.Dead.UnionWith(Endpoints([0, 2], weights: null));
        await pool.ConnectAsync().Soon();
        for (var i = 0; i < 120; i++)
        {
            Advance(Second);
            Assert.Equal([10, 0], Call(pool, 10));
        }

        output.WriteLine($"{Policy.Dials.Count} dials");
        Assert.Equal((2, 0), (ChannelsTo(pool, 0), ChannelsTo(pool, 1)));
        Policy.Dead.Clear();
        Advance(60 * Second);
        Assert.Equal((2, 2), (ChannelsTo(pool, 0), ChannelsTo(pool, 1)));

        // The same where they are lost again.
        Lose(pool, [(1, 1), (1, 2)]);
        for (var i = 0; i < 120; i++)
        {
            Advance(Second);
            Assert.Equal([10, 0], Call(pool, 10));
        }

        output.WriteLine($"{Policy.Dials.Count} dials; {ChannelsTo(pool, 1)}");
        Assert.Equal(2, ChannelsTo(pool, 0));
    }

    [Fact]
    public async Task StreamsThatStayWithTheNext_LeaveAPlace()
    {
        var pool = await NewPoolAsync([2, 2], static options => options.MaxPoolSize = 4);
        Lose(pool, [(0, 1), (0, 2)]);
        Advance(5 * Second);
        var streams = Enumerable.Range(0, 100).Select(_ => PoolInTime.Take(pool, isStream: true)).ToList();
        Assert.All(streams, static stream => Assert.Equal(1, PriorityOf(stream.Pooled)));
        Policy.Dead.Clear();
        Advance(90 * Second);
        Assert.InRange(pool.State.Count, 2, 3); // there is a place when the first needs one
        streams.ForEach(static stream => stream.Return(LeaseOutcome.Answered));
        Assert.Equal([100, 0], Call(pool, 100));
    }

    [Fact]
    public async Task APoolThatIsFull_RestsWhereThereAreMoreEndpoints()
    {
        var pool = await NewPoolAsync([5, 2], static options => options.MaxPoolSize = 3);
        for (var i = 0; i < 5; i++)
        {
            var endpoints = Endpoints([9, 2], weights: null);
            endpoints.RemoveRange(i, 4);
            pool.Balancer!.EndpointsChanged(endpoints);
            Advance(20 * Second);
            var set = Time.Dues.Count;
            Advance(60 * Second);
            Assert.Equal(set, Time.Dues.Count);
            Assert.Equal([100, 0], Call(pool, 100));
            Advance(5 * Second);
        }
    }

    // Whatever changes while calls run: what is counted is so, the laws hold (the pool checks them), and nobody waits for ever.
    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(3)]
    [InlineData(4)]
    [InlineData(5)]
    [InlineData(6)]
    public async Task WhateverChanges_TheCountsHold(int seed)
    {
        var random = new Random(seed);
        int[]? weights = seed % 2 == 0 ? [3, 1, 1, 2] : null;
        var pool = await NewPoolAsync([4, 3, 2], options => (options.StandbyPoolSize, options.MaxPoolSize) = (random.Next(4), random.Next(1, 12)), weights);
        var all = Endpoints([4, 3, 2], weights);
        var waiting = new List<Task<ChannelLease>>();
        for (var step = 0; step < 400; step++)
        {
            switch (random.Next(8))
            {
                case 0:
                    var lost = all[random.Next(all.Count)];
                    Lose(pool, [(PriorityOf(lost), NumberOf(lost))]);
                    break;
                case 1:
                    Policy.Dead.Remove(all[random.Next(all.Count)]);
                    break;
                case 2:
                    pool.Balancer!.EndpointsChanged([.. all.Where(_ => random.Next(4) > 0).DefaultIfEmpty(all[0])
                        .Select(endpoint => random.Next(4) > 0 ? endpoint : endpoint with { Priority = random.Next(4), Weight = random.Next(1, 4) })]);
                    break;
                case 3:
                    pool.UpdateOptions(new ChannelPoolOptions
                    {
                        MaxPoolSize = random.Next(1, 12),
                        StandbyPoolSize = random.Next(4),
                        RecoveryDelay = random.Next(3) * 5 * Second,
                        PooledChannelLifetime = random.Next(2) == 0 ? 30 * Second : Timeout.InfiniteTimeSpan,
                        ProbeDelay = Timeout.InfiniteTimeSpan,
                    });
                    break;
                case 4:
                    waiting.AddRange(PoolInTime.Come(pool, random.Next(30), isStream: random.Next(2) == 0, key: random.Next(2) == 0 ? $"{step}" : null));
                    break;
                case 5:
                    Signal(pool, pool.State.Active.FirstOrDefault() ?? pool.State.Channels.Values.First(), random.Next(2) == 0 ? ChannelSignal.Silent : ChannelSignal.Life);
                    break;
                default:
                    Advance(random.Next(1, 15) * Second);
                    break;
            }

            await ReturnAsync(waiting, random.Next(40), random);
            Assert.All(pool.Balancer!.Endpoints.Priorities, static priority => Assert.Equal(
                (priority.Known.Sum(static one => one.Good), priority.Known.Sum(static one => one.Channels)),
                (priority.Good, priority.Channels)));
            Assert.InRange(pool.Balancer.Endpoints.Priorities.Sum(static priority => priority.Share), 0.999, 1.001);
        }

        Policy.Dead.Clear();
        pool.Balancer!.EndpointsChanged(all);
        pool.UpdateOptions(new ChannelPoolOptions { MaxPoolSize = 6, ProbeDelay = Timeout.InfiniteTimeSpan });
        for (var i = 0; i < 120; i++)
        {
            Advance(Second);
            await ReturnAsync(waiting, 1_000, random);
        }

        Assert.All(waiting, static one => Assert.True(one.IsFaulted, "Somebody waits for ever.")); // who could be given no channel
        pool.State.Channels.Values.ToList().ForEach(channel => Signal(pool, channel, ChannelSignal.Life));
        Advance(30 * Second);
        Assert.Equal([1_000, 0, 0], Call(pool, 1_000));
        Assert.Equal((0, 0), (ChannelsTo(pool, 1), ChannelsTo(pool, 2)));
    }

    [Fact]
    public async Task AnEndpointThatComesAndGoes_MovesNothing()
    {
        var pool = await NewPoolAsync([1, 2]);
        Lose(pool, [(0, 1)]);
        Advance(5 * Second);
        var (created, calls) = (Policy.Dials.Count, 0);
        for (var i = 0; i < 300; i++)
        {
            Policy.Dead.Clear();
            Advance(Second);
            calls += Call(pool, 10)[0];
            Lose(pool, [(0, 1)]);
            Advance(Second);
            calls += Call(pool, 10)[0];
        }

        output.WriteLine($"{Policy.Dials.Count - created} dials, {calls} calls; {pool.GetStatistics()}");
        Assert.Equal(0, calls);
        Assert.InRange(Policy.Dials.Count - created, 1, 1_000);
    }

    [Theory]
    [InlineData(0)]
    [InlineData(2)]
    public async Task WhileAllAreWell_NothingIsLookedAt(int standby)
    {
        var pool = await NewPoolAsync([2, 2], options => options.StandbyPoolSize = standby);
        Advance(10 * Second);
        Call(pool, 100);
        Advance(10 * Second);
        var set = Time.Dues.Count;
        Advance(300 * Second);
        output.WriteLine($"{Time.Armed}, {Time.Dues.Count - set}");
        Assert.Equal(set, Time.Dues.Count);
    }

    [Theory]
    [InlineData(0)]
    [InlineData(2)]
    [InlineData(0, 3, 1, 1, 1)]
    [InlineData(2, 3, 1, 1, 1)]
    public async Task APick_AllocatesNoMore(int lost, params int[] weights)
    {
        var (alone, several) = (await NewPoolAsync([8]), await NewPoolAsync([4, 4], weights: weights.Length > 0 ? weights : null));
        Lose(several, Enumerable.Range(1, lost).Select(static number => (0, number)));
        Advance(3 * Second);
        var (first, second) = (Measure(alone), Measure(several));
        output.WriteLine($"{first} {second}");
        Assert.Equal(first, second);

        static long Measure(ChannelPool pool)
        {
            var key = new object();
            var least = long.MaxValue;
            for (var round = 0; round < 20; round++)
            {
                var before = GC.GetAllocatedBytesForCurrentThread();
                for (var i = 0; i < 1_000; i++)
                {
                    pool.Picker.Return(key, pool.Picker.TryLease(key, 0)!, LeaseOutcome.Answered, error: null);
                }

                least = Math.Min(least, GC.GetAllocatedBytesForCurrentThread() - before);
            }

            return least;
        }
    }

    private static void CallOnce(ChannelPool pool)
    {
        if (pool.TryAcquire(out var lease))
        {
            lease.Dispose();
        }
    }

    // Its port is taken, and nobody listens there.
    private static Socket NewRefusing()
    {
        var socket = new Socket(AddressFamily.InterNetwork, SocketType.Stream, ProtocolType.Tcp);
        socket.Bind(new IPEndPoint(IPAddress.Loopback, 0));
        return socket;
    }

    private static async Task AnswerAsync(TcpListener listener, ConcurrentBag<TcpClient>? clients = null, TaskCompletionSource? after = null)
    {
        clients ??= []; // one that nobody holds is closed by the garbage collector
        await (after?.Task ?? Task.CompletedTask);
        try
        {
            while (true)
            {
                var client = await listener.AcceptTcpClientAsync();
                clients.Add(client);
                await SettingsAsync(client);
            }
        }
        catch (Exception exception) when (exception is SocketException or InvalidOperationException) // it does not listen any more
        {
            clients.ToList().ForEach(static client => client.Dispose());
        }

        static async Task SettingsAsync(TcpClient client)
        {
            try
            {
                await client.GetStream().WriteAsync((byte[])[0, 0, 0, 4, 0, 0, 0, 0, 0]);
            }
            catch (Exception exception) when (exception is IOException or InvalidOperationException) // it has gone: the next one is answered all the same
            {
            }
        }
    }
}

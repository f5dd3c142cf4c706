using System.Collections.Concurrent;
using PoolingInvoker.Testing;

namespace PoolingInvoker.Tests.Pool;

/// <summary>What a pool says of its channels: in pictures, and as it happens.</summary>
public sealed class ExplainTests : IDisposable
{
    private readonly PoolInTime _in = new();

    public void Dispose() => _in.Dispose();

    [Fact]
    public async Task GetChannels_ShowsALife()
    {
        var pool = _in.New(options =>
        {
            options.MaxConcurrentCallsPerChannel = 10;
            options.PooledChannelLifetime = TimeSpan.FromMinutes(30);
            options.PrimeCallback = _in.PrimeByHand;
        });
        Assert.Empty(pool.GetChannels());
        var line = PoolInTime.Come(pool, 2);
        Assert.Equal(new PooledChannelSnapshot { Id = 1, State = PooledChannelState.Connecting, Endpoint = "StubPolicy", Capacity = 10 }, Assert.Single(pool.GetChannels()));

        _in.Pass(TimeSpan.FromSeconds(2));
        _in.Primes[0].Ends.SetResult();
        var leases = await PoolInTime.ServedAsync(pool, line);
        var active = Assert.Single(pool.GetChannels());
        Assert.Equal(
            new PooledChannelSnapshot { Id = 1, State = PooledChannelState.Active, Endpoint = "StubPolicy", CallsInFlight = 2, Capacity = 10, Age = TimeSpan.FromSeconds(2) },
            active);
        Assert.Equal("#1 Active to StubPolicy, 2/10 calls, 2 s old", active.ToString());

        var error = new IOException("reset by peer");
        leases[0].Return(LeaseOutcome.ServerFailed, error);
        Assert.Equal((1, error), (pool.GetChannels()[0].CallsInFlight, pool.GetChannels()[0].LastError));
        Assert.EndsWith("last error: reset by peer", pool.GetChannels()[0].ToString(), StringComparison.Ordinal);

        _in.PassUntil(() => _in.Primes.Count == 2, TimeSpan.FromMinutes(31), TimeSpan.FromSeconds(1));
        AssertChannels(pool, (1, PooledChannelState.Refreshing, 1), (2, PooledChannelState.Connecting, 0));
        _in.Primes[1].Ends.SetResult();
        AssertChannels(pool, (1, PooledChannelState.Draining, 1), (2, PooledChannelState.Active, 0));
        leases[1].Return(LeaseOutcome.Answered);
        AssertChannels(pool, (2, PooledChannelState.Active, 0));

        // One that fails is replaced, and takes no calls meanwhile.
        var lease = PoolInTime.Take(pool);
        lease.Return(LeaseOutcome.Answered);
        lease = PoolInTime.Take(pool);
        var other = PoolInTime.Take(pool);
        lease.Return(LeaseOutcome.ChannelFailed, error);
        AssertChannels(pool, (2, PooledChannelState.Replacing, 1), (3, PooledChannelState.Connecting, 0));
        _in.Primes[2].Ends.SetResult();
        AssertChannels(pool, (2, PooledChannelState.Draining, 1), (3, PooledChannelState.Active, 0));
        other.Dispose();
        pool.Dispose();
        Assert.Empty(pool.GetChannels());
    }

    [Fact]
    public async Task Created_SaysWhatItWasMadeFor()
    {
        var pool = _in.New(static options => (options.MinPoolSize, options.MaxConcurrentCallsPerChannel, options.TargetConcurrentCallsPerChannel) = (2, 5, 4));
        await pool.ConnectAsync().Soon();
        PoolInTime.Answer(pool);
        var leases = PoolInTime.Come(pool, 9);
        _in.Pass(TimeSpan.FromSeconds(1));
        leases.AddRange(PoolInTime.Come(pool, 7));
        _ = await PoolInTime.ServedAsync(pool, leases);
        Assert.Equal(
        [
            "Created #1 to StubPolicy: the pool warms up to MinPoolSize",
            "Created #2 to StubPolicy: the pool warms up to MinPoolSize",
            "Created #3 to StubPolicy: channels carry more than 4 calls, or calls share one with streams that last",
            "Created #4 to StubPolicy: calls need it",
        ],
        Told());
        Assert.Equal(
            [ChannelPoolEventReason.WarmUp, ChannelPoolEventReason.WarmUp, ChannelPoolEventReason.Crowded, ChannelPoolEventReason.CallsWaiting],
            _in.Events.Select(static one => one.Reason));
    }

    [Fact]
    public void ReplacedRetiredAndClosed_AreToldOnce()
    {
        var pool = _in.New(static options => (options.MaxConcurrentCallsPerChannel, options.PooledChannelIdleTimeout) = (1, TimeSpan.FromMinutes(10)));
        var first = PoolInTime.Take(pool);
        var second = PoolInTime.Take(pool);
        first.Return(LeaseOutcome.ChannelFailed, new IOException("reset by peer"));
        second.Return(LeaseOutcome.Answered);
        PoolInTime.Answer(pool);
        for (var i = 0; i < 25; i++)
        {
            PoolInTime.Take(pool).Return(LeaseOutcome.Answered); // one channel is kept by the calls
            _in.Pass(TimeSpan.FromSeconds(30), TimeSpan.FromSeconds(30));
        }

        pool.Dispose();
        var told = Told();
        Assert.Equal(
        [
            "Created #1 to StubPolicy: calls need it",
            "Created #2 to StubPolicy: calls need it",
            "Replaced #3 to StubPolicy: in place of #1, because a call failed because of it",
            "Closed #1 to StubPolicy: its last call is over",
        ],
        told.Take(4));
        var retired = _in.Events.Single(static one => one.Kind == ChannelPoolEventKind.Retired).ChannelId;
        Assert.Equal(
        [
            $"Retired #{retired} to StubPolicy: it carried no call for 00:10:00",
            $"Closed #{retired} to StubPolicy: its last call is over",
            $"Closed #{5 - retired} to StubPolicy: its last call is over",
        ],
        told.Skip(4));
    }

    [Fact]
    public void Failed_SaysWithWhat_AndNothingIsSaidOfAChannelThatNeverWas()
    {
        var pool = _in.New(options => (options.MaxConcurrentCallsPerChannel, options.PooledChannelLifetime, options.PrimeCallback) = (1, TimeSpan.FromMinutes(30), _in.PrimeByHand));
        PoolInTime.Come(pool, 1);
        _in.Primes[0].Ends.SetResult();
        PoolInTime.Come(pool, 1);
        var error = new TimeoutException("no dial tone");
        _in.Primes[1].Ends.SetException(error);
        _in.PassUntil(() => _in.Primes.Count == 3, TimeSpan.FromSeconds(1));
        _in.Primes[2].Ends.SetResult();
        _in.PassUntil(() => _in.Primes.Count == 4, TimeSpan.FromMinutes(31), TimeSpan.FromSeconds(1));
        _in.Primes[3].Ends.SetException(error);
        var told = Told();
        Assert.Equal(
        [
            "Created #1 to StubPolicy: calls need it",
            "ConnectFailed to StubPolicy: no channel could be made and connected (no dial tone)",
            "Created #3 to StubPolicy: calls wait",
        ],
        told.Take(3));
        Assert.Matches("^ConnectFailed #[13] to StubPolicy: it stays: no replacement could be made and connected \\(no dial tone\\)$", Assert.Single(told.Skip(3)));
        Assert.All(_in.Events.Where(static one => one.Kind == ChannelPoolEventKind.ConnectFailed), one => Assert.Same(error, one.Exception));
    }

    [Fact]
    public async Task GivenUp_IsToldOnce()
    {
        var answers = false;
        var pool = _in.New(options =>
        {
            options.MinPoolSize = 2;
            options.ProbeDelay = TimeSpan.FromSeconds(1);
            options.ProbeCallback = (_, cancellationToken) => Task.Delay(answers ? TimeSpan.Zero : Timeout.InfiniteTimeSpan, cancellationToken);
        });
        PoolInTime.Take(pool).Dispose();
        PoolInTime.Answer(pool);
        var silent = PoolInTime.Take(pool);
        await Waiting.Until(() =>
        {
            _in.Time.Advance(TimeSpan.FromMilliseconds(50));
            var lease = PoolInTime.Take(pool);
            lease.Return(lease.Pooled == silent.Pooled ? LeaseOutcome.Unknown : LeaseOutcome.Answered);
            return pool.GetStatistics().ChannelsGivenUp == 1;
        });
        var told = _in.Events.Single(static one => one.Kind == ChannelPoolEventKind.GivenUp);
        Assert.Equal(silent.Pooled.Id, told.ChannelId);
        Assert.Matches("^nothing has come from it for [0-9.]+ s, nor an answer to a probe$", told.Message);
        Assert.DoesNotContain(_in.Events, static one => one.Kind == ChannelPoolEventKind.Replaced);
        answers = true;
        await Waiting.Until(() =>
        {
            _in.Time.Advance(TimeSpan.FromMilliseconds(50));
            return _in.Events.Any(one => one.Kind == ChannelPoolEventKind.Replaced && one.Message == $"in place of #{told.ChannelId}, because {told.Message}");
        });
        silent.Dispose();
    }

    [Fact]
    public async Task Refused_SaysWhatTheCallerIsTold()
    {
        var pool = _in.New(static options =>
        {
            options.MaxPoolSize = 1;
            options.MaxConcurrentCallsPerChannel = 1;
            options.MaxCallsWaiting = 1;
        });
        using var held = PoolInTime.Take(pool);
        var waits = PoolInTime.Come(pool, 1, timeout: TimeSpan.FromSeconds(5));
        var full = await Assert.ThrowsAsync<ChannelPoolExhaustedException>(() => PoolInTime.Come(pool, 1)[0].Soon());
        _in.Pass(TimeSpan.FromSeconds(5));
        var late = await Assert.ThrowsAsync<ChannelPoolExhaustedException>(() => waits[0].Soon());
        Assert.Equal([full, late], _in.Events.Where(static one => one.Kind == ChannelPoolEventKind.Refused).Select(static one => one.Exception));
        Assert.Equal([ChannelPoolEventReason.LineFull, ChannelPoolEventReason.PoolFull], _in.Events.Where(static one => one.Kind == ChannelPoolEventKind.Refused).Select(static one => one.Reason));
        Assert.Equal([full.Message, late.Message], _in.Events.Where(static one => one.Kind == ChannelPoolEventKind.Refused).Select(static one => one.Message));
    }

    [Fact]
    public async Task EachChannel_BeginsAndEndsOnce_AndIsNotHeardOfBeforeOrAfter()
    {
        var random = new Random(1);
        var pool = _in.New(options =>
        {
            options.MaxConcurrentCallsPerChannel = 2;
            options.MaxPoolSize = 6;
            options.PooledChannelIdleTimeout = TimeSpan.FromSeconds(30);
            options.PooledChannelLifetime = TimeSpan.FromSeconds(60);
            options.PrimeCallback = (_, _) => random.Next(4) == 0 ? Task.FromException(new TimeoutException("no dial tone")) : Task.Delay(TimeSpan.FromMilliseconds(30), _in.Time, CancellationToken.None);
        });
        List<Task<ChannelLease>> line = [];
        for (var i = 0; i < 2_000; i++)
        {
            line.AddRange(PoolInTime.Come(pool, random.Next(i % 200 < 100 ? 4 : 2)));
            foreach (var lease in (await PoolInTime.ServedAsync(pool, line)).Where(_ => random.Next(2) == 0).ToList())
            {
                lease.Return(random.Next(20) == 0 ? LeaseOutcome.ChannelFailed : LeaseOutcome.Answered, new IOException("reset by peer"));
                line.RemoveAll(one => one.IsCompleted && one.Result == lease);
            }

            _in.Time.Advance(TimeSpan.FromMilliseconds(random.Next(200)));
        }

        foreach (var lease in await PoolInTime.ServedAsync(pool, line))
        {
            lease.Dispose();
        }

        pool.Dispose();
        await Waiting.Until(() => _in.Open == 0);
        var began = Ids(ChannelPoolEventKind.Created).Concat(Ids(ChannelPoolEventKind.Replaced)).ToList();
        Assert.True(began.Count > 50);
        Assert.Equal(began.Distinct(), began);
        Assert.Equal(began.Order(), Ids(ChannelPoolEventKind.Closed).Order());
        Assert.Equal((long)began.Count, pool.GetStatistics().ChannelsCreated);
        Assert.Equal(Ids(ChannelPoolEventKind.Replaced).Count, pool.GetStatistics().ChannelsReplaced);

        List<int> Ids(ChannelPoolEventKind kind) => [.. _in.Events.Where(one => one.Kind == kind).Select(static one => one.ChannelId)];
    }

    [Fact]
    public async Task WhoListens_IsNotCalledUnderTheLock_AndMayThrow()
    {
        var underTheLock = new ConcurrentQueue<ChannelPoolEvent>();
        var told = new ConcurrentQueue<ChannelPoolEventKind>();
        ChannelPool pool = null!;
        pool = _in.New(options =>
        {
            options.MaxConcurrentCallsPerChannel = 1;
            options.MaxPoolSize = 3;
            options.MaxCallsWaiting = 1;
            options.PooledChannelIdleTimeout = TimeSpan.FromMinutes(10);
            options.OnEvent = one =>
            {
                told.Enqueue(one.Kind);
                var other = new Thread(() => pool.GetChannels()) { IsBackground = true };
                other.Start();
                if (underTheLock.IsEmpty && !other.Join(Waiting.Long))
                {
                    underTheLock.Enqueue(one);
                }

                throw new FormatException("of the user's");
            };
        });
        var leases = new[] { PoolInTime.Take(pool), PoolInTime.Take(pool), PoolInTime.Take(pool) };
        var line = PoolInTime.Come(pool, 1);
        await Assert.ThrowsAsync<ChannelPoolExhaustedException>(() => PoolInTime.Come(pool, 1)[0].Soon());
        leases[0].Return(LeaseOutcome.ChannelFailed, new IOException("reset by peer"));
        (await PoolInTime.ServedAsync(pool, line)).ForEach(static lease => lease.Dispose());
        _in.Policy.OnCreate = static () => throw new TimeoutException("no dial tone");
        leases[1].Return(LeaseOutcome.Answered);
        leases[2].Return(LeaseOutcome.ChannelFailed, new IOException("reset by peer"));
        _in.Pass(TimeSpan.FromMinutes(11), TimeSpan.FromSeconds(30));
        pool.Dispose();
        Assert.Empty(underTheLock);
        ChannelPoolEventKind[] kinds =
        [
            ChannelPoolEventKind.Created, ChannelPoolEventKind.Replaced, ChannelPoolEventKind.Retired, ChannelPoolEventKind.Closed, ChannelPoolEventKind.ConnectFailed,
            ChannelPoolEventKind.Refused,
        ];
        Assert.Equal(kinds, told.Distinct().Order());
        Assert.Equal((0, 0), (_in.Open, pool.GetStatistics().CallsInFlight));
    }

    private List<string> Told() => [.. _in.Events.Select(static one => one.ToString())];

    private static void AssertChannels(ChannelPool pool, params (int Id, PooledChannelState State, int Calls)[] expected) =>
        Assert.Equal(expected, pool.GetChannels().Select(static channel => (channel.Id, channel.State, channel.CallsInFlight)));
}

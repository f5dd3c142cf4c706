using System.Net.Sockets;
using PoolingInvoker.Testing;

namespace PoolingInvoker.Tests.Pool;

/// <summary>Channels that are only old: when they are replaced, how many at a time, and what it costs.</summary>
public sealed class RefreshTests(ITestOutputHelper output) : IDisposable
{
    private static readonly TimeSpan Lifetime = TimeSpan.FromMinutes(30);
    private static readonly TimeSpan Maintenance = TimeSpan.FromSeconds(30);

    private readonly PoolInTime _in = new();

    public void Dispose() => _in.Dispose();

    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(3)]
    [InlineData(4)]
    [InlineData(5)]
    public void TheAge_IsDrawnOnceForEachChannel_AndAtMostATenthOff(int seed)
    {
        var pool = _in.New(static options => (options.PooledChannelLifetime, options.MaxConcurrentCallsPerChannel) = (Lifetime, 1), new Random(seed));
        var ages = Enumerable.Range(0, 100).Select(_ => PoolInTime.Take(pool).Pooled.Lifetime).ToList();
        Assert.All(ages, static age => Assert.InRange(age, 0.9 * Lifetime, Lifetime));
        Assert.Equal(100, ages.Distinct().Count());
        Assert.True(ages.Max() - ages.Min() > 0.08 * Lifetime, $"from {ages.Min()} to {ages.Max()}");
    }

    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(3)]
    [InlineData(4)]
    [InlineData(5)]
    public void AChannel_IsReplacedAtItsAge_AndNotBefore(int seed)
    {
        var pool = _in.New(static options => options.PooledChannelLifetime = Lifetime, new Random(seed));
        var lease = PoolInTime.Take(pool);
        var age = lease.Pooled.Lifetime;
        lease.Return(LeaseOutcome.Answered);
        var took = TimeSpan.Zero;
        for (; pool.GetStatistics().ChannelsReplaced == 0; took += TimeSpan.FromSeconds(1))
        {
            _in.Time.Advance(TimeSpan.FromSeconds(1));
        }

        Assert.InRange(took, age, age + Maintenance);
    }

    [Fact]
    public void UntilTheNewOneIsPrimed_CallsGoToTheOld_WhichDrainsThen()
    {
        var pool = NewPrimedPool();
        var stream = PoolInTime.Take(pool, isStream: true);
        var old = stream.Pooled;
        PassUntilPriming(2);
        Assert.Equal(PooledChannelState.Refreshing, old.State);
        for (var i = 0; i < 5; i++)
        {
            _in.Pass(TimeSpan.FromSeconds(1));
            var call = PoolInTime.Take(pool);
            Assert.Same(old, call.Pooled);
            call.Return(LeaseOutcome.Answered);
        }

        _in.Primes[1].Ends.SetResult();
        Assert.Equal(PooledChannelState.Draining, old.State);
        Assert.Same(_in.Primes[1].Invoker, PoolInTime.Take(pool).CallInvoker);

        // A stream lives on for as long as it likes, over the age of the new one, too.
        for (var primes = 3; primes < 7; primes++)
        {
            PassUntilPriming(primes);
            _in.Primes[^1].Ends.SetResult();
            Assert.False(StubPolicy.IsDisposed(stream.Channel));
        }

        var channel = stream.Channel;
        stream.Dispose();
        Assert.True(StubPolicy.IsDisposed(channel));
    }

    [Fact]
    public void IfTheNewOneCannotBePrimed_TheOldOneStays_AndItIsTriedAgain()
    {
        var pool = NewPrimedPool();
        var old = PoolInTime.Take(pool).Pooled;
        PassUntilPriming(2);
        for (var tries = 2; tries < 6; tries++)
        {
            Assert.Equal(tries, _in.Primes.Count);
            _in.Primes[^1].Ends.SetException(new TimeoutException("no dial tone"));
            Assert.Equal((PooledChannelState.Active, "no dial tone"), (old.State, old.LastError?.Message));
            Assert.Equal(1, _in.Open);
            var call = PoolInTime.Take(pool);
            Assert.Same(old, call.Pooled);
            call.Return(LeaseOutcome.Answered);
            _in.Pass(Maintenance);
        }

        _in.Primes[^1].Ends.SetResult();
        Assert.Equal((1, 1L), (pool.GetStatistics().Channels, pool.GetStatistics().ChannelsReplaced));
        Assert.Equal(4, _in.Events.Count(static told => told.Kind == ChannelPoolEventKind.ConnectFailed));
    }

    [Fact]
    public async Task AChannelThatBreaksWhileItIsRefreshed_WaitsForTheBackoff_WhereTheRefreshFails()
    {
        var pool = NewPrimedPool();
        var (first, second) = (PoolInTime.Take(pool), PoolInTime.Take(pool));
        var old = first.Pooled;
        PassUntilPriming(2);
        first.Return(LeaseOutcome.Answered);
        second.Return(LeaseOutcome.ChannelFailed);
        Assert.Equal((PooledChannelState.Refreshing, ChannelHealth.Broken), (old.State, old.Health));
        _in.Primes[1].Ends.SetException(new TimeoutException("no dial tone"));

        // Calls go to it meanwhile.
        var call = PoolInTime.Take(pool);
        Assert.Same(old, call.Pooled);
        call.Return(LeaseOutcome.ChannelFailed);
        Assert.Equal((PooledChannelState.Active, 2), (old.State, _in.Primes.Count));

        _in.Pass(TimeSpan.FromSeconds(0.2));
        var waiting = PoolInTime.Come(pool, 1)[0];
        Assert.Equal((PooledChannelState.Replacing, 3), (old.State, _in.Primes.Count));
        _in.Primes[2].Ends.SetResult();
        Assert.NotSame(old, (await waiting.Soon()).Pooled);
    }

    [Theory]
    [InlineData(30, 3, 30)]
    [InlineData(30, 1, 30)]
    [InlineData(100, 1, 30)]
    [InlineData(5, 1, 30)]
    [InlineData(19, 1, 2)]
    [InlineData(30, 1, 1)]
    [InlineData(19, 1, 5)]
    public void AFewAtATime_AreRefreshed_AndNoneIsForgotten(int channels, int primeSeconds, int lifetimeMinutes)
    {
        // All are made at once, and carry calls all the time.
        var lifetime = TimeSpan.FromMinutes(lifetimeMinutes);
        var pool = _in.New(options =>
        {
            options.MinPoolSize = channels;
            options.MaxPoolSize = channels;
            options.PooledChannelLifetime = lifetime;
            options.PrimeCallback = _in.PrimeIn(TimeSpan.FromSeconds(primeSeconds));
        });
        var warm = pool.ConnectAsync();
        _in.Pass(TimeSpan.FromSeconds(primeSeconds), TimeSpan.FromSeconds(1));
        Assert.True(SpinWait.SpinUntil(() => warm.IsCompletedSuccessfully, Waiting.Long));

        var oldest = TimeSpan.Zero;
        var atATime = 0;
        (TimeSpan First, TimeSpan Last)? round = null;
        var step = TimeSpan.FromMilliseconds(500);
        for (var passed = TimeSpan.Zero; passed < 8 * lifetime; passed += step)
        {
            _in.Time.Advance(step);
            var seen = pool.GetChannels().Where(static channel => channel.State is PooledChannelState.Active or PooledChannelState.Refreshing).ToList();
            oldest = seen.Max(static channel => channel.Age) is var age && age > oldest ? age : oldest;
            atATime = Math.Max(atATime, seen.Count(static channel => channel.State == PooledChannelState.Refreshing));
            var replaced = pool.GetStatistics().ChannelsReplaced;
            round = replaced > 0 && replaced < channels ? (round?.First ?? passed, passed) : round;
        }

        output.WriteLine(
            $"{channels} channels of the same age, {primeSeconds} s to connect, a lifetime of {lifetime.TotalMinutes} min: {atATime} at a time; "
            + $"the first round takes {((round?.Last - round?.First) ?? TimeSpan.Zero).TotalSeconds:0} s; the oldest was {oldest / lifetime:0.00} lifetimes old");
        Assert.InRange(atATime, 1, Math.Max(1, channels / 10));
        Assert.InRange(oldest / lifetime, 0.9, 1.35);
    }

    [Theory]
    [InlineData(true, 0)]
    [InlineData(false, 1)]
    public async Task AChannelThatIsIdleForAMinute_IsReplacedWithoutConnecting(bool isIdle, int dials)
    {
        var dialed = 0;
        using var pool = ChannelPool.ForAddress("http://stub", new ChannelPoolOptions
        {
            PooledChannelLifetime = Lifetime,
            PooledChannelIdleTimeout = Timeout.InfiniteTimeSpan,
            ConfigureHandler = handler => handler.ConnectCallback = (_, _) =>
            {
                Interlocked.Increment(ref dialed);
                throw new SocketException((int)SocketError.ConnectionRefused);
            },
            TimeProvider = _in.Time,
            Queue = InlineWork.Queue,
        });
        Assert.True(pool.TryAcquire(out var lease)); // is not connected before it is used
        if (isIdle)
        {
            lease.Dispose();
        }

        _in.PassUntil(() => pool.GetStatistics().ChannelsReplaced == 1 || Volatile.Read(ref dialed) > 0 || pool.GetChannels()[0].State == PooledChannelState.Refreshing, Lifetime + Maintenance, TimeSpan.FromSeconds(1));
        await Waiting.Until(() => pool.GetChannels()[0] is { State: PooledChannelState.Active } first && (isIdle || first.LastError is not null));
        Assert.Equal(dials, dialed);
        Assert.Equal((1, isIdle ? 1L : 0L), (pool.GetStatistics().Channels, pool.GetStatistics().ChannelsReplaced));
    }

    [Fact]
    public async Task APoolIsDisposed_WhileItRefreshes()
    {
        var pool = NewPrimedPool();
        PoolInTime.Take(pool).Return(LeaseOutcome.Answered);
        PassUntilPriming(2);
        await pool.DisposeAsync().AsTask().Soon();
        await Waiting.Until(() => _in.Primes[1].Token.IsCancellationRequested);
        Assert.Equal(0, _in.Open);
    }

    private void PassUntilPriming(int number) => _in.PassUntil(() => _in.Primes.Count == number, Lifetime + Maintenance, TimeSpan.FromSeconds(1));

    // With one channel, which is primed.
    private ChannelPool NewPrimedPool()
    {
        var pool = _in.New(options => (options.PooledChannelLifetime, options.PrimeCallback) = (Lifetime, _in.PrimeByHand));
        var warm = pool.ConnectAsync();
        _in.Primes[0].Ends.SetResult();
        Assert.True(SpinWait.SpinUntil(() => warm.IsCompletedSuccessfully, Waiting.Long));
        return pool;
    }
}

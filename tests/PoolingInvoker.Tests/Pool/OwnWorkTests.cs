using System.Collections.Concurrent;
using System.Diagnostics;
using System.Globalization;
using System.Runtime.CompilerServices;
using System.Text.RegularExpressions;
using Microsoft.Extensions.Logging;
using PoolingInvoker.Testing;

namespace PoolingInvoker.Tests.Pool;

/// <summary>What a pool does of its own accord: in nobody's context, on nobody's thread, without an end that others feel.</summary>
public sealed class OwnWorkTests
{
    private readonly StubPolicy _policy = new();
    private readonly AsyncLocal<string?> _tenant = new();

    [Fact]
    public async Task WhatThePoolDoes_IsInNobodysContext_AndOnNoCallersThread()
    {
        var seen = new ConcurrentQueue<(string What, Surroundings Surroundings)>();
        void See(string what) => seen.Enqueue((what, Surroundings.Now(_tenant)));
        _policy.OnCreate = () =>
        {
            See("Create");
            return StubPolicy.NewChannel();
        };
        using var pool = new ChannelPool(_policy, new ChannelPoolOptions
        {
            MinPoolSize = 2,
            MaxConcurrentCallsPerChannel = 1,
            PrimeCallback = (_, _) =>
            {
                See("PrimeCallback");
                return Task.CompletedTask;
            },
            OnEvent = one => See($"{one.Kind}"),
        });
        await AsACallerAsync(() =>
        {
            var leases = new[] { pool.Get(), pool.Get(), pool.Get() };
            _policy.OnReturn = static _ => false;
            pool.Return(leases[0]);
            SpinWait.SpinUntil(() => pool.GetStatistics().ChannelsReplaced == 1, Waiting.Long);
            _policy.OnReturn = static _ => true;
            pool.Return(leases[1]);
            pool.Return(leases[2]);
            pool.ConnectAsync().Wait(Waiting.Long);
        });
        await AsACallerAsync(() => new ChannelPool(_policy, new ChannelPoolOptions { MinPoolSize = 2, OnEvent = one => See($"{one.Kind}") }).ConnectAsync().Wait(Waiting.Long));
        await Waiting.Until(() => seen.Any(static one => one.What == "Replaced"));
        Assert.Equal(["Closed", "Create", "Created", "PrimeCallback", "Replaced"], seen.Select(static one => one.What).Distinct().Order(StringComparer.Ordinal));
        Assert.All(seen, static one => Assert.Equal((one.What, Surroundings.Nobodys), one));
    }

    [Fact]
    public async Task WhoCannotWait_MakesAChannel_OnTheirThread_ButInNobodysContext()
    {
        Surroundings? seen = null;
        _policy.OnCreate = () =>
        {
            seen = Surroundings.Now(_tenant);
            return StubPolicy.NewChannel();
        };
        using var pool = new ChannelPool(_policy);
        await AsACallerAsync(() =>
        {
            Assert.True(pool.TryAcquire(out var lease));
            lease.Dispose();
            Assert.Equal("one of many", _tenant.Value);
        });
        Assert.Equal((null, null), (seen!.Tenant, seen.Activity));
    }

    [Fact]
    public async Task WhoListensAndDoesNotReturn_DelaysNothing_AndIsToldInOrder_AndWhatWasDropped()
    {
        var told = new ConcurrentQueue<ChannelPoolEvent>();
        using var goesOn = new ManualResetEventSlim();
        using var pool = new ChannelPool(_policy, new ChannelPoolOptions
        {
            MaxPoolSize = 1,
            MaxConcurrentCallsPerChannel = 1,
            OnEvent = one =>
            {
                told.Enqueue(one);
                goesOn.Wait();
            },
        });
        _policy.OnReturn = static _ => false;
        for (var i = 0; i < 1_200; i++)
        {
            var lease = await pool.AcquireAsync().Soon();
            lease.Return(LeaseOutcome.Answered);
        }

        await pool.DisposeAsync().AsTask().Soon();
        Assert.Single(told);
        goesOn.Set();

        // Each channel begins and ends.
        var all = 2 * pool.GetStatistics().ChannelsCreated;
        await Waiting.Until(() => told.Sum(Counts) == all);
        Assert.Equal(1, told.Count(static one => one.Kind == ChannelPoolEventKind.Dropped));
        Assert.Equal(ChannelPoolEventKind.Dropped, told.Last().Kind);
        var begun = told.Where(static one => one.Kind is ChannelPoolEventKind.Created or ChannelPoolEventKind.Replaced).Select(static one => one.ChannelId).ToList();
        Assert.Equal(begun.Order(), begun);

        static long Counts(ChannelPoolEvent one) => one.Kind == ChannelPoolEventKind.Dropped
            ? long.Parse(Regex.Match(one.Message, "([0-9]+) events were not told$").Groups[1].Value, CultureInfo.InvariantCulture)
            : 1;
    }

    [Fact]
    public async Task EventsComeInTheOrderOfTheChanges_WhicheverThreadIsTheFirstToGoOn()
    {
        var told = new ConcurrentQueue<(ChannelPoolEventKind Kind, int Channel)>();
        using var goesOn = new ManualResetEventSlim();
        using var log = new SlowLog("ChannelCreated", goesOn);
        using var pool = new ChannelPool(_policy, new ChannelPoolOptions
        {
            MaxPoolSize = 1,
            LoggerFactory = log,
            OnEvent = one => told.Enqueue((one.Kind, one.ChannelId)),
        });
        _policy.OnReturn = static _ => false;
        var lease = await pool.AcquireAsync().Soon();
        await Waiting.Until(() => log.Waits);
        lease.Return(LeaseOutcome.Answered);
        await Waiting.Until(() => pool.GetStatistics().ChannelsReplaced == 1 && pool.GetStatistics().DrainingChannels == 0);
        goesOn.Set();
        await Waiting.Until(() => told.Count == 3);
        Assert.Equal([(ChannelPoolEventKind.Created, 1), (ChannelPoolEventKind.Replaced, 2), (ChannelPoolEventKind.Closed, 1)], told);
    }

    [Fact]
    public async Task APoolThatIsDropped_IsCollected_WithItsTimers()
    {
        var time = new RecordingTime(DateTimeOffset.UtcNow);
        var pool = Drop();
        await Waiting.Until(() =>
        {
            GC.Collect();
            return !pool.IsAlive;
        });
        time.Advance(TimeSpan.FromMinutes(1));
        Assert.Equal(0, time.Armed);

        [MethodImpl(MethodImplOptions.NoInlining)]
        WeakReference Drop() => new(new ChannelPool(new StubPolicy(), new ChannelPoolOptions { TimeProvider = time }));
    }

    [Fact]
    public async Task OptionsThatSayForEver_AreNoOverflow()
    {
        var time = new RecordingTime(DateTimeOffset.UtcNow);
        var asked = 0;
        using var pool = new ChannelPool(_policy, new ChannelPoolOptions
        {
            ProbeDelay = TimeSpan.MaxValue,
            PooledChannelLifetime = TimeSpan.MaxValue,
            PooledChannelIdleTimeout = TimeSpan.MaxValue,
            LeakDetectionThreshold = TimeSpan.MaxValue,
            ProbeCallback = (_, _) =>
            {
                asked++;
                return Task.CompletedTask;
            },
            TimeProvider = time,
            Queue = InlineWork.Queue,
        });
        var lease = await pool.Queue.AcquireAsync(Timeout.InfiniteTimeSpan, new LeaseRequest(LeaseKind.Call), CancellationToken.None).Soon();
        for (var i = 0; i < 60; i++)
        {
            time.Advance(TimeSpan.FromSeconds(30));
        }

        Assert.True(asked >= 2); // which is rare, and goes on
        lease.Dispose();
    }

    [Fact]
    public async Task ATimerThatThrows_EndsNothing_AndGoesOn()
    {
        var time = new ThrowingTime();
        var log = new RecordingLoggerFactory();
        using var pool = new ChannelPool(_policy, new ChannelPoolOptions { TimeProvider = time, LoggerFactory = log, Queue = InlineWork.Queue });
        var lease = await pool.Queue.AcquireAsync(Timeout.InfiniteTimeSpan, new LeaseRequest(LeaseKind.Call), CancellationToken.None).Soon();
        lease.Return(LeaseOutcome.ServerFailed);
        Assert.NotNull(pool.GetChannels());
        time.Throws = true;
        time.Advance(TimeSpan.FromMinutes(1));
        time.Throws = false;
        Assert.Contains(log.Entries, static entry => entry.Event == "MaintenanceFailed");

        // The next look finds that the channel need not be spared any more.
        time.Advance(TimeSpan.FromSeconds(5));
        lease = await pool.Queue.AcquireAsync(Timeout.InfiniteTimeSpan, new LeaseRequest(LeaseKind.Call), CancellationToken.None).Soon();
        Assert.NotEqual(ChannelHealth.Penalized, lease.Pooled.Health);
        lease.Dispose();
    }

    [Fact]
    public async Task AServerThatTakesNothing_GetsNoMoreConnections_AndSaysWhenItDoes()
    {
        using var inTime = new PoolInTime();
        var pool = inTime.New();
        var lease = PoolInTime.Take(pool);
        pool.EventsOf(lease.Pooled).ServerTakes(0);
        var line = PoolInTime.Come(pool, 5);
        inTime.Pass(TimeSpan.FromSeconds(5));
        Assert.Equal((1, 5), (pool.GetStatistics().Channels, pool.GetStatistics().CallsWaiting));

        pool.EventsOf(lease.Pooled).ServerTakes(6);
        (await PoolInTime.ServedAsync(pool, [.. line])).ForEach(static served => served.Dispose());
        await Waiting.Until(() => line.TrueForAll(static one => one.IsCompletedSuccessfully));
        Assert.Equal(1, pool.GetStatistics().Channels);
        lease.Dispose();
    }

    [Fact]
    public async Task AChannelWhoseServerGoes_WhileItIsPrimed_DoesNotJoin()
    {
        using var inTime = new PoolInTime();
        var pool = inTime.New(options => (options.MaxConcurrentCallsPerChannel, options.PrimeCallback) = (1, inTime.PrimeByHand));
        var first = PoolInTime.Come(pool, 1);
        inTime.Primes[0].Ends.SetResult();
        var lease = await first[0].Soon();
        var line = PoolInTime.Come(pool, 1);
        await Waiting.Until(() => inTime.Primes.Count == 2);
        pool.EventsOf(pool.State.Channels[inTime.Policy.Created[1]]).ServerGoes();
        inTime.Primes[1].Ends.SetResult();
        await Waiting.Until(() => StubPolicy.IsDisposed(inTime.Policy.Created[1]));
        Assert.False(line[0].IsCompleted);
        Assert.Contains(inTime.Events, static one => one is { Kind: ChannelPoolEventKind.ConnectFailed, Exception: IOException gone } && gone.Message.Contains("GOAWAY", StringComparison.Ordinal));

        inTime.PassUntil(() => inTime.Primes.Count == 3, TimeSpan.FromSeconds(5));
        inTime.Primes[2].Ends.SetResult();
        (await line[0].Soon()).Dispose();
        lease.Dispose();
    }

    [Fact]
    public async Task WhoAvoidsTheOnlyChannel_WaitsForAcquireTimeoutOnce()
    {
        using var inTime = new PoolInTime();
        var pool = inTime.New(options => (options.MaxConcurrentCallsPerChannel, options.PrimeCallback) = (2, inTime.PrimeByHand));
        var first = PoolInTime.Come(pool, 1);
        inTime.Primes[0].Ends.SetResult();
        var lease = await first[0].Soon();
        lease.Return(LeaseOutcome.Answered);
        lease = PoolInTime.Take(pool);
        var retry = pool.Queue.AcquireAsync(TimeSpan.FromSeconds(5), new LeaseRequest(LeaseKind.Call, lease.Pooled), CancellationToken.None).AsTask();
        await Waiting.Until(() => inTime.Primes.Count == 2);
        var other = PoolInTime.Take(pool);
        inTime.Pass(TimeSpan.FromSeconds(5));
        await Assert.ThrowsAsync<ChannelPoolExhaustedException>(() => retry.Soon());
        lease.Dispose();
        other.Dispose();
    }

    [Fact]
    public void AConstructorThatThrows_LeavesNoTimer()
    {
        var time = new RecordingTime(DateTimeOffset.UtcNow);
        Assert.Throws<ArgumentException>(() => new ChannelPool(_policy, new ChannelPoolOptions { TimeProvider = time, ConfigureChannel = static _ => { } }));
        Assert.Equal(0, time.Armed);
    }

    // On a thread of its own, with all that a caller may have around.
    private Task AsACallerAsync(Action call)
    {
        var over = new TaskCompletionSource(TaskCreationOptions.RunContinuationsAsynchronously);
        var caller = new Thread(() =>
        {
            using var activity = new Activity("of a caller").Start();
            _tenant.Value = "one of many";
            SynchronizationContext.SetSynchronizationContext(new SynchronizationContext());
            Surroundings.IsCaller = true;
            try
            {
                call();
                over.SetResult();
            }
            catch (Exception exception)
            {
                over.SetException(exception);
            }
        })
        { IsBackground = true };
        caller.Start();
        return over.Task.Soon();
    }

    /// <summary>What code finds around it.</summary>
    private sealed record Surroundings(string? Tenant, string? Activity, bool HasContext, bool IsOnACallersThread)
    {
        public static readonly Surroundings Nobodys = new(null, null, false, false);

        [ThreadStatic]
        public static bool IsCaller;

        public static Surroundings Now(AsyncLocal<string?> tenant) =>
            new(tenant.Value, System.Diagnostics.Activity.Current?.OperationName, SynchronizationContext.Current is not null, IsCaller);
    }

    /// <summary>A clock that can be asked no more.</summary>
    private sealed class ThrowingTime : Microsoft.Extensions.Time.Testing.FakeTimeProvider
    {
        public bool Throws { get; set; }

        public override long GetTimestamp() => Throws ? throw new InvalidOperationException("the clock stands") : base.GetTimestamp();
    }

    /// <summary>A log that does not return from what it is told first of this.</summary>
    private sealed class SlowLog(string what, ManualResetEventSlim goesOn) : ILoggerFactory, ILogger
    {
        private int _waits;

        public bool Waits => Volatile.Read(ref _waits) > 0;

        public ILogger CreateLogger(string categoryName) => this;

        public void AddProvider(ILoggerProvider provider) => throw new NotSupportedException();

        public IDisposable? BeginScope<TState>(TState state)
            where TState : notnull => null;

        public bool IsEnabled(LogLevel logLevel) => true;

        public void Log<TState>(LogLevel logLevel, EventId eventId, TState state, Exception? exception, Func<TState, Exception?, string> formatter)
        {
            if (eventId.Name == what && Interlocked.Increment(ref _waits) == 1)
            {
                goesOn.Wait();
            }
        }

        public void Dispose() => goesOn.Set();
    }
}

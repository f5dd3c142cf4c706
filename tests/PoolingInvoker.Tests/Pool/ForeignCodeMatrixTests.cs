using Grpc.Net.Client;
using Microsoft.Extensions.Logging;
using Microsoft.Extensions.ObjectPool;
using Microsoft.Extensions.Time.Testing;
using PoolingInvoker.Testing;

namespace PoolingInvoker.Tests.Pool;

/// <summary>What of the user's a pool calls, crossed with what it may do. Nothing of it keeps a lease, or has the pool hang.</summary>
public sealed class ForeignCodeMatrixTests
{
    public enum Code
    {
        Create,
        Return,
        Prime,
        Probe,
        Listener,
        Logger,
        DisposingHandler,
    }

    public enum Deed
    {
        Throws,
        GivesNull,
        IsLate,
        CallsBack,
        DisposesThePool,
    }

    public static TheoryData<Code, Deed> All => [.. Enum.GetValues<Code>().SelectMany(static code => Enum.GetValues<Deed>().Select(deed => (code, deed)))];

    [Theory]
    [MemberData(nameof(All))]
    public async Task WhateverItDoes_LeasesComeBack_AndThePoolIsOfUseOrDisposed(Code code, Deed deed)
    {
        var foreign = new Foreign(code, deed);
        var time = new FakeTimeProvider();
        var pool = foreign.Pool = new ChannelPool(foreign, new ChannelPoolOptions
        {
            MinPoolSize = 2,
            MaxPoolSize = 4,
            MaxConcurrentCallsPerChannel = 1,
            AcquireTimeout = TimeSpan.FromSeconds(5),
            DrainTimeout = Timeout.InfiniteTimeSpan,
            LoggerFactory = foreign,
            PrimeCallback = (_, _) => foreign.Run(Code.Prime)!,
            ProbeCallback = (_, _) => foreign.Run(Code.Probe)!,
            OnEvent = _ => foreign.Run(Code.Listener)?.Wait(Waiting.Long),
            TimeProvider = time,
        });
        foreign.IsOn = true;
        for (var round = 0; round < 3; round++)
        {
            var connecting = pool.ConnectAsync();
            var acquiring = Enumerable.Range(0, 6).Select(_ => AcquireAsync(TimeSpan.FromSeconds(5))).ToList();
            await Passing(() => acquiring.TrueForAll(static one => one.IsCompleted) || acquiring.Count(static one => one.IsCompletedSuccessfully) == 4);
            var leases = await Task.WhenAll(acquiring.Where(static one => one.IsCompletedSuccessfully));
            time.Advance(TimeSpan.FromSeconds(1.5)); // they are silent, and asked
            LeaseOutcome[] outcomes = [LeaseOutcome.Answered, LeaseOutcome.ChannelFailed, LeaseOutcome.ServerFailed, LeaseOutcome.Unknown];
            for (var i = 0; i < leases.Length; i++)
            {
                leases[i].Return(outcomes[i % outcomes.Length], new IOException("reset by peer"));
            }

            await Passing(() => acquiring.TrueForAll(static one => one.IsCompleted) && connecting.IsCompleted);
            foreach (var late in acquiring.Where(static one => one.IsCompletedSuccessfully))
            {
                (await late).Dispose();
            }

            Assert.All(acquiring.Where(static one => one.IsFaulted), one => Assert.True(
                one.Exception!.InnerException is TimeoutException or InvalidOperationException || (one.Exception.InnerException is FormatException && deed == Deed.Throws),
                $"{one.Exception}"));
            Assert.True(connecting.Exception?.InnerException is null or HttpRequestException or InvalidOperationException, $"{connecting.Exception}");
        }

        await Passing(() => foreign.WasRun); // events come from a thread of their own
        foreign.IsOn = false;
        await Waiting.Until(() => foreign.Running == 0); // it may have a lease of its own at this moment
        Assert.Equal(0, pool.GetStatistics().CallsInFlight);
        if (deed != Deed.DisposesThePool || !foreign.WasRun)
        {
            var again = AcquireAsync(Timeout.InfiniteTimeSpan);
            await Passing(() => again.IsCompleted);
            (await again).Dispose();
        }

        var disposing = pool.DisposeAsync().AsTask();
        await Passing(() => disposing.IsCompleted);
        await disposing;
        Assert.Equal((0, 0, 0), (pool.GetStatistics().CallsInFlight, pool.GetStatistics().CallsWaiting, pool.GetStatistics().Channels));

        Task<ChannelLease> AcquireAsync(TimeSpan timeout) => pool.Queue.AcquireAsync(timeout, new LeaseRequest(LeaseKind.Call), CancellationToken.None).AsTask();

        Task Passing(Func<bool> condition) => Waiting.Until(() =>
        {
            time.Advance(TimeSpan.FromMilliseconds(20));
            return condition();
        });
    }

    /// <summary>All that is the user's.</summary>
    private sealed class Foreign(Code code, Deed deed) : IPooledObjectPolicy<GrpcChannel>, ILoggerFactory, ILogger
    {
        [ThreadStatic]
        private static bool _isWithin;

        private volatile bool _isOn;
        private volatile bool _wasRun;
        private int _running;

        public ChannelPool Pool { get; set; } = null!;

        public bool IsOn
        {
            get => _isOn;
            set => _isOn = value;
        }

        public bool WasRun => _wasRun;

        public int Running => Volatile.Read(ref _running);

        public Task? Run(Code what)
        {
            Interlocked.Increment(ref _running);
            try
            {
                return RunCounted(what);
            }
            finally
            {
                Interlocked.Decrement(ref _running);
            }
        }

        private Task? RunCounted(Code what)
        {
            if (what != code || !IsOn || _isWithin)
            {
                return Task.CompletedTask;
            }

            _wasRun = true;
            _isWithin = true;
            try
            {
                switch (deed)
                {
                    case Deed.Throws:
                        throw new FormatException("of the user's");
                    case Deed.GivesNull:
                        return null;
                    case Deed.IsLate:
                        return Task.Run(static () => { });
                    case Deed.CallsBack:
                        _ = Pool.GetStatistics();
                        _ = Pool.GetChannels();
                        if (Pool.TryAcquire(out var lease))
                        {
                            lease.Dispose();
                        }

                        break;
                    default:
                        Pool.Dispose();
                        break;
                }
            }
            catch (ObjectDisposedException)
            {
            }
            finally
            {
                _isWithin = false;
            }

            return Task.CompletedTask;
        }

        public GrpcChannel Create() => Wait(Run(Code.Create)) ? StubPolicy.NewChannel(new Handler(this)) : null!;

        public bool Return(GrpcChannel obj) => Wait(Run(Code.Return));

        public void AddProvider(ILoggerProvider provider)
        {
        }

        public ILogger CreateLogger(string categoryName) => this;

        public IDisposable? BeginScope<TState>(TState state)
            where TState : notnull => null;

        public bool IsEnabled(LogLevel logLevel) => true;

        public void Log<TState>(LogLevel logLevel, EventId eventId, TState state, Exception? exception, Func<TState, Exception?, string> formatter) => Wait(Run(Code.Logger));

        public void Dispose()
        {
        }

        private static bool Wait(Task? task) => task is not null && task.Wait(Waiting.Long);

        private sealed class Handler(Foreign foreign) : HttpMessageHandler
        {
            protected override Task<HttpResponseMessage> SendAsync(HttpRequestMessage request, CancellationToken cancellationToken) =>
                throw new InvalidOperationException("No call was expected.");

            protected override void Dispose(bool disposing)
            {
                base.Dispose(disposing);
                Wait(foreign.Run(Code.DisposingHandler));
            }
        }
    }
}

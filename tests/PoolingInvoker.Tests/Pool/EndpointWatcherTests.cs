using System.Collections.Concurrent;
using System.Net;
using System.Runtime.CompilerServices;
using Microsoft.AspNetCore.Http.Features;
using Microsoft.Extensions.Primitives;
using Microsoft.Extensions.ServiceDiscovery;
using PoolingInvoker.Testing;

namespace PoolingInvoker.Tests.Pool;

/// <summary>What a pool knows of its endpoints, and when it asks again, in virtual time.</summary>
public sealed class EndpointWatcherTests
{
    private readonly RecordingTime _time = new(DateTimeOffset.UnixEpoch);

    [Fact]
    public async Task TheFirstList_IsGivenToWhoWaits_AndToThePool()
    {
        using var subject = new Subject(_time);
        var first = subject.Watcher.FirstAsync(CancellationToken.None);
        var second = subject.Watcher.FirstAsync(CancellationToken.None);
        (await subject.NextAsync()).Give("10.0.0.1:5000", "10.0.0.2:5000", "10.0.0.1:5000");

        Assert.Equal(["10.0.0.1:5000", "10.0.0.2:5000"], Texts(await first.Soon()));
        Assert.Same(await first, await second.Soon());
        Assert.Same(await first, await subject.Watcher.FirstAsync(CancellationToken.None).Soon());
        Assert.Same(await first, Assert.Single(subject.Lists));
        Assert.Equal(1, subject.Asked);
    }

    [Fact]
    public async Task NothingIsResolved_BeforeSomebodyAsks_AndThenOnce()
    {
        using var subject = new Subject(_time);
        _time.Advance(TimeSpan.FromHours(1));
        Assert.Equal(0, subject.Asked);
        subject.Watcher.RefreshSoon();
        subject.Watcher.RefreshSoon();
        (await subject.NextAsync()).Give("10.0.0.1:5000");
        await Waiting.Until(() => subject.Lists.Count == 1);
        Assert.Equal(1, subject.Asked);
    }

    [Fact]
    public async Task AChange_IsResolvedAgain_ButNotWithinASecond()
    {
        using var subject = new Subject(_time);
        var first = await subject.FirstAsync("10.0.0.1:5000");
        first.Changes();
        await Waiting.Until(() => _time.Dues.Contains(EndpointWatcher.ShortestPause));
        Assert.Equal(1, subject.Asked);
        _time.Advance(EndpointWatcher.ShortestPause);
        var second = await subject.NextAsync();
        second.Give("10.0.0.2:5000");
        await subject.SettledAsync(2);

        _time.Advance(TimeSpan.FromMinutes(1));
        second.Changes();
        (await subject.NextAsync()).Give("10.0.0.3:5000");
        await Waiting.Until(() => subject.Lists.Count == 3);
        Assert.Equal(["10.0.0.3:5000"], Texts(subject.Lists.Last()));
    }

    [Fact]
    public async Task TheSameEndpointsInAnotherOrder_AreNoNewList()
    {
        using var subject = new Subject(_time);
        var first = await subject.FirstAsync("10.0.0.1:5000", "10.0.0.2:5000");
        _time.Advance(TimeSpan.FromMinutes(1));
        first.Changes();
        var second = await subject.NextAsync();
        second.Give("10.0.0.2:5000", "10.0.0.1:5000");
        await Waiting.Until(() => second.IsWatched);
        Assert.Single(subject.Lists);
        Assert.Equal(["10.0.0.1:5000", "10.0.0.2:5000"], Texts(subject.Lists.Last()));
    }

    [Fact]
    public async Task AChangeOfAListThatIsNoLongerTheLast_IsNoChange()
    {
        using var subject = new Subject(_time);
        var first = await subject.FirstAsync("10.0.0.1:5000");
        first.ForgetsToUnregister = true;
        _time.Advance(TimeSpan.FromMinutes(1));
        var second = await subject.RefreshAsync();
        second.Give("10.0.0.2:5000");
        await Waiting.Until(() => second.IsWatched);
        Assert.False(first.IsWatched);
        _time.Advance(TimeSpan.FromMinutes(1));
        first.Changes();
        PassQueue();
        PassQueue();
        Assert.Equal(2, subject.Asked);
        second.Changes();
        (await subject.NextAsync()).Give("10.0.0.3:5000");
        await Waiting.Until(() => subject.Lists.Count == 3);
        Assert.Equal(3, subject.Asked);
    }

    [Fact]
    public async Task AChangeWhileItIsResolved_IsNotLost()
    {
        using var subject = new Subject(_time);
        subject.Watcher.RefreshSoon();
        var first = await subject.NextAsync();
        first.Changes(); // before the list is here: the token has changed when it comes
        first.OnRegistered = PassQueue;
        first.Give("10.0.0.1:5000");
        await Waiting.Until(() => _time.Dues.Contains(EndpointWatcher.ShortestPause));
        _time.Advance(EndpointWatcher.ShortestPause);
        (await subject.NextAsync()).Give("10.0.0.2:5000");
        await Waiting.Until(() => subject.Lists.Count == 2);
    }

    [Fact]
    public async Task ASourceThatCannotSayThatItHasChanged_IsResolvedAgainInAMinute()
    {
        using var subject = new Subject(_time);
        subject.Watcher.RefreshSoon();
        (await subject.NextAsync()).GivePassively("10.0.0.1:5000");
        await subject.SettledAsync(1);
        await Waiting.Until(() => _time.Dues.Contains(EndpointWatcher.PollInterval));
        _time.Advance(EndpointWatcher.PollInterval - TimeSpan.FromTicks(1));
        Assert.Equal(1, subject.Asked);
        _time.Advance(TimeSpan.FromTicks(1));
        (await subject.NextAsync()).Give("10.0.0.2:5000");
        await Waiting.Until(() => subject.Lists.Count == 2);
    }

    [Fact]
    public async Task AFailure_LeavesTheLastList_AndIsTriedAgainLaterAndLater()
    {
        using var subject = new Subject(_time);
        var first = await subject.FirstAsync("10.0.0.1:5000");
        _time.Advance(TimeSpan.FromMinutes(1));
        first.Changes();
        var pause = TimeSpan.FromSeconds(1);
        for (var i = 1; i <= 15; i++)
        {
            var before = _time.Dues.Count;
            (await subject.NextAsync()).Fail(new InvalidOperationException($"failure {i}"));
            await Waiting.Until(() => _time.Dues.Count > before);
            Assert.Equal($"failure {i}", subject.Errors.Last().Message);
            Assert.InRange(_time.Dues[^1], pause * 0.8, pause * 1.2);
            Assert.Equal(["10.0.0.1:5000"], Texts(subject.Lists.Last()));
            pause = pause * 1.6 < TimeSpan.FromSeconds(120) ? pause * 1.6 : TimeSpan.FromSeconds(120);
            _time.Advance(_time.Dues[^1]);
        }

        // When it works again, the next failure begins anew.
        var works = await subject.NextAsync();
        works.Give("10.0.0.1:5000");
        await Waiting.Until(() => works.IsWatched);
        _time.Advance(TimeSpan.FromMinutes(1));
        works.Changes();
        var dues = _time.Dues.Count;
        (await subject.NextAsync()).Fail(new InvalidOperationException());
        await Waiting.Until(() => _time.Dues.Count > dues);
        Assert.InRange(_time.Dues[^1], TimeSpan.FromSeconds(0.8), TimeSpan.FromSeconds(1.2));
        Assert.Single(subject.Lists);
    }

    [Fact]
    public async Task WhoWaitsForTheFirstList_GetsTheError_AndWhoComesLaterTheNextResult()
    {
        using var subject = new Subject(_time);
        var first = subject.Watcher.FirstAsync(CancellationToken.None);
        var error = new InvalidOperationException("no such host");
        (await subject.NextAsync()).Fail(error);
        Assert.Same(error, await Assert.ThrowsAsync<InvalidOperationException>(() => first.Soon()));
        await Waiting.Until(() => _time.Armed == 1);

        var later = subject.Watcher.FirstAsync(CancellationToken.None);
        Assert.False(later.IsCompleted);
        _time.Advance(TimeSpan.FromSeconds(1.2));
        (await subject.NextAsync()).Give("10.0.0.1:5000");
        Assert.Equal(["10.0.0.1:5000"], Texts(await later.Soon()));
        Assert.Equal([error], subject.Errors);
    }

    [Fact]
    public async Task NoEndpoint_IsAFailure_WhoseSourceIsWatched()
    {
        using var subject = new Subject(_time);
        var first = subject.Watcher.FirstAsync(CancellationToken.None);
        var none = await subject.NextAsync();
        none.Give(Array.Empty<string>());
        Assert.Equal("No endpoint was found for 'users:5000'.", (await Assert.ThrowsAsync<InvalidOperationException>(() => first.Soon())).Message);
        await Waiting.Until(() => none.IsWatched && _time.Armed == 1);

        // A second has passed at most, and the backoff may have more to go.
        none.Changes();
        await Waiting.Until(() => _time.Dues[^1] <= EndpointWatcher.ShortestPause);
        _time.Advance(EndpointWatcher.ShortestPause);
        (await subject.NextAsync()).Give("10.0.0.1:5000");
        await Waiting.Until(() => subject.Lists.Count == 1);
    }

    [Fact]
    public async Task AnEndpointThatNoChannelCanGoTo_FailsTheResolution()
    {
        using var subject = new Subject(_time);
        var first = subject.Watcher.FirstAsync(CancellationToken.None);
        (await subject.NextAsync()).Give(new System.Net.Sockets.UnixDomainSocketEndPoint("/run/users.sock"));
        var exception = await Assert.ThrowsAsync<InvalidOperationException>(() => first.Soon());
        Assert.Contains("'/run/users.sock'", exception.Message, StringComparison.Ordinal);
    }

    [Fact]
    public async Task ADelegateThatThrowsAtOnce_OrGivesNothing_FailsTheResolution()
    {
        var pool = new Listener();
        using (var throws = new EndpointWatcher(Subject.Name, _ => throw new NotSupportedException(), _time, Random.Shared, pool))
        {
            await Assert.ThrowsAsync<NotSupportedException>(() => throws.FirstAsync(CancellationToken.None).Soon());
        }

        using var nothing = new EndpointWatcher(Subject.Name, _ => new ValueTask<ServiceEndpointSource>((ServiceEndpointSource)null!), _time, Random.Shared, pool);
        await Assert.ThrowsAsync<InvalidOperationException>(() => nothing.FirstAsync(CancellationToken.None).Soon());
        Assert.Equal(2, pool.Errors.Count);
    }

    [Fact]
    public async Task WhenConnectionsFail_ItIsResolvedAtOnce_ButNotWithinFiveSeconds()
    {
        using var subject = new Subject(_time);
        await subject.FirstAsync("10.0.0.1:5000");
        _time.Advance(TimeSpan.FromSeconds(2));
        await Waiting.Until(() =>
        {
            subject.Watcher.RefreshSoon();
            return _time.Armed == 1;
        });
        Assert.Equal([TimeSpan.FromSeconds(3)], _time.Dues);
        _time.Advance(TimeSpan.FromSeconds(3));
        var second = await subject.NextAsync();

        // While it is resolved nobody asks for more.
        subject.Watcher.RefreshSoon();
        second.Give("10.0.0.2:5000");
        await subject.SettledAsync(2);
        _time.Advance(TimeSpan.FromSeconds(5));
        Assert.Equal(2, subject.Asked);
        (await subject.RefreshAsync()).Give("10.0.0.3:5000");
        await Waiting.Until(() => subject.Lists.Count == 3);
    }

    [Fact]
    public async Task WhenConnectionsFail_ThePauseAfterAFailedResolutionStays()
    {
        using var subject = new Subject(_time);
        var first = await subject.FirstAsync("10.0.0.1:5000");
        _time.Advance(TimeSpan.FromMinutes(1));
        first.Changes();
        for (var i = 0; i < 6; i++)
        {
            var before = _time.Dues.Count;
            (await subject.NextAsync()).Fail(new InvalidOperationException());
            await Waiting.Until(() => _time.Dues.Count > before);
            if (i < 5)
            {
                _time.Advance(_time.Dues[^1]);
            }
        }

        // 1.6^5 s, about ten.
        _time.Advance(TimeSpan.FromSeconds(6));
        PassQueue();
        subject.Watcher.RefreshSoon();
        PassQueue();
        PassQueue();
        Assert.True(_time.Dues[^1] > TimeSpan.FromSeconds(8));
        Assert.Equal(7, subject.Asked);
    }

    [Fact]
    public async Task WhoeverAsksMeanwhile_ThereIsOneResolutionAtATime()
    {
        var atATime = 0;
        var most = 0;
        var pool = new Listener();
        List<CancellationTokenSource> changes = [];
        using var watcher = new EndpointWatcher(Subject.Name, ResolveAsync, _time, Random.Shared, pool);
        await watcher.FirstAsync(CancellationToken.None).Soon();
        for (var round = 2; round < 200; round++)
        {
            // A change, a refresh and the end of the pause, all at once.
            var refreshing = Task.Run(watcher.RefreshSoon);
            var changing = Task.Run(changes[^1].Cancel);
            var passing = Task.Run(() => _time.Advance(TimeSpan.FromSeconds(5)));
            await Task.WhenAll(refreshing, changing, passing).Soon();
            await Waiting.Until(() =>
            {
                _time.Advance(TimeSpan.FromSeconds(1));
                return pool.Lists.Count >= round;
            });
        }

        Assert.Equal(1, most);

        async ValueTask<ServiceEndpointSource> ResolveAsync(CancellationToken cancellationToken)
        {
            most = Math.Max(most, Interlocked.Increment(ref atATime));
            await Task.Yield();
            var change = new CancellationTokenSource();
            changes.Add(change);
            var source = new ServiceEndpointSource([ServiceEndpoint.Create(new IPEndPoint(IPAddress.Loopback, changes.Count))], new CancellationChangeToken(change.Token), new FeatureCollection());
            Interlocked.Decrement(ref atATime);
            return source;
        }
    }

    [Fact]
    public async Task AfterDispose_NothingMoreHappens_AndWhoWaitsIsTold()
    {
        var subject = new Subject(_time);
        var waiting = subject.Watcher.FirstAsync(CancellationToken.None);
        var first = await subject.NextAsync();
        subject.Dispose();
        subject.Dispose();
        await Assert.ThrowsAsync<ObjectDisposedException>(() => waiting.Soon());
        await Assert.ThrowsAsync<ObjectDisposedException>(() => subject.Watcher.FirstAsync(CancellationToken.None).Soon());
        await Waiting.Until(() => first.Token.IsCancellationRequested);

        first.Give("10.0.0.1:5000");
        await Waiting.Until(() => first.WasWatched && !first.IsWatched);
        subject.Watcher.RefreshSoon();
        subject.Watcher.RefreshSoon();
        first.Changes();
        _time.Advance(TimeSpan.FromHours(1));
        Assert.Empty(subject.Lists);
        Assert.Empty(subject.Errors);
        Assert.Equal(1, subject.Asked);
        Assert.Equal(0, _time.Armed);
    }

    [Fact]
    public async Task AResolutionThatFailsBecauseOfTheDispose_IsNotTold()
    {
        var subject = new Subject(_time);
        await subject.FirstAsync("10.0.0.1:5000");
        _time.Advance(TimeSpan.FromSeconds(5));
        var second = await subject.RefreshAsync();
        subject.Dispose();
        await Waiting.Until(() => second.Token.IsCancellationRequested);
        second.Fail(new OperationCanceledException(second.Token));
        _time.Advance(TimeSpan.FromHours(1));
        Assert.Empty(subject.Errors);
        Assert.Equal(0, _time.Armed);
    }

    [Fact]
    public async Task WhoNoLongerWaits_TakesNothingWithThem()
    {
        using var subject = new Subject(_time);
        using var impatient = new CancellationTokenSource();
        var gone = subject.Watcher.FirstAsync(impatient.Token);
        var patient = subject.Watcher.FirstAsync(CancellationToken.None);
        await impatient.CancelAsync();
        await Assert.ThrowsAnyAsync<OperationCanceledException>(() => gone.Soon());
        (await subject.NextAsync()).Give("10.0.0.1:5000");
        Assert.Single(await patient.Soon());
    }

    [Fact]
    public async Task TheContextOfWhoAsks_StaysWithThem()
    {
        var context = new AsyncLocal<string?> { Value = "of the call" };
        var seen = new ConcurrentQueue<string?>();
        using var subject = new Subject(_time, () => seen.Enqueue(context.Value));
        _ = subject.Watcher.FirstAsync(CancellationToken.None);
        var first = await subject.NextAsync();
        first.Give("10.0.0.1:5000");
        await subject.SettledAsync(1);
        _time.Advance(TimeSpan.FromMinutes(1));
        first.Changes();
        var second = await subject.NextAsync();
        second.Give("10.0.0.2:5000");
        await subject.SettledAsync(2);
        _time.Advance(TimeSpan.FromSeconds(5));
        await subject.RefreshAsync();
        Assert.Equal([null, null, null, null, null], seen); // three resolutions, two lists
    }

    [Fact]
    public async Task AChangeThatIsMadeUnderALock_DoesNotWaitForIt()
    {
        var theirs = new object();
        using var subject = new Subject(_time, () =>
        {
            lock (theirs)
            {
            }
        });
        var first = await subject.FirstAsync("10.0.0.1:5000");
        _time.Advance(TimeSpan.FromMinutes(1));
        lock (theirs)
        {
            first.Changes();
            subject.Watcher.RefreshSoon();
            Assert.Single(subject.Lists);
        }

        (await subject.NextAsync()).Give("10.0.0.2:5000");
        await Waiting.Until(() => subject.Lists.Count == 2);
    }

    [Theory]
    [InlineData(Stage.Resolving)]
    [InlineData(Stage.Watching)]
    [InlineData(Stage.Pausing)]
    public async Task AForgottenPool_IsCollected_AndItsWatcherEnds(Stage stage)
    {
        var resolutions = new ConcurrentQueue<Resolution>();
        var (watcher, pool) = await ForgetAsync(_time, resolutions, stage);
        await Waiting.Until(() =>
        {
            GC.Collect();
            return !pool.IsAlive;
        });
        Assert.True(resolutions.TryPeek(out var resolution));
        resolution.Give("10.0.0.9:5000");
        resolution.Changes();
        await Waiting.Until(() =>
        {
            _time.Advance(TimeSpan.FromSeconds(1));
            GC.Collect();
            return !watcher.IsAlive;
        });
        Assert.Single(resolutions);
        Assert.False(resolution.IsWatched);
    }

    public enum Stage
    {
        Resolving,
        Watching,
        Pausing,
    }

    // What was queued to the thread pool before has begun, and has very likely ended.
    private static void PassQueue()
    {
        using var passed = new ManualResetEventSlim();
        for (var i = 0; i < 10; i++)
        {
            passed.Reset();
            ThreadPool.UnsafeQueueUserWorkItem(static passed => passed.Set(), passed, preferLocal: false);
            Assert.True(passed.Wait(Waiting.Long));
        }
    }

    private static IEnumerable<string> Texts(IReadOnlyList<ChannelEndpoint> endpoints) => endpoints.Select(static endpoint => endpoint.ToString());

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static async Task<(WeakReference Watcher, WeakReference Pool)> ForgetAsync(RecordingTime time, ConcurrentQueue<Resolution> resolutions, Stage stage)
    {
        var pool = new Listener();
        var watcher = new EndpointWatcher(Subject.Name, Resolution.Into(resolutions), time, Random.Shared, pool);
        watcher.RefreshSoon();
        await Waiting.Until(() => resolutions.Count == 1);
        resolutions.TryPeek(out var resolution);
        if (stage == Stage.Watching)
        {
            resolution!.Give("10.0.0.1:5000");
            await Waiting.Until(() => resolution.IsWatched);
        }
        else if (stage == Stage.Pausing)
        {
            resolution!.Fail(new InvalidOperationException());
            await Waiting.Until(() => time.Armed == 1);
        }

        return (new WeakReference(watcher), new WeakReference(pool));
    }

    /// <summary>What a pool is told.</summary>
    private sealed class Listener(Action? onForeign = null) : IEndpointListener
    {
        public ConcurrentQueue<IReadOnlyList<ChannelEndpoint>> Lists { get; } = new();

        public ConcurrentQueue<Exception> Errors { get; } = new();

        public void EndpointsChanged(IReadOnlyList<ChannelEndpoint> endpoints)
        {
            onForeign?.Invoke();
            Lists.Enqueue(endpoints);
        }

        public void ResolutionFailed(Exception error) => Errors.Enqueue(error);
    }

    /// <summary>A watcher, what it was asked to resolve, and what it said.</summary>
    private sealed class Subject : IDisposable
    {
        public static readonly Uri Name = new("http://users:5000");
        private readonly ConcurrentQueue<Resolution> _resolutions = new();
        private readonly Listener _pool;
        private int _taken;

        public Subject(TimeProvider time, Action? onForeign = null)
        {
            var resolve = Resolution.Into(_resolutions);
            _pool = new Listener(onForeign);
            Watcher = new EndpointWatcher(Name, ResolveAsync, time, Random.Shared, _pool);

            ValueTask<ServiceEndpointSource> ResolveAsync(CancellationToken cancellationToken)
            {
                onForeign?.Invoke();
                return resolve(cancellationToken);
            }
        }

        public EndpointWatcher Watcher { get; }

        public ConcurrentQueue<IReadOnlyList<ChannelEndpoint>> Lists => _pool.Lists;

        public ConcurrentQueue<Exception> Errors => _pool.Errors;

        public int Asked => _resolutions.Count;

        public async Task<Resolution> NextAsync()
        {
            await Waiting.Until(() => Asked > _taken);
            return _resolutions.ElementAt(_taken++);
        }

        /// <summary>Asks for a refresh, which is not heard before the end of the last resolution.</summary>
        public async Task<Resolution> RefreshAsync()
        {
            await Waiting.Until(() =>
            {
                Watcher.RefreshSoon();
                return Asked > _taken;
            });
            return await NextAsync();
        }

        public async Task<Resolution> FirstAsync(params string[] endpoints)
        {
            Watcher.RefreshSoon();
            var first = await NextAsync();
            first.Give(endpoints);
            await SettledAsync(1);
            return first;
        }

        public async Task SettledAsync(int lists)
        {
            await Waiting.Until(() => Lists.Count == lists);
            var last = _resolutions.Last();
            await Waiting.Until(() => last.IsWatched || last.IsPassive);
        }

        public void Dispose() => Watcher.Dispose();
    }

    /// <summary>One resolution, whose end the test decides.</summary>
    private sealed class Resolution : IChangeToken
    {
        private readonly TaskCompletionSource<ServiceEndpointSource> _result = new(TaskCreationOptions.RunContinuationsAsynchronously);
        private readonly CancellationTokenSource _changed = new();
        private int _registrations;

        public CancellationToken Token { get; private init; }

        public bool HasChanged => _changed.IsCancellationRequested;

        public bool ActiveChangeCallbacks => !IsPassive;

        public bool IsPassive { get; private set; }

        public bool IsWatched => Volatile.Read(ref _registrations) > 0;

        public bool WasWatched { get; private set; }

        public bool ForgetsToUnregister { get; set; }

        public Action? OnRegistered { get; set; }

        public static Func<CancellationToken, ValueTask<ServiceEndpointSource>> Into(ConcurrentQueue<Resolution> resolutions) => token =>
        {
            var resolution = new Resolution { Token = token };
            resolutions.Enqueue(resolution);
            return new ValueTask<ServiceEndpointSource>(resolution._result.Task);
        };

        public void Give(params string[] endpoints) => Give([.. endpoints.Select(IPEndPoint.Parse)]);

        public void Give(params EndPoint[] endpoints) =>
            _result.TrySetResult(new ServiceEndpointSource([.. endpoints.Select(static endpoint => ServiceEndpoint.Create(endpoint))], this, new FeatureCollection()));

        public void GivePassively(params string[] endpoints)
        {
            IsPassive = true;
            Give(endpoints);
        }

        public void Fail(Exception error) => _result.TrySetException(error);

        public void Changes() => _changed.Cancel();

        public IDisposable RegisterChangeCallback(Action<object?> callback, object? state)
        {
            var registration = _changed.Token.UnsafeRegister(callback, state);
            Interlocked.Increment(ref _registrations);
            WasWatched = true;
            OnRegistered?.Invoke();
            return new Registration(this, registration);
        }

        private sealed class Registration(Resolution resolution, CancellationTokenRegistration inner) : IDisposable
        {
            public void Dispose()
            {
                if (!resolution.ForgetsToUnregister)
                {
                    inner.Dispose();
                }

                Interlocked.Decrement(ref resolution._registrations);
            }
        }
    }
}

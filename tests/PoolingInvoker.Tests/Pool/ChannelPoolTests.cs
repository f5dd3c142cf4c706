using Microsoft.Extensions.Time.Testing;
using PoolingInvoker.Testing;

namespace PoolingInvoker.Tests.Pool;

public sealed class ChannelPoolTests : IDisposable
{
    private readonly FakeTimeProvider _time = new();
    private readonly StubPolicy _policy = new();
    private readonly List<ChannelPool> _pools = [];

    public void Dispose() => _pools.ForEach(static pool => pool.Dispose());

    [Fact]
    public async Task ALease_IsCountedFromThePickToTheReturn_AndReturnedOnce()
    {
        var pool = NewPool(capacity: 2);
        AssertPool(pool, channels: 0, idle: 0, inFlight: 0);

        var first = await pool.AcquireAsync().Soon();
        AssertPool(pool, channels: 1, idle: 0, inFlight: 1);
        var second = await pool.AcquireAsync().Soon();
        Assert.Same(first.Channel, second.Channel);
        AssertPool(pool, channels: 1, idle: 0, inFlight: 2);

        first.Dispose();
        first.Dispose();
        AssertPool(pool, channels: 1, idle: 0, inFlight: 1);
        Assert.Throws<ObjectDisposedException>(() => first.Channel);
        Assert.Throws<ObjectDisposedException>(() => first.CallInvoker);

        second.Dispose();
        AssertPool(pool, channels: 1, idle: 1, inFlight: 0);
    }

    [Fact]
    public async Task ThePool_GrowsWhenThereIsNoRoom_UpToItsMaximum()
    {
        var pool = NewPool(capacity: 2, max: 3);
        var leases = new List<ChannelLease>();
        for (var i = 0; i < 6; i++)
        {
            leases.Add(await pool.AcquireAsync().Soon());
            AssertPool(pool, channels: (i / 2) + 1, inFlight: i + 1);
        }

        Assert.All(leases.GroupBy(static lease => lease.Channel), static channel => Assert.Equal(2, channel.Count()));
        Assert.False(pool.TryAcquire(out _));
        AssertPool(pool, channels: 3, inFlight: 6);
    }

    [Fact]
    public async Task ThePool_MakesMinPoolSizeChannels_BeforeItSharesOne()
    {
        var pool = NewPool(capacity: 100, min: 3, max: 5);
        for (var i = 0; i < 9; i++)
        {
            _ = await pool.AcquireAsync().Soon();
        }

        AssertPool(pool, channels: 3, inFlight: 9);
        Assert.Equal(3, _policy.Created.Count);
    }

    [Fact]
    public async Task Waiters_AreServedFirstComeFirstServed()
    {
        var pool = NewPool(capacity: 1, max: 1);
        var held = await pool.AcquireAsync().Soon();
        var waiting = Enumerable.Range(0, 5).Select(_ => pool.AcquireAsync().AsTask()).ToList();
        AssertPool(pool, channels: 1, inFlight: 1, waiting: 5);

        for (var i = 0; i < 5; i++)
        {
            held.Dispose();
            held = await waiting[i].Soon();
            Assert.All(waiting.Skip(i + 1), static waiter => Assert.False(waiter.IsCompleted));
            AssertPool(pool, channels: 1, inFlight: 1, waiting: 4 - i);
        }

        held.Dispose();
        AssertPool(pool, channels: 1, idle: 1, inFlight: 0);
    }

    [Fact]
    public async Task ANewcomer_DoesNotOvertakeAWaiter()
    {
        var pool = NewPool(capacity: 1, max: 1);
        var held = await pool.AcquireAsync().Soon();
        var waiting = pool.AcquireAsync().AsTask();

        held.Dispose();
        Assert.False(pool.TryAcquire(out _));
        (await waiting.Soon()).Dispose();
        Assert.True(pool.TryAcquire(out _));
    }

    [Fact]
    public async Task ACancelledWaiter_TakesNothing_AndTheNextIsServed()
    {
        var pool = NewPool(capacity: 1, max: 1);
        var held = await pool.AcquireAsync().Soon();
        using var cancellation = new CancellationTokenSource();
        var cancelled = pool.AcquireAsync(cancellation.Token).AsTask();
        var next = pool.AcquireAsync().AsTask();

        await cancellation.CancelAsync();
        var exception = await Assert.ThrowsAnyAsync<OperationCanceledException>(() => cancelled.Soon());
        Assert.Equal(cancellation.Token, exception.CancellationToken);
        AssertPool(pool, inFlight: 1, waiting: 1);

        held.Dispose();
        (await next.Soon()).Dispose();
        AssertPool(pool, inFlight: 0, idle: 1);
    }

    [Fact]
    public async Task AWaiterThatIsCancelledInTheMomentItIsServed_PassesItOn()
    {
        // The lease is granted and the token fires before the waiter has run again: both are done before it does.
        for (var i = 0; i < 200; i++)
        {
            var pool = NewPool(capacity: 1, max: 1);
            var held = await pool.AcquireAsync().Soon();
            using var cancellation = new CancellationTokenSource();
            var racing = pool.AcquireAsync(cancellation.Token).AsTask();
            var next = pool.AcquireAsync().AsTask();

            await Task.WhenAll(Task.Run(held.Dispose), Task.Run(cancellation.Cancel)).Soon();
            try
            {
                (await racing.Soon()).Dispose();
            }
            catch (OperationCanceledException)
            {
                // The token was first.
            }

            (await next.Soon()).Dispose();
            AssertPool(pool, channels: 1, idle: 1, inFlight: 0);
        }
    }

    [Fact]
    public async Task AcquireTimeout_SaysWhyThePoolHasNotGrown_AndDoesNotAdviseAnotherSize()
    {
        var pool = NewPool(capacity: 1, max: 2, acquireTimeout: TimeSpan.FromSeconds(5));
        _ = await pool.AcquireAsync().Soon();
        _policy.OnCreate = static () => throw new TimeoutException("no dial tone");
        var waiting = pool.AcquireAsync().AsTask();
        for (var i = 0; i < 500; i++)
        {
            _time.Advance(TimeSpan.FromMilliseconds(10));
        }

        var exception = await Assert.ThrowsAsync<ChannelPoolExhaustedException>(() => waiting.Soon());
        Assert.Equal(
            "No channel became free within 5 s (channels 1, in flight 1, waiting 0). The pool may have 2, but another could not be made and connected: StubPolicy.Create did not make a channel: no dial tone",
            exception.Message);
    }

    [Fact]
    public async Task AcquireTimeout_SaysHowFullThePoolIs_AndWhatToRaise()
    {
        var pool = NewPool(capacity: 2, max: 1, acquireTimeout: TimeSpan.FromSeconds(5));
        _ = await pool.AcquireAsync().Soon();
        _ = await pool.AcquireAsync().Soon();
        var waiting = pool.AcquireAsync().AsTask();
        _time.Advance(TimeSpan.FromSeconds(4.9));
        Assert.False(waiting.IsCompleted);
        _time.Advance(TimeSpan.FromSeconds(0.1));

        var exception = await Assert.ThrowsAsync<ChannelPoolExhaustedException>(() => waiting.Soon());
        Assert.Equal(
            "No channel became free within 5 s (channels 1, in flight 2, waiting 0). Raise Pool.MaxPoolSize (1), Pool.MaxConcurrentCallsPerChannel (2) or Pool.AcquireTimeout.",
            exception.Message);
        Assert.Equal(
            (1, 1, 2, 0, 100, TimeSpan.FromSeconds(5)),
            (exception.Channels, exception.MaxPoolSize, exception.CallsInFlight, exception.CallsWaiting, exception.MaxCallsWaiting, exception.Waited));
        AssertPool(pool, channels: 1, inFlight: 2, waiting: 0);
    }

    [Fact]
    public async Task TryAcquire_GivesNothing_AlsoWhenTheLineIsFull()
    {
        var pool = NewPool(capacity: 1, max: 1, maxWaiting: 0);
        _ = await pool.AcquireAsync().Soon();
        Assert.False(pool.TryAcquire(out _));
    }

    [Fact]
    public async Task ANewcomer_DoesNotOvertakeThoseInLine_WhenChannelsCanBeMadeAgain()
    {
        var pool = NewPool(capacity: 1, max: 2);
        _ = await pool.AcquireAsync().Soon();
        _policy.OnCreate = static () => throw new TimeoutException("no dial tone");
        var first = pool.AcquireAsync().AsTask();
        AssertPool(pool, inFlight: 1, waiting: 1);

        _policy.OnCreate = StubPolicy.NewChannel;
        var second = pool.AcquireAsync().AsTask();
        (await first.Soon()).Dispose();
        (await second.Soon()).Dispose();
    }

    [Fact]
    public async Task MaxCallsWaiting_RefusesAtOnce()
    {
        var pool = NewPool(capacity: 1, max: 1, maxWaiting: 1);
        _ = await pool.AcquireAsync().Soon();
        _ = pool.AcquireAsync().AsTask();

        var exception = await Assert.ThrowsAsync<ChannelPoolExhaustedException>(() => pool.AcquireAsync().Soon());
        Assert.Contains("(channels 1, in flight 1, waiting 1)", exception.Message, StringComparison.Ordinal);
        Assert.Contains("Pool.MaxCallsWaiting (1)", exception.Message, StringComparison.Ordinal);
        Assert.Equal(
            (1, 1, 1, 1, 1, TimeSpan.Zero),
            (exception.Channels, exception.MaxPoolSize, exception.CallsInFlight, exception.CallsWaiting, exception.MaxCallsWaiting, exception.Waited));
        Assert.Equal(exception.Message, Assert.Throws<ChannelPoolExhaustedException>(pool.Get).Message);
    }

    [Fact]
    public async Task GetWaits_AsAcquireAsyncDoes()
    {
        var pool = NewPool(capacity: 1, max: 1);
        var first = pool.Get();
        var second = Task.Run(pool.Get);
        await Waiting.Until(() => pool.GetStatistics().CallsWaiting == 1);

        pool.Return(first);
        Assert.Same(first, await second.Soon());
        pool.Return(first);
        AssertPool(pool, channels: 1, idle: 1, inFlight: 0);
    }

    [Fact]
    public void Return_OfAForeignChannel_IsAnError()
    {
        var pool = NewPool();
        using var foreign = StubPolicy.NewChannel();
        var exception = Assert.Throws<ArgumentException>(() => pool.Return(foreign));
        Assert.Contains("not one of this pool's", exception.Message, StringComparison.Ordinal);
        Assert.Throws<ArgumentNullException>(() => pool.Return(null!));
    }

    [Fact]
    public void ReturnTwice_IsAnError_AndTakesNobodyElsesLease()
    {
        var pool = NewPool(capacity: 2);
        var channel = pool.Get();
        Assert.True(pool.TryAcquire(out var lease));
        Assert.Same(channel, lease.Channel);

        pool.Return(channel);
        var exception = Assert.Throws<InvalidOperationException>(() => pool.Return(channel));
        Assert.Contains("returned more often than Get gave it", exception.Message, StringComparison.Ordinal);
        AssertPool(pool, channels: 1, inFlight: 1);
    }

    [Fact]
    public async Task GetAndReturn_RaceOnAChannelThatTheyShare()
    {
        var pool = NewPool(capacity: 100, max: 1);
        await Task.WhenAll(Enumerable.Range(0, 4).Select(_ => Task.Run(() =>
        {
            for (var i = 0; i < 100_000; i++)
            {
                pool.Return(pool.Get());
            }
        }))).Soon();
        AssertPool(pool, channels: 1, idle: 1, inFlight: 0);
    }

    [Fact]
    public async Task AfterDispose_NothingIsGivenOut_AndLateReturnsAreHarmless()
    {
        var pool = NewPool(capacity: 1, max: 2);
        var lease = await pool.AcquireAsync().Soon();
        var explicitly = pool.Get();
        var waiting = pool.AcquireAsync().AsTask();

        pool.Dispose();
        pool.Dispose();
        await pool.DisposeAsync();

        await Assert.ThrowsAsync<ObjectDisposedException>(() => waiting.Soon());
        await Assert.ThrowsAsync<ObjectDisposedException>(() => pool.AcquireAsync().Soon());
        await Assert.ThrowsAsync<ObjectDisposedException>(() => pool.ConnectAsync().Soon());
        Assert.Throws<ObjectDisposedException>(() => pool.TryAcquire(out _));
        Assert.Throws<ObjectDisposedException>(pool.Get);
        Assert.All(_policy.Created, static channel => Assert.True(StubPolicy.IsDisposed(channel)));

        lease.Dispose();
        pool.Return(explicitly);
    }

    [Fact]
    public async Task DisposeAsync_WaitsForLeases_UpToDrainTimeout()
    {
        var pool = NewPool(capacity: 1, max: 2, drainTimeout: TimeSpan.FromSeconds(10));
        var first = await pool.AcquireAsync().Soon();
        var second = await pool.AcquireAsync().Soon();
        var (firstChannel, secondChannel) = (first.Channel, second.Channel);

        var disposing = pool.DisposeAsync().AsTask();
        AssertPool(pool, channels: 0, draining: 2, inFlight: 2);
        first.Dispose();
        Assert.True(StubPolicy.IsDisposed(firstChannel));
        Assert.False(StubPolicy.IsDisposed(secondChannel));
        Assert.False(disposing.IsCompleted);

        _time.Advance(TimeSpan.FromSeconds(10));
        await disposing.Soon();
        Assert.True(StubPolicy.IsDisposed(secondChannel));
        second.Dispose();
        AssertPool(pool, channels: 0, draining: 0, inFlight: 0);
    }

    [Fact]
    public async Task DisposeAsync_EndsWithTheLastLease()
    {
        var pool = NewPool();
        var lease = await pool.AcquireAsync().Soon();
        var disposing = pool.DisposeAsync().AsTask();
        Assert.False(disposing.IsCompleted);

        lease.Dispose();
        await disposing.Soon();
    }

    [Fact]
    public async Task ThePolicy_IsAskedAtEachReturn_AndAChannelThatItDoesNotWantIsReplaced()
    {
        var pool = NewPool(capacity: 2);
        var first = await pool.AcquireAsync().Soon();
        var second = await pool.AcquireAsync().Soon();
        var old = first.Channel;
        _policy.OnReturn = channel => channel != old;

        first.Dispose();
        AssertPool(pool, channels: 1, draining: 1, inFlight: 1, replaced: 1);
        Assert.False(StubPolicy.IsDisposed(old));
        Assert.Same(old, second.Channel);
        var third = await pool.AcquireAsync().Soon();
        Assert.NotSame(old, third.Channel);

        second.Dispose();
        Assert.True(StubPolicy.IsDisposed(old));
        AssertPool(pool, channels: 1, draining: 0, inFlight: 1, replaced: 1);
    }

    [Fact]
    public async Task APolicyThatThrowsAtReturn_DoesNotWantTheChannel()
    {
        var pool = NewPool();
        var lease = await pool.AcquireAsync().Soon();
        _policy.OnReturn = static _ => throw new InvalidOperationException("no idea");

        lease.Dispose();
        AssertPool(pool, channels: 1, inFlight: 0, replaced: 1);
        Assert.True(StubPolicy.IsDisposed(_policy.Created[0]));
    }

    [Fact]
    public async Task APolicyThatThrowsOrReturnsNull_IsSaidSo_AndBlocksNobody()
    {
        var pool = NewPool(capacity: 1, max: 1);
        _policy.OnCreate = static () => throw new TimeoutException("no dial tone");
        var thrown = await Assert.ThrowsAsync<InvalidOperationException>(() => pool.AcquireAsync().Soon());
        Assert.Equal("StubPolicy.Create did not make a channel: no dial tone", thrown.Message);
        Assert.IsType<TimeoutException>(thrown.InnerException);

        _policy.OnCreate = static () => null;
        var none = Assert.Throws<InvalidOperationException>(() => pool.TryAcquire(out _));
        Assert.Contains("it returned null", none.Message, StringComparison.Ordinal);

        AssertPool(pool, channels: 0, inFlight: 0);
        _policy.OnCreate = StubPolicy.NewChannel;
        (await pool.AcquireAsync().Soon()).Dispose();
    }

    [Fact]
    public async Task APolicyThatReturnsTheSameChannelTwice_IsSaidSo()
    {
        var pool = NewPool(capacity: 1, max: 2, acquireTimeout: TimeSpan.FromSeconds(5));
        using var only = StubPolicy.NewChannel();
        _policy.OnCreate = () => only;
        var lease = await pool.AcquireAsync().Soon();

        Assert.Contains("in the pool already", Assert.Throws<InvalidOperationException>(() => pool.TryAcquire(out _)).Message, StringComparison.Ordinal);

        // Who can wait waits: there is a channel that will have room.
        var waiting = pool.AcquireAsync().AsTask();
        _time.Advance(TimeSpan.FromSeconds(5));
        var exception = await Assert.ThrowsAsync<ChannelPoolExhaustedException>(() => waiting.Soon());
        Assert.Contains("in the pool already", exception.InnerException!.Message, StringComparison.Ordinal);
        AssertPool(pool, channels: 1, inFlight: 1);
        lease.Dispose();
    }

    [Fact]
    public async Task WhenTheMinimumCannotBeMade_TheChannelsThatThereAreDo()
    {
        var pool = NewPool(capacity: 2, min: 2);
        _policy.OnCreate = () => _policy.Created.Count == 0 ? StubPolicy.NewChannel() : throw new TimeoutException("no dial tone");
        var first = await pool.AcquireAsync().Soon();
        var second = await pool.AcquireAsync().Soon();
        Assert.Same(first.Channel, second.Channel);
        Assert.Throws<InvalidOperationException>(() => pool.TryAcquire(out _)); // the one that there is has no room
        AssertPool(pool, channels: 1, inFlight: 2);

        first.Dispose();
        Assert.True(pool.TryAcquire(out var third));
        third.Dispose();
        second.Dispose();
    }

    [Fact]
    public async Task AFailedCreation_LeavesThoseInLineWhereTheyAre()
    {
        var pool = NewPool(capacity: 1, max: 2);
        var held = await pool.AcquireAsync().Soon();
        _policy.OnCreate = static () => throw new TimeoutException("no dial tone");
        var waiting = Enumerable.Range(0, 5).Select(_ => pool.AcquireAsync().AsTask()).ToList();

        // With each that comes the first in line tries, and then goes on waiting.
        await Waiting.Until(() => pool.GetStatistics() is { Channels: 1, CallsWaiting: 5 });
        Assert.All(waiting, static waiter => Assert.False(waiter.IsCompleted));

        for (var i = 0; i < 5; i++)
        {
            held.Dispose();
            held = await waiting[i].Soon();
            AssertPool(pool, channels: 1, inFlight: 1, waiting: 4 - i);
        }

        held.Dispose();
    }

    [Theory]
    [InlineData("AcquireTimeout")]
    [InlineData("MaxCallsWaiting")]
    public async Task WhileAChannelIsMade_WhoCannotWaitForItMakesAnother(string nowait)
    {
        var pool = nowait == "AcquireTimeout" ? NewPool(capacity: 10, acquireTimeout: TimeSpan.Zero) : NewPool(capacity: 10, maxWaiting: 0);
        using var creating = new ManualResetEventSlim();
        using var mayGoOn = new ManualResetEventSlim();
        _policy.OnCreate = () =>
        {
            creating.Set();
            mayGoOn.Wait(Waiting.Long);
            return StubPolicy.NewChannel();
        };
        var first = Task.Run(() => pool.AcquireAsync().AsTask());
        Assert.True(creating.Wait(Waiting.Long));
        _policy.OnCreate = StubPolicy.NewChannel;
        (await pool.AcquireAsync().Soon()).Dispose();

        mayGoOn.Set();
        (await first.Soon()).Dispose();
        AssertPool(pool, channels: 2, idle: 2, inFlight: 0);
    }

    [Fact]
    public async Task WhenACreationFails_TheNextInLineTriesInItsTurn()
    {
        var pool = NewPool(capacity: 10, max: 1);
        using var creating = new ManualResetEventSlim();
        using var mayFail = new ManualResetEventSlim();
        _policy.OnCreate = () =>
        {
            creating.Set();
            mayFail.Wait(Waiting.Long);
            throw new TimeoutException("no dial tone");
        };
        var first = Task.Run(() => pool.AcquireAsync().AsTask());
        Assert.True(creating.Wait(Waiting.Long));
        var second = pool.AcquireAsync().AsTask(); // room is on its way, so it waits for that
        AssertPool(pool, channels: 1, inFlight: 0, waiting: 2);

        _policy.OnCreate = StubPolicy.NewChannel;
        mayFail.Set();
        await Assert.ThrowsAsync<InvalidOperationException>(() => first.Soon());
        (await second.Soon()).Dispose();
        AssertPool(pool, channels: 1, idle: 1, inFlight: 0);
    }

    [Fact]
    public async Task WhileAChannelIsMade_CallersThatItWillCarryMakeNone()
    {
        var pool = NewPool(capacity: 3, max: 10);
        using var creating = new ManualResetEventSlim();
        using var mayGoOn = new ManualResetEventSlim();
        var created = 0;
        _policy.OnCreate = () =>
        {
            if (Interlocked.Increment(ref created) == 1)
            {
                creating.Set();
                mayGoOn.Wait(Waiting.Long);
            }

            return StubPolicy.NewChannel();
        };
        var first = Task.Run(() => pool.AcquireAsync().AsTask());
        Assert.True(creating.Wait(Waiting.Long));
        var second = pool.AcquireAsync().AsTask();
        var third = pool.AcquireAsync().AsTask();
        Assert.Equal(1, created);
        var fourth = pool.AcquireAsync().AsTask(); // one more than that channel will carry: the first in line makes another
        (await second.Soon()).Dispose();
        Assert.Equal(2, Volatile.Read(ref created));

        mayGoOn.Set();
        var leases = await Task.WhenAll(first, third, fourth).Soon();
        AssertPool(pool, channels: 2, inFlight: 3);
        Array.ForEach(leases, static lease => lease.Dispose());
        AssertPool(pool, channels: 2, idle: 2, inFlight: 0);
    }

    [Fact]
    public async Task IdleChannels_AreClosedAboveTheMinimum()
    {
        var pool = NewPool(capacity: 1, min: 1, max: 4, idleTimeout: TimeSpan.FromMinutes(10));
        var leases = new[] { await pool.AcquireAsync().Soon(), await pool.AcquireAsync().Soon(), await pool.AcquireAsync().Soon() };
        leases[0].Dispose();
        leases[1].Dispose();
        _time.Advance(TimeSpan.FromMinutes(9));
        AssertPool(pool, channels: 3, idle: 2, inFlight: 1);

        _time.Advance(TimeSpan.FromMinutes(2));
        AssertPool(pool, channels: 1, idle: 0, inFlight: 1);
        leases[2].Dispose();
        _time.Advance(TimeSpan.FromHours(1));
        AssertPool(pool, channels: 1, idle: 1, inFlight: 0);
    }

    [Fact]
    public async Task AnOldChannel_IsReplaced_AndLivesOnForItsCalls()
    {
        var pool = NewPool(capacity: 2, lifetime: TimeSpan.FromMinutes(30));
        var lease = await pool.AcquireAsync().Soon();
        var old = lease.Channel;
        _time.Advance(TimeSpan.FromMinutes(26));
        AssertPool(pool, channels: 1, draining: 0, inFlight: 1);

        _time.Advance(TimeSpan.FromMinutes(5));
        AssertPool(pool, channels: 1, draining: 1, inFlight: 1, replaced: 1);
        Assert.False(StubPolicy.IsDisposed(old));
        lease.Dispose();
        Assert.True(StubPolicy.IsDisposed(old));
        AssertPool(pool, channels: 1, draining: 0, inFlight: 0, replaced: 1);
    }

    [Fact]
    public async Task AnOldChannelThatCannotBeReplaced_Stays()
    {
        var pool = NewPool(capacity: 2, lifetime: TimeSpan.FromMinutes(30));
        var lease = await pool.AcquireAsync().Soon();
        _policy.OnCreate = static () => throw new TimeoutException("no dial tone");
        _time.Advance(TimeSpan.FromMinutes(31));
        AssertPool(pool, channels: 1, draining: 0, inFlight: 1);
        (await pool.AcquireAsync().Soon()).Dispose();

        _policy.OnCreate = StubPolicy.NewChannel;
        _time.Advance(TimeSpan.FromMinutes(1));
        AssertPool(pool, channels: 1, draining: 1, inFlight: 1, replaced: 1);
        lease.Dispose();
    }

    [Fact]
    public async Task ADisposedChannel_IsReplacedWhenItIsFound()
    {
        // A channel over a handler of the pool's own tells its state, and so does one that has been disposed by mistake.
        var options = new ChannelPoolOptions { MaxConcurrentCallsPerChannel = 2, TimeProvider = _time, Queue = InlineWork.Queue };
        using var pool = ChannelPool.ForAddress("http://127.0.0.1:1", options);
        var lease = await pool.AcquireAsync().Soon();
        var broken = lease.Channel;
        broken.Dispose();
        _time.Advance(TimeSpan.FromSeconds(0.2)); // it could not be connected, and the next dial has to wait a little

        var next = await pool.AcquireAsync().Soon();
        Assert.NotSame(broken, next.Channel);
        AssertPool(pool, channels: 1, draining: 1, inFlight: 2, replaced: 1);
        lease.Dispose();
        next.Dispose();
        AssertPool(pool, channels: 1, draining: 0, inFlight: 0, replaced: 1);
    }

    [Fact]
    public async Task AChannelThatNeverWorked_IsReplacedWithAPause_ThatGrows()
    {
        var pool = NewPool(capacity: 2);
        _policy.OnReturn = static _ => false;
        for (var i = 0; i < 100; i++)
        {
            (await pool.AcquireAsync().Soon()).Dispose();
        }

        AssertPool(pool, channels: 1, inFlight: 0, replaced: 1); // the first at once, then a pause of 0.1 s, give or take a fifth

        var seconds = 0;
        for (; seconds < 60; seconds++)
        {
            for (var i = 0; i < 100; i++)
            {
                _time.Advance(TimeSpan.FromMilliseconds(10));
                (await pool.AcquireAsync().Soon()).Dispose();
            }
        }

        // At most 1 s, less a fifth, between two of them once the pause has grown; a dozen while it grows.
        Assert.InRange(pool.GetStatistics().ChannelsReplaced, 50, 90);
    }

    [Fact]
    public async Task AcquireUnderContention_KeepsTheLaws()
    {
        // Debug builds assert the laws at the end of every locked section.
        var pool = NewPool(capacity: 3, max: 4);
        var inFlight = 0;
        await Task.WhenAll(Enumerable.Range(0, 16).Select(caller => Task.Run(async () =>
        {
            for (var i = 0; i < 2000; i++)
            {
                using var cancellation = new CancellationTokenSource();
                var acquiring = pool.AcquireAsync(cancellation.Token).AsTask();
                if (i % 7 == 0)
                {
                    await cancellation.CancelAsync();
                }

                try
                {
                    using var lease = await acquiring;
                    Assert.InRange(Interlocked.Increment(ref inFlight), 1, 12);
                    Interlocked.Decrement(ref inFlight);
                }
                catch (OperationCanceledException)
                {
                    // As asked for.
                }
            }
        }))).WaitAsync(TimeSpan.FromMinutes(2));
        AssertPool(pool, inFlight: 0, waiting: 0);
    }

    private ChannelPool NewPool(
        int capacity = 1,
        int min = 1,
        int max = 10,
        int maxWaiting = 100,
        TimeSpan? acquireTimeout = null,
        TimeSpan? drainTimeout = null,
        TimeSpan? idleTimeout = null,
        TimeSpan? lifetime = null)
    {
        var pool = new ChannelPool(_policy, new ChannelPoolOptions
        {
            MinPoolSize = min,
            MaxPoolSize = max,
            MaxConcurrentCallsPerChannel = capacity,
            MaxCallsWaiting = maxWaiting,
            AcquireTimeout = acquireTimeout ?? Timeout.InfiniteTimeSpan,
            DrainTimeout = drainTimeout ?? Timeout.InfiniteTimeSpan,
            PooledChannelIdleTimeout = idleTimeout ?? Timeout.InfiniteTimeSpan,
            PooledChannelLifetime = lifetime ?? Timeout.InfiniteTimeSpan,
            TimeProvider = _time,
            Queue = InlineWork.Queue,
        });
        _pools.Add(pool);
        return pool;
    }

    private static void AssertPool(
        ChannelPool pool, int? channels = null, int? idle = null, int? draining = null, int? inFlight = null, int waiting = 0, int? replaced = null)
    {
        var statistics = pool.GetStatistics();
        var expected = statistics with
        {
            Channels = channels ?? statistics.Channels,
            IdleChannels = idle ?? statistics.IdleChannels,
            DrainingChannels = draining ?? statistics.DrainingChannels,
            CallsInFlight = inFlight ?? statistics.CallsInFlight,
            CallsWaiting = waiting,
            ChannelsReplaced = replaced ?? statistics.ChannelsReplaced,
        };
        Assert.Equal(expected, statistics);
    }
}

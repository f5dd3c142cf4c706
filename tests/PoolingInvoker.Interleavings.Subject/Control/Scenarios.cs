// What is explored. Each scenario is a pool in some state, and actors that do one or two things to it at the same time. They are small,
// because all their interleavings are to be seen: what goes wrong between many callers goes wrong between three.
namespace PoolingInvoker.Interleavings;

internal sealed record Scenario(string Name, Func<Stage, (string Name, Action Work)[]> Play);

/// <summary>What the scenarios are made of.</summary>
internal sealed class Stage
{
    private readonly List<ChannelLease> _kept = [];

    public ManualClock Clock { get; } = new();

    public Witness Pool { get; private set; } = null!;

    public Stage With(
        int max, int capacity, int min = 0, TimeSpan? timeout = null, TimeSpan? drain = null, TimeSpan? idle = null, TimeSpan? lifetime = null, int? target = null)
    {
        Pool = new Witness(new ChannelPoolOptions
        {
            MinPoolSize = min,
            MaxPoolSize = max,
            MaxConcurrentCallsPerChannel = capacity,
            TargetConcurrentCallsPerChannel = target,
            ProbeDelay = Timeout.InfiniteTimeSpan,
            AcquireTimeout = timeout ?? Timeout.InfiniteTimeSpan,
            DrainTimeout = drain ?? Timeout.InfiniteTimeSpan,
            PooledChannelIdleTimeout = idle ?? Timeout.InfiniteTimeSpan,
            PooledChannelLifetime = lifetime ?? Timeout.InfiniteTimeSpan,
            TimeProvider = Clock,
        })
        {
            ForeignCode = static where =>
            {
                Scheduler.NoLockHere(where);
                if (where == "Dispose")
                {
                    Scheduler.Step("disposes of a channel");
                }
            },
        };
        Pool.Policy.OnReturn = channel =>
        {
            Scheduler.NoLockHere("Return");
            return true;
        };
        return this;
    }

    public ChannelLease Held() => Pool.Acquire();

    /// <summary>The lease comes back when all actors have ended, and not before.</summary>
    public void KeepUntilTheEnd(ChannelLease lease) => _kept.Add(lease);

    public void CheckTheEnd()
    {
        _kept.ForEach(lease => Pool.Return(lease));
        Pool.CheckTheEnd();
    }

    /// <summary>The server of a channel says that it takes no more calls on the connection.</summary>
    public void ServerGoes(PooledChannel channel) => Pool.Pool.ServerGoes(channel)?.Invoke();

    public void Use(CancellationToken cancellationToken = default) => Pool.Return(Pool.Acquire(cancellationToken));

    /// <summary>Uses the pool, or is told in the way it should be that it cannot.</summary>
    public void Use<TException>(CancellationToken cancellationToken = default)
        where TException : Exception
    {
        ChannelLease lease;
        try
        {
            lease = Pool.Acquire(cancellationToken);
        }
        catch (TException)
        {
            return;
        }

        Pool.Return(lease);
    }

    public void FailToCreate(int times)
    {
        var left = times;
        Pool.Policy.OnCreate = () =>
        {
            Scheduler.NoLockHere("Create");
            if (left-- > 0)
            {
                throw new TimeoutException("no dial tone");
            }
        };
    }

    public void Dispose()
    {
        Pool.IsClosing = true;
        Pool.Pool.Dispose();
    }

    public void DisposeAsync(bool checks = true)
    {
        Pool.IsClosing = true;
        Pool.Pool.DisposeAsync().AsTask().GetAwaiter().GetResult();
        if (checks)
        {
            Pool.CheckAllDisposed();
        }
    }
}

internal static class Scenarios
{
    private static readonly TimeSpan Second = TimeSpan.FromSeconds(1);

    public static readonly IReadOnlyList<Scenario> All =
    [
        new("acquire, acquire, return", static stage =>
        {
            var held = stage.With(max: 1, capacity: 1).Held();
            return [("first", () => stage.Use()), ("second", () => stage.Use()), ("returner", () => stage.Pool.Return(held))];
        }),
        new("acquire while channels are made", static stage =>
        {
            stage.With(min: 1, max: 2, capacity: 2);
            return [("first", () => stage.Use()), ("second", () => stage.Use()), ("third", () => stage.Use())];
        }),
        new("a waiter is cancelled as it is served", static stage =>
        {
            var held = stage.With(max: 1, capacity: 1).Held();
            var token = new CancellationTokenSource();
            return
            [
                ("cancelled", () => stage.Use<OperationCanceledException>(token.Token)),
                ("next", () => stage.Use()),
                ("canceller", token.Cancel),
                ("returner", () => stage.Pool.Return(held)),
            ];
        }),
        new("the time of a waiter is up as it is served", static stage =>
        {
            var held = stage.With(max: 1, capacity: 1, timeout: Second).Held();
            return
            [
                ("waiter", () => stage.Use<TimeoutException>()),
                ("clock", () => stage.Clock.Advance(Second)),
                ("returner", () => stage.Pool.Return(held)),
            ];
        }),
        new("a lease is given back twice", static stage =>
        {
            var held = stage.With(max: 1, capacity: 2).Held();
            var other = stage.Held();
            stage.Pool.Leaves(held);
            return
            [
                ("returner", held.Dispose),
                ("again", held.Dispose),
                ("user", () => stage.Use()),
                ("other", () => stage.Pool.Return(other)),
            ];
        }),
        new("a channel is replaced while it is used", static stage =>
        {
            var failed = stage.With(max: 1, capacity: 2).Held();
            var other = stage.Held();
            return
            [
                ("failed", () => stage.Pool.Return(failed, LeaseOutcome.ChannelFailed)),
                ("other", () => stage.Pool.Return(other)),
                ("user", () =>
                {
                    stage.Use();
                    stage.Pool.TryAcquire(fast: true);
                }),
            ];
        }),
        new("the policy does not want a channel that two return", static stage =>
        {
            var (first, second) = (stage.With(max: 2, capacity: 2).Held(), stage.Held());
            var unwanted = first.Channel;
            stage.Pool.Policy.OnReturn = channel => channel != unwanted;
            return
            [
                ("first", () => stage.Pool.Return(first, LeaseOutcome.Answered)),
                ("second", () => stage.Pool.Return(second, LeaseOutcome.Answered)),
                ("user", () => stage.Use()),
            ];
        }),
        new("a channel cannot be replaced while others wait for it", static stage =>
        {
            var failed = stage.With(max: 1, capacity: 1).Held();
            stage.FailToCreate(times: 1);
            return
            [
                ("failed", () => stage.Pool.Return(failed, LeaseOutcome.ChannelFailed)),
                ("first", () => stage.Use()),
                ("second", () => stage.Use()),
            ];
        }),
        new("a channel cannot be made, and the next in line is cancelled", static stage =>
        {
            stage.With(max: 1, capacity: 1).FailToCreate(times: 1);
            var token = new CancellationTokenSource();
            return
            [
                ("first", () => stage.Use<InvalidOperationException>()),
                ("cancelled", () =>
                {
                    try
                    {
                        stage.Use<OperationCanceledException>(token.Token);
                    }
                    catch (InvalidOperationException)
                    {
                        // It was the first to make a channel.
                    }
                }),
                ("third", () => stage.Use<InvalidOperationException>()),
                ("canceller", token.Cancel),
            ];
        }),
        new("idle and old channels go while they are used", static stage =>
        {
            var held = stage.With(min: 1, max: 2, capacity: 1, idle: Second, lifetime: 2 * Second).Held();
            stage.Use();
            return
            [
                ("clock", () =>
                {
                    stage.Clock.Advance(Second);
                    stage.Clock.Advance(Second);
                }),
                ("user", () => stage.Use()),
                ("returner", () => stage.Pool.Return(held)),
            ];
        }),
        new("a server goes while its channel is used", static stage =>
        {
            var held = stage.With(min: 1, max: 2, capacity: 1).Held();
            var channel = held.Pooled;
            return
            [
                ("server", () => stage.ServerGoes(channel)),
                ("returner", () => stage.Pool.Return(held)),
                ("user", () => stage.Use()),
            ];
        }),
        new("a server goes while its channel is refreshed, and others wait for it", static stage =>
        {
            var held = stage.With(max: 1, capacity: 1, lifetime: Second).Held();
            var channel = held.Pooled;
            return
            [
                ("clock", () => stage.Clock.Advance(Second)),
                ("server", () => stage.ServerGoes(channel)),
                ("returner", () => stage.Pool.Return(held)),
                ("user", () => stage.Use()),
            ];
        }),
        new("a channel is refreshed while a call fails because of it", static stage =>
        {
            var held = stage.With(max: 1, capacity: 2, lifetime: Second).Held();
            return
            [
                ("clock", () => stage.Clock.Advance(Second)),
                ("failed", () => stage.Pool.Return(held, LeaseOutcome.ChannelFailed)),
                ("user", () => stage.Use()),
            ];
        }),
        new("channels are made for a crowd while calls end and the pool is disposed", static stage =>
        {
            var (first, second) = (stage.With(max: 3, capacity: 2, target: 1).Held(), stage.Held());
            stage.Pool.Pool.LookAtTheCrowd();
            return
            [
                ("watch", () => stage.Pool.Pool.LookAtTheCrowd()),
                ("returner", () => stage.Pool.Return(first)),
                ("disposer", () => stage.DisposeAsync()),
                ("other", () => stage.Pool.Return(second)),
            ];
        }),
        new("Get and Return", static stage =>
        {
            stage.With(max: 1, capacity: 1);
            void User() => stage.Pool.Pool.Return(stage.Pool.Pool.Get());
            return [("first", User), ("second", User), ("third", () => stage.Use())];
        }),
        new("Dispose while others wait", static stage =>
        {
            var held = stage.With(max: 1, capacity: 1).Held();
            return
            [
                ("first", () => stage.Use<ObjectDisposedException>()),
                ("second", () => stage.Use<ObjectDisposedException>()),
                ("disposer", stage.Dispose),
                ("returner", () => stage.Pool.Return(held)),
            ];
        }),
        new("Dispose while others wait, and no lease comes back", static stage =>
        {
            stage.KeepUntilTheEnd(stage.With(max: 1, capacity: 1).Held());
            return
            [
                ("first", () => stage.Use<ObjectDisposedException>()),
                ("second", () => stage.Use<ObjectDisposedException>()),
                ("disposer", stage.Dispose),
            ];
        }),
        new("Dispose while a channel is made", static stage =>
        {
            stage.With(max: 1, capacity: 1);
            return
            [
                ("maker", () => stage.Use<ObjectDisposedException>()),
                ("waiter", () => stage.Use<ObjectDisposedException>()),
                ("disposer", stage.Dispose),
            ];
        }),
        new("Dispose while a channel is replaced", static stage =>
        {
            var failed = stage.With(max: 1, capacity: 1).Held();
            return
            [
                ("failed", () => stage.Pool.Return(failed, LeaseOutcome.ChannelFailed)),
                ("user", () => stage.Use<ObjectDisposedException>()),
                ("disposer", stage.Dispose),
            ];
        }),
        new("DisposeAsync while leases are out and a channel is made", static stage =>
        {
            var held = stage.With(max: 2, capacity: 1).Held();
            return
            [
                ("returner", () => stage.Pool.Return(held)),
                ("maker", () => stage.Use<ObjectDisposedException>()),
                ("disposer", () => stage.DisposeAsync()),
            ];
        }),
        new("DisposeAsync while a channel is replaced", static stage =>
        {
            var (failed, other) = (stage.With(max: 1, capacity: 2).Held(), stage.Held());
            return
            [
                ("failed", () => stage.Pool.Return(failed, LeaseOutcome.ChannelFailed)),
                ("other", () => stage.Pool.Return(other)),
                ("disposer", () => stage.DisposeAsync()),
            ];
        }),
        new("DisposeAsync runs out of time, and meets Dispose", static stage =>
        {
            var held = stage.With(max: 1, capacity: 1, drain: Second).Held();
            return
            [
                ("disposer", () => stage.DisposeAsync(checks: false)),
                ("clock", () => stage.Clock.Advance(Second)),
                ("impatient", stage.Dispose),
                ("returner", () => stage.Pool.Return(held)),
            ];
        }),
    ];
}

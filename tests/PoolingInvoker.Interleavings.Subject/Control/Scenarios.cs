// What is explored. Each scenario is a pool in some state, and actors that do one or two things to it at the same time. They are small,
// because all their interleavings are to be seen: what goes wrong between many callers goes wrong between three.
using System.Net;

namespace PoolingInvoker.Interleavings;

internal sealed record Scenario(string Name, Func<Stage, (string Name, Action Work)[]> Play);

/// <summary>What the scenarios are made of.</summary>
internal sealed class Stage
{
    private static readonly TimeSpan LinePause = TimeSpan.FromMilliseconds(100); // the longest: channels take long to connect here

    private readonly List<ChannelLease> _kept = [];
    private Action _inTheEnd = static () => { };
    private int _calling;
    private int[] _endpoints = [];

    public ManualClock Clock { get; } = new();

    /// <summary>Gets what looks at the pool after each of its locked sections.</summary>
    public Action? Watch { get; private set; }

    public Witness Pool { get; private set; } = null!;

    public Stage With(
        int max, int capacity, int min = 0, TimeSpan? timeout = null, TimeSpan? drain = null, TimeSpan? idle = null, TimeSpan? lifetime = null, int? target = null,
        Func<CallInvoker, CancellationToken, Task>? prime = null, params int[] endpoints)
    {
        _endpoints = endpoints;
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
            RecoveryDelay = TimeSpan.Zero,
            TimeProvider = Clock,
            PrimeCallback = prime,
            Queue = static work => work(), // at once, and in steps from there
        }, endpoints.Length == 0 ? null : new EndpointList(Endpoints(endpoints), Name: null, Resolve: null), new Random(1)) // a schedule is the same each time
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

    /// <summary>This is done when all actors have ended, before the last look.</summary>
    public void InTheEnd(Action work) => _inTheEnd = work;

    public void CheckTheEnd()
    {
        _inTheEnd();
        _kept.ForEach(lease => Pool.Return(lease));
        CheckEndpoints();
        Pool.CheckTheEnd();
    }

    /// <summary>The endpoints are these from now on, each by its number. From 100 on they are of the next priority.</summary>
    public void Discover(params int[] endpoints)
    {
        _endpoints = endpoints;
        Pool.Pool.Balancer!.EndpointsChanged(Endpoints(endpoints));
    }

    public static int EndpointOf(ChannelLease lease) => ((IPEndPoint)lease.Pooled.Server!.Endpoint.EndPoint).Port;

    private static List<ChannelEndpoint> Endpoints(int[] numbers) =>
        [.. numbers.Select(static number => new ChannelEndpoint(new IPEndPoint(IPAddress.Loopback, number)) { Priority = number / 100 })];

    // When nobody does anything any more, and the channels are looked at a few times, they are even, and at the endpoints that there are: where
    // these have priorities, at those of the first.
    private void CheckEndpoints()
    {
        if (_endpoints.Length == 0 || Pool.IsClosing || Pool.Pool.GetStatistics().Channels == 0)
        {
            return;
        }

        for (var i = 0; i < 10; i++)
        {
            Pool.Pool.Balancer!.Balance();
        }

        var channels = Pool.Pool.GetChannels().Where(static channel => channel.State is not PooledChannelState.Draining).CountBy(static channel => channel.Endpoint).ToDictionary();
        var counts = Endpoints([.. _endpoints.Where(endpoint => endpoint / 100 == _endpoints.Min() / 100)]).ConvertAll(endpoint => channels.GetValueOrDefault(endpoint.ToString()));
        if (counts.Max() - counts.Min() > 1 || counts.Sum() != channels.Values.Sum())
        {
            throw new LawBrokenException($"The endpoints {string.Join(", ", _endpoints)} have {string.Join(", ", counts)} of {channels.Values.Sum()} channels.");
        }
    }

    /// <summary>The server of a channel says that it takes no more calls on the connection.</summary>
    public void ServerGoes(PooledChannel channel) => Pool.Pool.EventsOf(channel).ServerGoes();

    /// <summary>The server of a channel says how many streams it takes.</summary>
    public void ServerTakes(PooledChannel channel, params int[] limits)
    {
        foreach (var limit in limits)
        {
            Pool.Pool.EventsOf(channel).ServerTakes(limit);
        }
    }

    /// <summary>Law 2, where limits change: a channel above its limit gets no lease.</summary>
    public void WatchTheLimits()
    {
        Dictionary<int, int> LeasesOf(IEnumerable<PooledChannelSnapshot> channels) =>
            channels.ToDictionary(static channel => channel.Id, static channel => channel.CallsInFlight);
        var (leases, waited) = (LeasesOf(Pool.Pool.GetChannels()), 0);
        Watch = () =>
        {
            var channels = Pool.Pool.GetChannels();
            var waiting = Pool.Pool.GetStatistics().CallsWaiting;
            var served = channels.Count == 1 && waiting < waited; // by the one that there is
            var above = channels.FirstOrDefault(channel =>
                channel.CallsInFlight > channel.Capacity && (served || channel.CallsInFlight > leases.GetValueOrDefault(channel.Id)));
            if (above.Id > 0)
            {
                throw new LawBrokenException($"Law 2: a lease was taken on a channel that now has {above.CallsInFlight}, and takes {above.Capacity}.");
            }

            (leases, waited) = (LeasesOf(channels), waiting);
        };
    }

    /// <summary>To connect takes long, so that the line is looked at before channels are made for it.</summary>
    public Stage ConnectSlowly()
    {
        Pool.Policy.OnCreate = () =>
        {
            Scheduler.NoLockHere("Create");
            Clock.Advance(TimeSpan.FromSeconds(1));
        };
        return this;
    }

    /// <summary>Channels connect some time after the pool has begun to, and handlers of the user's lie above: another actor does it.</summary>
    public Stage ConnectBehindHandlers()
    {
        Pool.Policy.OnConnect = () =>
        {
            var transport = new ChannelTransport(Clock);
            transport.OnAsked = () =>
            {
                if (Scheduler.IsInControl)
                {
                    Scheduler.Begin("server", transport.Connect);
                }
                else
                {
                    transport.Connect();
                }
            };
            return transport;
        };
        return this;
    }

    /// <summary>One of those for whom the line is looked at.</summary>
    public (string Name, Action Work) Caller(string name, Action work)
    {
        _calling++;
        return (name, () =>
        {
            work();
            _calling--;
        }
        );
    }

    /// <summary>Looks at the line when the pool wants that, while there are callers.</summary>
    public void LookAtTheLine()
    {
        for (var looks = 0; looks < 4; looks++)
        {
            Scheduler.WaitUntil("looks at the line when it is time", () => _calling == 0 || Clock.IsDue(LinePause));
            Clock.Look(LinePause);
        }
    }

    /// <summary>Takes a lease and keeps it until all actors have ended.</summary>
    public void Keep() => KeepUntilTheEnd(Pool.Acquire());

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

    /// <summary>All channels are replaced, and when that is over none of those is left that were there.</summary>
    public void Refresh()
    {
        var before = Pool.Pool.GetChannels().Select(static channel => channel.Id).ToHashSet();
        Pool.Pool.RefreshAsync().GetAwaiter().GetResult();
        if (Pool.Pool.GetChannels().FirstOrDefault(channel => before.Contains(channel.Id) && channel.State < PooledChannelState.Draining) is { Id: > 0 } left)
        {
            throw new LawBrokenException($"The refresh is over, and has forgotten {left}.");
        }
    }

    /// <summary>The same, where it may be said that it cannot be.</summary>
    public void Refresh<TException>()
        where TException : Exception
    {
        try
        {
            Refresh();
        }
        catch (TException)
        {
        }
    }

    /// <summary>Whoever has the lease says that its channel has failed, if it has not been given back.</summary>
    public static void MarkFailed(ChannelLease lease)
    {
        try
        {
            lease.MarkFailed();
        }
        catch (ObjectDisposedException)
        {
        }
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
                ("waiter", () => stage.Use<ChannelPoolExhaustedException>()),
                ("clock", () => stage.Clock.Advance(Second)),
                ("returner", () => stage.Pool.Return(held)),
            ];
        }),
        new("all channels are refreshed by two, while they are used", static stage =>
        {
            var (held, other) = (stage.With(max: 2, capacity: 1).Held(), stage.Held());
            return
            [
                ("first", stage.Refresh),
                ("second", stage.Refresh),
                ("returner", () => stage.Pool.Return(held)),
                ("other", () => stage.Pool.Return(other, LeaseOutcome.ChannelFailed)),
            ];
        }),
        new("all channels are refreshed while some are made, and one cannot be", static stage =>
        {
            stage.With(max: 2, capacity: 1).KeepUntilTheEnd(stage.Held());
            stage.FailToCreate(times: 1);
            return [("refresher", () => stage.Refresh<HttpRequestException>()), ("user", () => stage.Use<InvalidOperationException>()), ("another", () => stage.Use<InvalidOperationException>())];
        }),
        new("Dispose while all channels are refreshed", static stage =>
        {
            var held = stage.With(max: 2, capacity: 1).Held();
            return [("refresher", () => stage.Refresh<ObjectDisposedException>()), ("disposer", stage.Dispose), ("returner", () => stage.Pool.Return(held))];
        }),
        new("a channel is marked as failed, twice, as it is refreshed and given back", static stage =>
        {
            var held = stage.With(max: 1, capacity: 2).Held();
            return
            [
                ("marker", () => Stage.MarkFailed(held)),
                ("again", () => Stage.MarkFailed(held)),
                ("refresher", stage.Refresh),
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
            stage.Pool.Pool.Growth.SampleLoad();
            return
            [
                ("watch", () => stage.Pool.Pool.Growth.SampleLoad()),
                ("returner", () => stage.Pool.Return(first)),
                ("disposer", () => stage.DisposeAsync()),
                ("other", () => stage.Pool.Return(second)),
            ];
        }),
        new("a server goes while its idle channel is leased", static stage =>
        {
            var held = stage.With(max: 1, capacity: 2).Held();
            var channel = held.Pooled;
            stage.Pool.Return(held);
            return
            [
                ("server", () => stage.ServerGoes(channel)),
                ("keeper", stage.Keep),
                ("user", () => stage.Pool.TryAcquire(fast: true)),
            ];
        }),
        new("a server goes while the last lease on its channel comes back and another channel is refreshed", static stage =>
        {
            var (held, other) = (stage.With(max: 2, capacity: 1, lifetime: Second).Held(), stage.Held());
            var channel = held.Pooled;
            return
            [
                ("returner", () => stage.Pool.Return(held)),
                ("server", () => stage.ServerGoes(channel)),
                ("clock", () => stage.Clock.Advance(Second)),
                ("user", () => stage.Pool.TryAcquire(fast: true)),
                ("other", () => stage.Pool.Return(other)),
            ];
        }),
        new("a server lowers its limit and raises it while others wait", static stage =>
        {
            var (first, second) = (stage.With(max: 1, capacity: 2).Held(), stage.Held());
            var channel = first.Pooled;
            stage.WatchTheLimits();
            return
            [
                ("server", () => stage.ServerTakes(channel, 1, 2)),
                ("first", () => stage.Pool.Return(first)),
                ("second", () => stage.Pool.Return(second)),
                ("waiter", () => stage.Use()),
                ("user", () => stage.Pool.TryAcquire(fast: false)),
            ];
        }),
        new("a server takes nothing for a while", static stage =>
        {
            var held = stage.With(max: 1, capacity: 1).Held();
            var channel = held.Pooled;
            stage.WatchTheLimits();
            return
            [
                ("server", () => stage.ServerTakes(channel, 0, 1)),
                ("returner", () => stage.Pool.Return(held)),
                ("first", () => stage.Use()),
                ("second", () => stage.Use()),
            ];
        }),
        new("a server lowers its limit while channels are made for who waits", static stage =>
        {
            var held = stage.With(max: 3, capacity: 2).Held();
            stage.KeepUntilTheEnd(stage.Held());
            var channel = held.Pooled;
            stage.WatchTheLimits();
            stage.InTheEnd(() => stage.ServerTakes(channel, 2));
            return
            [
                ("server", () => stage.ServerTakes(channel, 1)),
                ("first", stage.Keep),
                ("second", stage.Keep),
                ("returner", () => stage.Pool.Return(held)),
            ];
        }),
        new("a channel is closed as idle whose server takes nothing, while others wait for it", static stage =>
        {
            var held = stage.With(max: 1, capacity: 1, idle: Second).Held();
            var channel = held.Pooled;
            stage.Pool.Return(held);
            stage.InTheEnd(() => stage.ServerTakes(channel, 1));
            return
            [
                ("server", () => stage.ServerTakes(channel, 0)),
                ("user", () => stage.Use()),
                ("clock", () =>
                {
                    stage.Clock.Advance(Second);
                    stage.Clock.Advance(Second);
                }),
            ];
        }),
        new("the line is looked at while leases come back and it empties", static stage =>
        {
            stage.With(max: 3, capacity: 1).ConnectSlowly();
            var held = stage.Held();
            return
            [
                stage.Caller("first", () => stage.Use()),
                stage.Caller("second", () => stage.Use()),
                ("watch", stage.LookAtTheLine),
                ("returner", () => stage.Pool.Return(held)),
            ];
        }),
        new("the line is looked at until all have what they keep", static stage =>
        {
            stage.With(max: 3, capacity: 1).ConnectSlowly();
            var held = stage.Held();
            return
            [
                stage.Caller("first", stage.Keep),
                stage.Caller("second", stage.Keep),
                ("watch", stage.LookAtTheLine),
                ("returner", () => stage.Pool.Return(held)),
            ];
        }),
        new("the line is looked at while the pool is disposed", static stage =>
        {
            stage.With(max: 3, capacity: 1).ConnectSlowly();
            var held = stage.Held();
            return
            [
                stage.Caller("first", () => stage.Use<ObjectDisposedException>()),
                stage.Caller("second", () => stage.Use<ObjectDisposedException>()),
                ("watch", stage.LookAtTheLine),
                ("disposer", () => stage.DisposeAsync()),
                ("returner", () => stage.Pool.Return(held)),
            ];
        }),
        new("channels are made by several, and some cannot be", static stage =>
        {
            stage.With(min: 2, max: 3, capacity: 1).FailToCreate(times: 2);
            return
            [
                ("first", () => stage.Use<InvalidOperationException>()),
                ("second", () => stage.Use<InvalidOperationException>()),
                ("third", () => stage.Use<InvalidOperationException>()),
            ];
        }),
        new("Dispose while channels are made by several, and some cannot be", static stage =>
        {
            stage.With(min: 2, max: 4, capacity: 1).FailToCreate(times: 1);
            return
            [
                ("first", () => stage.Use<InvalidOperationException>()),
                ("second", () => stage.Use<InvalidOperationException>()),
                ("disposer", stage.Dispose),
                ("third", () => stage.Use<InvalidOperationException>()),
            ];
        }),
        new("DisposeAsync while channels are made by several", static stage =>
        {
            stage.With(min: 2, max: 4, capacity: 1);
            return
            [
                ("first", () => stage.Use<ObjectDisposedException>()),
                ("second", () => stage.Use<ObjectDisposedException>()),
                ("disposer", () => stage.DisposeAsync()),
                ("third", () => stage.Use<ObjectDisposedException>()),
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
        new("channels join before they are connected, as there is no other one", static stage =>
        {
            stage.With(max: 2, capacity: 1).ConnectBehindHandlers();
            return [("first", () => stage.Use()), ("second", () => stage.Use())];
        }),
        new("Dispose while a channel joins before it is connected", static stage =>
        {
            stage.With(max: 1, capacity: 1).ConnectBehindHandlers();
            return [("maker", () => stage.Use<ObjectDisposedException>()), ("disposer", stage.Dispose)];
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
        new("an endpoint vanishes while a lease of a channel to it comes back", static stage =>
        {
            var held = stage.With(min: 2, max: 3, capacity: 1, endpoints: [1, 2]).Held();
            var other = 3 - Stage.EndpointOf(held);
            return
            [
                ("discovery", () => stage.Discover(other, 3)),
                ("returner", () => stage.Pool.Return(held)),
                ("user", () => stage.Use()),
            ];
        }),
        new("an endpoint vanishes while a channel to it is refreshed, and is back", static stage =>
        {
            var held = stage.With(max: 2, capacity: 1, lifetime: Second, endpoints: [1, 2]).Held();
            var other = 3 - Stage.EndpointOf(held);
            return
            [
                ("clock", () => stage.Clock.Advance(Second)),
                ("discovery", () =>
                {
                    stage.Discover(other, 3);
                    stage.Discover(1, 2);
                }),
                ("returner", () => stage.Pool.Return(held)),
            ];
        }),
        new("an endpoint vanishes while its server goes", static stage =>
        {
            var held = stage.With(max: 2, capacity: 2, endpoints: [1, 2]).Held();
            var channel = held.Pooled;
            var other = 3 - Stage.EndpointOf(held);
            return
            [
                ("server", () => stage.ServerGoes(channel)),
                ("discovery", () => stage.Discover(other)),
                ("returner", () => stage.Pool.Return(held)),
                ("user", () => stage.Use()),
            ];
        }),
        new("an endpoint vanishes while a call fails because of it", static stage =>
        {
            var held = stage.With(max: 2, capacity: 2, endpoints: [1, 2]).Held();
            var other = 3 - Stage.EndpointOf(held);
            return
            [
                ("failed", () => stage.Pool.Return(held, LeaseOutcome.ChannelFailed)),
                ("discovery", () => stage.Discover(other, 3)),
                ("watch", () => stage.Pool.Pool.Balancer!.Balance()),
            ];
        }),
        new("an endpoint cannot be reached, and its broken channel moves while calls begin and end", static stage =>
        {
            var isDead = false;
            var held = stage.With(max: 2, capacity: 1, prime: (_, _) => isDead ? Task.FromException(new IOException("no dial tone")) : Task.CompletedTask, endpoints: [1, 2]).Held();
            var other = stage.Held();
            isDead = true;
            stage.Pool.Return(held, LeaseOutcome.ChannelFailed);
            return
            [
                ("watch", () =>
                {
                    stage.Clock.Advance(2 * Second);
                    stage.Pool.Pool.Balancer!.Balance();
                    isDead = false;
                    stage.Clock.Advance(2 * Second);
                    stage.Pool.Pool.Balancer!.Balance();
                }),
                ("returner", () => stage.Pool.Return(other, LeaseOutcome.ChannelFailed)),
                ("user", () => stage.Use()),
            ];
        }),
        new("the first of two priorities vanishes, and is back, while calls begin and end", static stage =>
        {
            var held = stage.With(max: 2, capacity: 1, endpoints: [1, 101]).Held();
            return
            [
                ("discovery", () =>
                {
                    stage.Discover(101);
                    stage.Discover(1, 101);
                }),
                ("watch", () => stage.Pool.Pool.Balancer!.Balance()),
                ("returner", () => stage.Pool.Return(held)),
                ("user", () => stage.Use()),
            ];
        }),
        new("the first of two priorities cannot be reached, and is back, while calls begin and end", static stage =>
        {
            var isDead = false;
            var held = stage.With(max: 2, capacity: 1, prime: (_, _) => isDead ? Task.FromException(new IOException("no dial tone")) : Task.CompletedTask, endpoints: [1, 2, 101]).Held();
            var other = stage.Held();
            isDead = true;
            stage.Pool.Return(held, LeaseOutcome.ChannelFailed);
            return
            [
                ("watch", () =>
                {
                    isDead = false;
                    stage.Clock.Advance(2 * Second);
                    stage.Pool.Pool.Balancer!.Balance();
                }),
                ("user", () => stage.Use()),
                ("returner", () => stage.Pool.Return(other, LeaseOutcome.ChannelFailed)),
            ];
        }),
        new("an endpoint vanishes while the pool is disposed", static stage =>
        {
            var held = stage.With(max: 2, capacity: 2, endpoints: [1, 2]).Held();
            var other = 3 - Stage.EndpointOf(held);
            return
            [
                ("discovery", () => stage.Discover(other, 3)),
                ("returner", () => stage.Pool.Return(held)),
                ("disposer", () => stage.DisposeAsync()),
                ("user", () => stage.Use<ObjectDisposedException>()),
            ];
        }),
        new("channels move to a new endpoint while calls begin and end", static stage =>
        {
            var held = stage.With(min: 3, max: 3, capacity: 1, endpoints: [1]).Held();
            var other = stage.Held();
            return
            [
                ("discovery", () => stage.Discover(1, 2)),
                ("watch", () =>
                {
                    stage.Pool.Pool.Balancer!.Balance();
                    stage.Pool.Pool.Balancer!.Balance();
                }),
                ("returner", () => stage.Pool.Return(held)),
                ("user", () =>
                {
                    stage.Pool.Return(other);
                    stage.Use();
                }),
            ];
        }),
    ];
}

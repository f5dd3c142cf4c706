// One schedule, and no luck.
//
// A scenario is a handful of actors, each a thread with a piece of work. Only one of them runs at a time. It runs up to its next step:
// where it takes the lock of the pool, goes through the gate of a lease, or waits for something (Substitutes.cs is how the sources of
// the pool come to have steps). There it hands over to the actor that the strategy picks among those that can go on. What lies between
// two steps is an actor's own business, so the order of the steps is all there is to an interleaving: a strategy that makes the same
// picks makes the same run, to the letter.
//
// An actor that waits says for what. When all that are left wait, that is the end: a hang, found at once, without a clock.
using System.Collections.Concurrent;

namespace PoolingInvoker.Interleavings;

/// <summary>Says who goes on.</summary>
internal interface IStrategy
{
    /// <summary>
    /// Picks one of those that can go on. If <paramref name="mayStay"/>, the first of them is the one that has run so far, and any
    /// other choice preempts it.
    /// </summary>
    int Pick(IReadOnlyList<int> actors, bool mayStay);
}

internal sealed class Scheduler
{
    private const int TooManySteps = 10_000;

    [ThreadStatic]
    private static Actor? _current;

    private readonly List<Actor> _actors = [];
    private readonly List<(Actor Actor, string Step)> _trace = [];
    private readonly Dictionary<object, Actor> _locks = new(ReferenceEqualityComparer.Instance);
    private readonly SemaphoreSlim _over = new(0);
    private readonly IStrategy _strategy;

    private readonly Action? _watch;

    private Scheduler(IEnumerable<(string Name, Action Work)> actors, IStrategy strategy, Action? watch)
    {
        _strategy = strategy;
        _watch = watch;
        foreach (var (name, work) in actors)
        {
            _actors.Add(new Actor(this, _actors.Count, name, work));
        }
    }

    /// <summary>Gets whether the calling thread is an actor.</summary>
    public static bool IsInControl => _current is not null;

    public Exception? Failure { get; private set; }

    public int Steps => _trace.Count;

    /// <summary>
    /// Runs the actors to their end, or to the first law that is broken. <paramref name="watch"/> looks at the pool after each locked section.
    /// </summary>
    public static Scheduler Run(IEnumerable<(string Name, Action Work)> actors, IStrategy strategy, Action? watch)
    {
        var scheduler = new Scheduler(actors, strategy, watch);
        scheduler.HandOver(from: null);
        scheduler._over.Wait();
        return scheduler;
    }

    /// <summary>Others may go on before the calling actor does this. Nothing to a thread that is not an actor.</summary>
    public static void Step(string what) => WaitUntil(what, static () => true);

    /// <summary>The calling actor goes on when the condition holds; it looks at nothing but what actors change.</summary>
    public static void WaitUntil(string what, Func<bool> condition)
    {
        if (_current is { } actor)
        {
            actor.Next = what;
            actor.CanGoOn = condition;
            actor.Scheduler.HandOver(actor);
        }
    }

    /// <summary>Both ways are possible in reality: the strategy takes one.</summary>
    public static bool Either(string what)
    {
        var actor = _current!;
        var yes = actor.Scheduler._strategy.Pick([actor.Index, actor.Index], mayStay: false) == 0;
        actor.Scheduler._trace.Add((actor, $"{what}: {(yes ? "yes" : "no")}"));
        return yes;
    }

    public static void Lock(object gate)
    {
        var locks = _current!.Scheduler._locks;
        if (locks.GetValueOrDefault(gate) == _current)
        {
            throw new LawBrokenException("Law 5: foreign code came back into the pool while its lock was held.");
        }

        WaitUntil("takes the lock", () => !locks.ContainsKey(gate));
        locks.Add(gate, _current!);
    }

    public static void Unlock(object gate)
    {
        var actor = _current!;
        actor.Scheduler._locks.Remove(gate);
        if (actor.Scheduler._watch is { } watch)
        {
            _current = null; // to look is no step
            try
            {
                watch();
            }
            catch (LawBrokenException exception)
            {
                actor.Scheduler.Failure ??= exception;
            }

            _current = actor;
        }
    }

    /// <summary>One more actor does this.</summary>
    public static void Begin(string name, Action work)
    {
        var scheduler = _current!.Scheduler;
        scheduler._actors.Add(new Actor(scheduler, scheduler._actors.Count, name, work));
    }

    public static bool Holds(object gate) => _current!.Scheduler._locks.GetValueOrDefault(gate) == _current;

    /// <summary>Code that is not the pool's says that it runs.</summary>
    public static void NoLockHere(string where)
    {
        if (_current is { } actor && actor.Scheduler._locks.ContainsValue(actor))
        {
            actor.Scheduler.Failure ??= new LawBrokenException($"Law 5: {where} ran under the lock.");
        }
    }

    /// <summary>The story of this run, a line a step.</summary>
    public override string ToString() => string.Join('\n', _trace.Select(static entry => $"  {entry.Actor.Name,-12} {entry.Step}"));

    private void HandOver(Actor? from)
    {
        var able = _actors.FindAll(static actor => !actor.IsDone && actor.CanGoOn()).ConvertAll(static actor => actor.Index);
        var mayStay = from is not null && able.Remove(from.Index);
        if (mayStay)
        {
            able.Insert(0, from!.Index);
        }

        if (Failure is null && able.Count == 0 && _actors.Exists(static actor => !actor.IsDone))
        {
            var left = _actors.Where(static actor => !actor.IsDone).Select(static actor => $"\"{actor.Name}\" {actor.Next}");
            Failure = new LawBrokenException($"Hang: {string.Join(", ", left)}, for ever.");
        }

        if (_trace.Count > TooManySteps)
        {
            Failure ??= new LawBrokenException($"It does not end within {TooManySteps} steps.");
        }

        if (Failure is not null || able.Count == 0)
        {
            _over.Release();
        }
        else
        {
            var next = _actors[able[able.Count == 1 ? 0 : _strategy.Pick(able, mayStay)]];
            _trace.Add((next, next.Next));
            if (next == from)
            {
                return;
            }

            next.GiveTurn();
        }

        // After a failure nobody gets a turn again: the run ends where it is, and these are background threads.
        if (from is { IsDone: false })
        {
            from.AwaitTurn();
        }
    }

    private sealed class Actor(Scheduler scheduler, int index, string name, Action work)
    {
        private Hand? _hand;

        public Scheduler Scheduler => scheduler;

        public int Index => index;

        public string Name => name;

        public bool IsDone { get; private set; }

        public string Next { get; set; } = "begins";

        public Func<bool> CanGoOn { get; set; } = static () => true;

        public void GiveTurn()
        {
            if (_hand is null)
            {
                _hand = Hand.Free();
                _hand.Play(Live);
            }
            else
            {
                _hand.Turn.Release();
            }
        }

        public void AwaitTurn() => _hand!.Turn.Wait();

        private void Live()
        {
            _current = this;
            try
            {
                work();
            }
            catch (Exception exception)
            {
                scheduler.Failure ??= exception;
            }

            IsDone = true;
            scheduler.HandOver(this);
        }
    }
    // A thread that plays one actor after the other: to start one takes longer than a schedule.
    private sealed class Hand
    {
        private static readonly ConcurrentStack<Hand> Idle = new();

        private Action _work = static () => { };

        public SemaphoreSlim Turn { get; } = new(0);

        public static Hand Free()
        {
            if (!Idle.TryPop(out var hand))
            {
                hand = new Hand();
                new Thread(hand.Live) { IsBackground = true, Name = "actor" }.Start();
            }

            return hand;
        }

        public void Play(Action work)
        {
            _work = work;
            Turn.Release();
        }

        private void Live()
        {
            while (true)
            {
                Turn.Wait();
                _work();
                Idle.Push(this);
            }
        }
    }
}

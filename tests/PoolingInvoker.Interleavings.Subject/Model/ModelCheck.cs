// Does the same to the pool and to the model of it, one operation after the other, and compares what each caller got, the statistics and
// which channels are disposed. The operations are drawn by CsCheck, which makes a sequence that fails shorter, and prints its seed:
// CsCheck_Seed=… in the environment runs it again.
//
// A creation may take its time: then its maker stands at a gate, in the midst of the pool, while other operations go by, until one of
// them lets it end. So everything but the moments between two locks is reached here, in an order that is known.
using CsCheck;
using Grpc.Net.Client;
using Microsoft.Extensions.Time.Testing;

namespace PoolingInvoker.Interleavings;

internal enum Act
{
    Acquire,
    TryAcquire,
    Get,
    GiveBack,
    Return,
    ReturnAndCancel,
    Cancel,
    EndCreation,
    Slow,
    Broken,
    AShortWhile,
    ALongWhile,
    Dispose,
    DisposeAsync,
}

internal sealed record Operation(Act Act, int Which, LeaseOutcome Outcome, bool Yes)
{
    public override string ToString() => Act switch
    {
        Act.Return or Act.GiveBack => $"{Act}({Which}, {Outcome}, {(Yes ? "wanted" : "unwanted")})",
        Act.EndCreation => $"{Act}({Which}, {(Yes ? "works" : "fails")})",
        Act.Cancel or Act.ReturnAndCancel => $"{Act}({Which})",
        Act.Slow or Act.Broken => $"{Act}({Yes})",
        _ => $"{Act}",
    };
}

internal sealed record Sizes(int Min, int Max, int Capacity, int MaxWaiting);

/// <summary>The door of this checker: what comes in and goes out is of types that all assemblies share.</summary>
public static class ModelCheck
{
    private static readonly Gen<Sizes> AnySizes = Gen.Select(Gen.Int[0, 2], Gen.Int[1, 4], Gen.Int[1, 3], Gen.Int[0, 5])
        .Select(static (min, max, capacity, waiting) => new Sizes(Math.Min(min, max), max, capacity, waiting));

    private static readonly Gen<Act> AnyAct = Gen.Frequency(
        (14, Gen.Const(Act.Acquire)),
        (4, Gen.Const(Act.TryAcquire)),
        (3, Gen.Const(Act.Get)),
        (3, Gen.Const(Act.GiveBack)),
        (10, Gen.Const(Act.Return)),
        (2, Gen.Const(Act.ReturnAndCancel)),
        (3, Gen.Const(Act.Cancel)),
        (6, Gen.Const(Act.EndCreation)),
        (3, Gen.Const(Act.Slow)),
        (2, Gen.Const(Act.Broken)),
        (3, Gen.Const(Act.AShortWhile)),
        (2, Gen.Const(Act.ALongWhile)),
        (1, Gen.Const(Act.Dispose)),
        (1, Gen.Const(Act.DisposeAsync)));

    private static readonly Gen<Operation> AnyOperation = Gen.Select(
        AnyAct,
        Gen.Int[0, 5],
        Gen.Frequency(
            (4, Gen.Const(LeaseOutcome.Unknown)), (3, Gen.Const(LeaseOutcome.Answered)), (2, Gen.Const(LeaseOutcome.ChannelFailed))),
        Gen.Frequency((5, Gen.Const(true)), (1, Gen.Const(false))))
        .Select(static (act, which, outcome, yes) =>
            new Operation(act, which, outcome, act is Act.Slow or Act.Broken or Act.EndCreation ? which % 2 == 0 : yes));

    /// <summary>Checks sequences of operations for so many seconds, or so many of them.</summary>
    /// <remarks>
    /// A caller that does not go on may be one that a machine short of processors has forgotten. With a patience that decides, a sequence
    /// that fails is done again with that one: if it fails again it is the pool, and the search is over, and otherwise it goes on.
    /// </remarks>
    /// <returns>How many sequences and operations that were until the first failure, and the failure, if there was one.</returns>
    public static (long Sequences, long Operations, string? Failure) Check(int seconds, long sequences, TimeSpan patience, TimeSpan? decides = null)
    {
        ThreadPool.SetMinThreads(32, 32); // callers that stand at a gate
        var (done, operations, failed) = (0L, 0L, false);
        try
        {
            Gen.Select(AnySizes, AnyOperation.Array[1, 60]).Sample(
                (sizes, acts) =>
                {
                    if (failed && decides is not null)
                    {
                        return; // to find one that is shorter would take the patience once more for each
                    }

                    done += failed ? 0 : 1;
                    operations += failed ? 0 : acts.Length;
                    try
                    {
                        new ModelRun(sizes, patience).Check(acts);
                    }
                    catch (LawBrokenException) when (decides is { } longer && !Fails(sizes, acts, longer))
                    {
                        // The machine stood still, and not the pool.
                    }
                    catch
                    {
                        failed = true;
                        throw;
                    }
                },
                iter: sequences,
                time: seconds,
                threads: 1,
                print: static drawn => $"{drawn.Item1}\n  {string.Join("\n  ", drawn.Item2.AsEnumerable())}");
            return (done, operations, null);
        }
        catch (CsCheckException exception)
        {
            return (done, operations, $"{exception.Message}\n{exception.InnerException?.Message}");
        }
    }

    private static bool Fails(Sizes sizes, Operation[] operations, TimeSpan patience)
    {
        try
        {
            new ModelRun(sizes, patience).Check(operations);
            return false;
        }
        catch (LawBrokenException)
        {
            return true;
        }
    }
}

internal sealed class ModelRun
{
    private static readonly TimeSpan AMoment = TimeSpan.FromMilliseconds(100); // after which a line is looked at again, at the latest
    private static readonly TimeSpan MaintenancePeriod = TimeSpan.FromSeconds(30);
    private static readonly TimeSpan ShortWhile = TimeSpan.FromSeconds(2); // longer than the longest pause between two dials
    private static readonly TimeSpan LongWhile = TimeSpan.FromMinutes(12);
    private static readonly TimeSpan DrainTimeout = TimeSpan.FromMinutes(10);

    private readonly CallersTime _time = new();
    private readonly ProbePolicy _policy = new();
    private readonly TimeSpan _patience;
    private readonly ChannelPool _pool;
    private readonly PoolModel _model;
    private readonly List<Call> _open = []; // who has not ended
    private readonly List<Call> _held = [];
    private readonly List<Call> _explicit = []; // by Get
    private readonly List<GrpcChannel> _closedNow = [];
    private readonly List<GrpcChannel> _replacedNow = []; // or it could not be
    private int _calls;
    private bool _wanted = true;
    private Task? _disposing;
    private TimeSpan _disposingFor;

    public ModelRun(Sizes sizes, TimeSpan patience)
    {
        _patience = patience;

        // A long while is longer than what makes a channel idle, and than what a caller waits; three of them make it old, two do not,
        // whatever part of its lifetime is taken off, and however many short ones there are between.
        var options = new ChannelPoolOptions
        {
            MinPoolSize = sizes.Min,
            MaxPoolSize = sizes.Max,
            MaxConcurrentCallsPerChannel = sizes.Capacity,
            ProbeDelay = Timeout.InfiniteTimeSpan,
            MaxCallsWaiting = sizes.MaxWaiting,
            AcquireTimeout = TimeSpan.FromMinutes(5) + TimeSpan.FromSeconds(1), // not when the maintenance runs
            DrainTimeout = DrainTimeout,
            PooledChannelIdleTimeout = TimeSpan.FromMinutes(10),
            PooledChannelLifetime = TimeSpan.FromMinutes(30),
            TimeProvider = _time,
            Queue = static work => work(),
            LoggerFactory = new ChannelDiary(Log),
        };
        _policy.OnReturn = _ => _wanted;
        _policy.OnCreate = Create;
        _policy.OnMade = static channel => Call.Current!.Makes(channel);
        _model = new PoolModel(options);
        _pool = new ChannelPool(_policy, options.ValidatedCopy(), new Random(1)); // the same chance each time
    }

    public void Check(IReadOnlyList<Operation> operations)
    {
        try
        {
            for (var i = 0; i < operations.Count; i++)
            {
                try
                {
                    Do(operations[i]);
                    Compare();
                }
                catch (LawBrokenException exception)
                {
                    throw new LawBrokenException($"{exception.Message} That was operation {i + 1}, {operations[i]}.");
                }
            }

            Finish();
        }
        catch (LostTrackException)
        {
            Abandon();
        }
    }

    private static Call? Choose(IEnumerable<Call> among, int which)
    {
        var calls = among.ToList();
        return calls.Count == 0 ? null : calls[which % calls.Count];
    }

    private void Do(Operation operation)
    {
        switch (operation.Act)
        {
            case Act.Acquire when !_model.IsUncertain:
                Come(async call => await _pool.AcquireAsync(call.Cancellation.Token).ConfigureAwait(false), _model.Acquire, mayBlock: _model.IsSlow);
                break;
            case Act.TryAcquire when !_model.IsUncertain:
                Come(_ => Task.FromResult(_pool.TryAcquire(out var lease) ? lease : null), _model.TryAcquire, mayBlock: _model.IsSlow);
                break;
            case Act.Get when !_model.IsUncertain:
                Come(Get, _model.Acquire, mayBlock: true);
                break;
            case Act.GiveBack when Choose(_explicit, operation.Which) is { } call:
                GiveBack(call, operation.Yes);
                break;
            case Act.Return when Choose(_held, operation.Which) is { } call:
                Return(call, operation.Outcome, operation.Yes);
                break;
            case Act.ReturnAndCancel when _model.Line.FirstOrDefault() is { IsExplicit: false } waiter && !_model.IsMaking(waiter)
                && Choose(_held.Where(static call => !call.Channel!.Failed), operation.Which) is { } call:
                ReturnAndCancel(call, waiter);
                break;
            case Act.Cancel when Choose(_model.Line.Where(static call => !call.IsExplicit), operation.Which) is { } call:
                call.Cancellation.Cancel();
                _model.Cancel(call);
                break;
            case Act.EndCreation when Choose(_model.Makers, operation.Which) is { } call:
                EndCreation(call, operation.Yes);
                break;
            case Act.Slow:
                _model.IsSlow = operation.Yes;
                break;
            case Act.Broken:
                _model.IsBroken = operation.Yes;
                break;
            case Act.AShortWhile when !_model.IsSlow:
                Advance(ShortWhile);
                break;
            case Act.ALongWhile when !_model.IsSlow:
                Advance(LongWhile);
                break;
            case Act.Dispose:
                _pool.Dispose();
                _model.BeginDispose();
                _model.EndDispose();
                break;
            case Act.DisposeAsync when _disposing is null:
                _disposing = _pool.DisposeAsync().AsTask();
                _model.BeginDispose();
                break;
            default:
                break; // There is nothing to do this to.
        }
    }

    private Call NewCall() => new(++_calls, _patience);

    private void Come(Func<Call, Task<ChannelLease?>> acquire, Action<Call> acquires, bool mayBlock)
    {
        var call = NewCall();
        async Task<ChannelLease?> Work() => await acquire(call).ConfigureAwait(false); // an exception is a result
        call.Run(Work, mayBlock);
        _open.Add(call);
        acquires(call);
    }

    private Task<ChannelLease?> Get(Call call)
    {
        call.IsExplicit = true;
        call.Explicit = _pool.Get();
        return Task.FromResult<ChannelLease?>(null);
    }

    private void GiveBack(Call call, bool wanted)
    {
        _explicit.Remove(call);
        var channel = call.Channel!.Actual;
        if (call.Channel.State == PooledChannelState.Closed)
        {
            _pool.Return(channel); // It was closed with the pool: there is nothing left to give back to.
            return;
        }

        GiveBack(call, LeaseOutcome.Unknown, wanted, () => _pool.Return(channel));
    }

    private void Return(Call call, LeaseOutcome outcome, bool wanted)
    {
        _held.Remove(call);
        var lease = call.Result.Result!;
        GiveBack(call, outcome, wanted, () => lease.Return(outcome));
        lease.Dispose(); // once more, which does nothing
    }

    private void GiveBack(Call call, LeaseOutcome outcome, bool wanted, Action giveBack)
    {
        var by = NewCall();
        _wanted = wanted;
        by.Run(
            () =>
            {
                giveBack();
                return Task.FromResult<ChannelLease?>(null);
            },
            mayBlock: _model.IsSlow);
        by.IsGivingBack = true;
        _open.Add(by);
        _model.Return(call, outcome, wanted, by);
        _wanted = true;
    }

    // Both are possible: the waiter has the lease, or it was cancelled before, and whoever is next has it.
    private void ReturnAndCancel(Call call, Call waiter)
    {
        _held.Remove(call);
        call.Result.Result!.Dispose();
        waiter.Cancellation.Cancel();
        waiter.AwaitEnd();
        if (!waiter.Result.IsCompletedSuccessfully)
        {
            _model.Cancel(waiter);
        }

        _model.Return(call, LeaseOutcome.Unknown, wanted: true, NewCall());
        if (waiter is { IsOver: false })
        {
            throw new LawBrokenException($"Caller {waiter.Number} was cancelled, and got a lease that nobody gave back.");
        }
    }

    private void EndCreation(Call call, bool works)
    {
        call.OpenGate(works);
        _model.End(call, works);
    }

    // First two moments, in which the line is looked at: what came back before shows in the first. Then from one run of the maintenance to
    // the next.
    private void Advance(TimeSpan by)
    {
        Step(AMoment, AMoment);
        for (var left = by - (2 * AMoment); left > TimeSpan.Zero;)
        {
            var toMaintenance = TimeSpan.FromTicks(MaintenancePeriod.Ticks - ((_time.GetUtcNow() - _time.Start).Ticks % MaintenancePeriod.Ticks));
            var step = left < toMaintenance ? left : toMaintenance;
            Step(step);
            left -= step;
        }

        _disposingFor += _disposing is null ? TimeSpan.Zero : by;
        if (_disposingFor >= DrainTimeout)
        {
            _model.EndDispose();
        }
    }

    private void Step(params TimeSpan[] steps)
    {
        _closedNow.Clear();
        _replacedNow.Clear();
        var call = NewCall();
        call.Run(
            () =>
            {
                steps.ToList().ForEach(_time.Advance);
                return Task.FromResult<ChannelLease?>(null);
            },
            mayBlock: false);
        _model.Advance(TimeSpan.FromTicks(steps.Sum(static step => step.Ticks)), call, [.. _closedNow.Except(_replacedNow)], _replacedNow);
    }

    private void Compare()
    {
        foreach (var call in _model.Makers)
        {
            call.AwaitGate();
        }

        foreach (var call in _open.ToList())
        {
            if ((call.IsGivingBack || call.IsOver) && !_model.IsMaking(call))
            {
                _open.Remove(call);
                call.AwaitEnd();
                Compare(call);
            }
            else if (call.Result.IsCompleted)
            {
                throw new LawBrokenException($"Caller {call.Number} has ended, and should wait.");
            }
        }

        if (_disposing is not null)
        {
            var ends = _model.IsClosed || _disposingFor >= DrainTimeout;
            if (ends != (ends ? _disposing.Wait(_patience) : _disposing.IsCompleted))
            {
                throw new LawBrokenException($"DisposeAsync {(ends ? "does not end" : "has ended too early")}.");
            }
        }

        // A caller who has made a channel may yet be on his way to where he waits, and have his time before him.
        foreach (var call in _model.Waiting)
        {
            call.AwaitClock();
        }

        var expected = _model.Statistics;
        if (!SpinWait.SpinUntil(() => IsAsExpected(_pool.GetStatistics()), _patience))
        {
            throw new LawBrokenException($"expected: {expected}\nactual:   {_pool.GetStatistics()}");
        }

        // A caller who is cancelled as he is served may have had a lease for a moment.
        bool IsAsExpected(ChannelPoolStatistics actual) =>
            actual.LeasesTaken >= expected.LeasesTaken && actual == expected with { LeasesTaken = actual.LeasesTaken };

        var channels = Describe(_model.Open.Select(channel => (channel.Actual, channel.State, channel.Leases)));
        string actual;
        using (_pool.State.Enter())
        {
            actual = Describe(_pool.State.Channels.Values.Select(static channel => (channel.Channel, channel.State, channel.Leases)));
        }

        if (channels != actual)
        {
            throw new LawBrokenException($"expected: {channels}\nactual:   {actual}");
        }

        var disposed = _policy.Made.Where(_policy.IsDisposed).ToList();
        if (disposed.Except(_model.Closed).Any() || _model.Closed.Except(disposed).Any())
        {
            throw new LawBrokenException($"{disposed.Count} channels are disposed, and {_model.Closed.Count} should be, or others.");
        }
    }

    private void Compare(Call call)
    {
        var error = call.Result.IsCanceled ? typeof(OperationCanceledException) : call.Result.Exception?.InnerException?.GetType();
        if (error is null != call.Error is null || !(call.Error ?? typeof(object)).IsAssignableFrom(error ?? typeof(object)))
        {
            throw new LawBrokenException(
                $"Caller {call.Number} got {error?.Name ?? "no error"}, and should have got {call.Error?.Name ?? "none"}.");
        }

        if (call is { IsGivingBack: false, Error: null })
        {
            var channel = call.Got;
            if (channel != call.Channel?.Actual)
            {
                throw new LawBrokenException(
                    $"Caller {call.Number} got {(channel is null ? "nothing" : "a channel")}, "
                    + $"and should have got {(call.Channel is null ? "nothing" : "another one")}.");
            }

            if (channel is not null)
            {
                (call.IsExplicit ? _explicit : _held).Add(call);
            }
        }
    }

    // All that was taken is given back, whoever waits is served, and the pool is closed.
    private void Finish()
    {
        _model.IsSlow = _model.IsBroken = false;
        while (_model.Makers.FirstOrDefault() is { } call)
        {
            EndCreation(call, works: true);
            Compare();
        }

        while (_held.Count + _explicit.Count > 0)
        {
            if (_held.Count > 0)
            {
                Return(_held[0], LeaseOutcome.Unknown, wanted: true);
            }
            else
            {
                GiveBack(_explicit[0], wanted: true);
            }

            Compare();
        }

        if (_model.Line.Any())
        {
            throw new LawBrokenException("Nothing is leased, and somebody waits.");
        }

        Do(new Operation(Act.Dispose, 0, LeaseOutcome.Unknown, Yes: true));
        Compare();
    }

    // Lets everybody go.
    private void Abandon()
    {
        _model.IsSlow = false;
        _open.ForEach(static call => call.OpenGate(works: false));
        _pool.Dispose();
    }

    private string Describe(IEnumerable<(GrpcChannel Channel, PooledChannelState State, int Leases)> channels)
    {
        var made = _policy.Made.ToList();
        return string.Join(", ", channels.Select(channel => $"#{made.IndexOf(channel.Channel) + 1} {channel.State} {channel.Leases}").Order());
    }

    private void Create()
    {
        if (_model.IsSlow ? !Call.Current!.PassGate() : _model.IsBroken)
        {
            throw new TimeoutException("no dial tone");
        }
    }

    private void Log(string entry, PooledChannel? channel, PooledChannel? replaced)
    {
        if (entry == "ChannelClosed")
        {
            _closedNow.Add(channel!.Channel);
        }
        else if (entry == "ReplacementFailed" || replaced is not null)
        {
            _replacedNow.Add((replaced ?? channel!).Channel);
        }
    }

    private sealed class CallersTime : FakeTimeProvider
    {
        public override ITimer CreateTimer(TimerCallback callback, object? state, TimeSpan dueTime, TimeSpan period)
        {
            var timer = new Unlooked(base.CreateTimer(callback, state, dueTime, period));
            Call.Current?.StartsClock();
            return timer;
        }

        // The look at the channels, four times a second, is not the model's: it replaces broken ones at a time of its own.
        private sealed class Unlooked(ITimer timer) : ITimer
        {
            public bool Change(TimeSpan dueTime, TimeSpan period) => dueTime == TimeSpan.FromSeconds(0.25) || timer.Change(dueTime, period);

            public void Dispose() => timer.Dispose();

            public ValueTask DisposeAsync() => timer.DisposeAsync();
        }
    }
}

using System.Diagnostics;
using PoolingInvoker.FunctionalTests;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.Benchmarks.Scenarios;

/// <summary>One server in a process of its own.</summary>
internal abstract class OneServerScenario : Scenario
{
    private ServerProcess? _server;

    protected Uri Address => _server!.Address;

    public override async Task StartAsync() => _server = await ServerProcess.StartAsync("one");

    public override async ValueTask DisposeAsync()
    {
        await base.DisposeAsync();
        await (_server?.DisposeAsync() ?? ValueTask.CompletedTask);
    }
}

/// <summary>Calls that the server answers at once.</summary>
internal sealed class SmallCalls(int callers, double rateGoal, double? cpuGoal) : OneServerScenario
{
    public override string Key => $"small-{callers}";

    public override string Name => $"small calls, {callers} {(callers == 1 ? "caller" : "callers")}";

    public override IReadOnlyList<Contender> Contenders { get; } =
        [Contender.DefaultChannel, Contender.OneConnection, Contender.InTurn, Contender.GetAndPut, Contender.PackedPool, Contender.Pool];

    public override IReadOnlyList<Figure> Figures { get; } =
    [
        Figure.AtLeast("calls/s", rateGoal),
        cpuGoal is { } goal ? Figure.AtMost("µs of CPU a call", goal) : new Figure("µs of CPU a call", MoreIsBetter: false),
    ];

    // The contenders are few per cent apart, and so are rounds.
    public override int Rounds(bool quick) => quick ? 1 : 5;

    public override async Task<double[]> MeasureAsync(Contender contender, bool quick)
    {
        var load = await Load.OfNamesAsync(ClientOf(contender, Address), callers, TimeSpan.FromSeconds(quick ? 1 : 2));
        return [load.PerSecond, load.MicrosecondsOfCpu];
    }
}

/// <summary>Many calls at a time, each of which the server takes a while for.</summary>
internal sealed class SlowCalls : OneServerScenario
{
    public override string Key => "slow";

    public override string Name => "1,000 callers, calls of 200 ms";

    public override IReadOnlyList<Figure> Figures { get; } = [Figure.AtLeast("calls/s", 1.0), Figure.AtMost("p99, ms", 1.0)];

    public override async Task<double[]> MeasureAsync(Contender contender, bool quick)
    {
        var load = await Load.OfNamesAsync(ClientOf(contender, Address), callers: 1_000, TimeSpan.FromSeconds(quick ? 2 : 4), delayMs: 200);
        return [load.PerSecond, load.P99];
    }
}

/// <summary>Messages that take a connection for themselves for a while.</summary>
internal sealed class LargeMessages : OneServerScenario
{
    public override string Key => "large";

    public override string Name => "8 callers, replies of 1 MB";

    public override IReadOnlyList<Contender> Contenders { get; } = [Contender.DefaultChannel, Contender.OneConnection, Contender.InTurn, Contender.Pool];

    public override IReadOnlyList<Figure> Figures { get; } = [Figure.AtLeast("MB/s", 0.95), new Figure("p99, ms", MoreIsBetter: false)];

    public override async Task<double[]> MeasureAsync(Contender contender, bool quick)
    {
        var client = ClientOf(contender, Address);
        var request = new GetProfileRequest { Id = 7, PictureBytes = 1_000_000 };
        var load = await Load.RunAsync(8, TimeSpan.FromSeconds(quick ? 1 : 2), async token => await client.User.GetProfileAsync(request, cancellationToken: token));
        return [load.PerSecond, load.P99];
    }
}

/// <summary>What a unary call allocates in this process, one call after the other.</summary>
internal sealed class Bytes : OneServerScenario
{
    public override string Key => "bytes";

    public override string Name => "allocations, unary calls one after the other";

    public override IReadOnlyList<Contender> Contenders { get; } = [Contender.DefaultChannel, Contender.OneConnection, Contender.Pool];

    public override IReadOnlyList<Figure> Figures { get; } = [Figure.AtMost("bytes a call", 1.025)];

    public override int Rounds(bool quick) => 3;

    public override async Task<double[]> MeasureAsync(Contender contender, bool quick)
    {
        var client = ClientOf(contender, Address);
        var request = new GetNameRequest { Id = 7 };
        await client.User.GetNameAsync(request);
        return [await AllocatedBytes.OfEachAsync(10_000, () => client.User.GetNameAsync(request).ResponseAsync)];
    }
}

/// <summary>All callers come at once, and there is no connection yet. The code has run before.</summary>
internal sealed class ColdBurst : OneServerScenario
{
    public override string Key => "cold";

    public override string Name => "no connection yet, 1,000 calls of 100 ms at once";

    public override IReadOnlyList<Figure> Figures { get; } = [Figure.AtMost("last answer, ms", 1.0)];

    public override async Task<double[]> MeasureAsync(Contender contender, bool quick)
    {
        await using var client = contender.Connect(Address);
        var since = Stopwatch.GetTimestamp();
        await Task.WhenAll(Enumerable.Range(0, 1_000).Select(async _ => await client.User.GetNameAsync(new GetNameRequest { DelayMs = 100 })));
        return [Stopwatch.GetElapsedTime(since).TotalMilliseconds];
    }
}

/// <summary>A process that has just begun, up to its first answer.</summary>
internal sealed class FirstAnswer : OneServerScenario
{
    public override string Key => "first";

    public override string Name => "first answer of a fresh process";

    public override IReadOnlyList<Contender> Contenders { get; } = [Contender.DefaultChannel, Contender.OneConnection, Contender.Pool];

    public override IReadOnlyList<Figure> Figures { get; } = [Figure.AtMost("ms", 1.15)];

    public override async Task<double[]> MeasureAsync(Contender contender, bool quick) => [await Child.RunAsync(Child.First, contender, Address)];
}

/// <summary>Streams that nothing passes over. What they hold in this process is measured in one of its own.</summary>
internal sealed class IdleStreams : OneServerScenario
{
    public const int Streams = 10_000;

    public override string Key => "idle";

    public override string Name => "10,000 idle streams";

    public override IReadOnlyList<Contender> Contenders { get; } = [Contender.DefaultChannel, Contender.Pool];

    public override IReadOnlyList<Figure> Figures { get; } =
        [new Figure("bytes held, a stream", MoreIsBetter: false, "≤ +300", static (pool, first) => pool <= first + 300)];

    public override int Rounds(bool quick) => 1;

    public override async Task<double[]> MeasureAsync(Contender contender, bool quick) => [await Child.RunAsync(Child.Idle, contender, Address)];
}

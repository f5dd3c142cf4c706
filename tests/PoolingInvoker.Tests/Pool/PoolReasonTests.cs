using System.Reflection;
using Grpc.Core;

namespace PoolingInvoker.Tests.Pool;

/// <summary>Every reason that the pool has is of a kind, and every kind has a reason.</summary>
public sealed class PoolReasonTests
{
    private const BindingFlags Statics = BindingFlags.Static | BindingFlags.Public;

    private static readonly PoolReason[] Constant =
        [.. typeof(PoolReason).GetFields(Statics).Select(static field => field.GetValue(null)).OfType<PoolReason>()];

    private static readonly PoolReason[] Made =
    [
        PoolReason.Crowded(12),
        PoolReason.ConnectionLost(ConnectivityState.Shutdown),
        PoolReason.Silent(TimeSpan.FromSeconds(2), isAnsweredElsewhere: true),
        PoolReason.Silent(TimeSpan.FromSeconds(2), isAnsweredElsewhere: false),
        PoolReason.TooOld(TimeSpan.FromMinutes(30)),
        PoolReason.Idle(TimeSpan.FromMinutes(10)),
        PoolReason.NoReplacement(" to 10.0.0.1:5000"),
        PoolReason.Refused(new TimeoutException("full"), isLineFull: true),
        PoolReason.Refused(new TimeoutException("full"), isLineFull: false),
        PoolReason.AffinityMoved(3, 40),
        PoolReason.Surplus(5),
        PoolReason.Changed("MaxPoolSize 100 → 5"),
        PoolReason.SlowListener(7),
        PoolReason.PriorityChanged([new PoolPriority(0), new PoolPriority(1)]),
    ];

    [Fact]
    public void EveryKind_HasAReason_AndNoReasonIsMadeElsewhere()
    {
        Assert.Equal(Enum.GetValues<ChannelPoolEventReason>(), Constant.Concat(Made).Select(static reason => reason.Kind).Distinct().Order());
        var factories = typeof(PoolReason).GetMethods(Statics).Where(static method => method.ReturnType == typeof(PoolReason)).Select(static method => method.Name);
        Assert.Equal(["AffinityMoved", "Changed", "ConnectionLost", "Crowded", "Idle", "NoReplacement", "PriorityChanged", "Refused", "Silent", "SlowListener", "Surplus", "TooOld"], factories.Order());
        Assert.Empty(typeof(PoolReason).GetConstructors());
    }

    [Fact]
    public void NoTwo_SayTheSame_ButThatACallWasRefused()
    {
        var words = Constant.Concat(Made).Where(static reason => reason.Words != "full").Select(static reason => reason.Words).ToList();
        Assert.Equal(words.Distinct(), words);
    }
}

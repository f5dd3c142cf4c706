using Grpc.Core;
using PoolingInvoker.Testing;

namespace PoolingInvoker.Tests.Calls;

/// <summary>
/// A call may end well after its deadline, or after the channel has said that it gets no headers. Each question whether it has costs an
/// exception.
/// </summary>
public sealed class LateEndTests : ScriptedCalls
{
    [Fact]
    public async Task AfterItsDeadline_ACallIsAskedSomeTenTimes()
    {
        var (_, pool) = NewClient();
        var call = new LateCall(await pool.AcquireAsync().Soon());
        call.Watch(default(CallOptions).WithDeadline(Time.GetUtcNow().UtcDateTime), Time);
        for (var i = 0; i < 2000; i++)
        {
            Time.Advance(TimeSpan.FromMilliseconds(1));
        }

        Assert.InRange(call.Asked, 2, 15);
        Assert.False(call.IsReleased);
        call.HasEnded = true;
        Time.Advance(TimeSpan.FromSeconds(2));
        Assert.True(call.IsReleased);
    }

    [Fact]
    public async Task AfterItsHeaders_ACallIsAskedSomeTenTimes()
    {
        var (_, pool) = NewClient();
        using var lease = await pool.AcquireAsync().Soon();
        var call = new LateCall(lease);
        Assert.False(await call.IsSoonOverAsync());
        Assert.InRange(call.Asked, 2, 15);
    }

    private sealed class LateCall(ChannelLease lease) : CallAttempt(lease.Pooled, lease)
    {
        public int Asked { get; private set; }

        public bool HasEnded { get; set; }

        protected override Task<Metadata> InnerHeadersAsync => throw new NotSupportedException();

        public void Watch(CallOptions options, TimeProvider time) => _ = new CallCompletion(this, new GivenOptions(null, options), time);

        public override bool IsOver()
        {
            Asked++;
            return HasEnded;
        }

        public override Status GetStatus() => throw new NotSupportedException();

        public override Metadata GetTrailers() => throw new NotSupportedException();

        public override void Dispose() => throw new NotSupportedException();
    }
}

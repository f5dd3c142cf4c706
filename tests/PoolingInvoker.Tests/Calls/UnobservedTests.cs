using System.Runtime.CompilerServices;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.Tests.Calls;

/// <summary>
/// What the caller has ended, nobody need look at: no exception of it is reported as unobserved. Those reports are of the whole process,
/// so nothing else runs meanwhile.
/// </summary>
[Collection(nameof(UnobservedTests))]
public sealed class UnobservedTests : ScriptedCalls
{
    [Fact]
    public async Task AReadThatIsCancelledBeforeThereIsALease()
    {
        var (client, pool) = NewClient(static options => (options.Pool.MaxPoolSize, options.Pool.MaxConcurrentCallsPerChannel) = (1, 1));
        using var taken = await pool.AcquireAsync().Soon();
        await Unobserved.LeavesNothingUnobservedAsync(async () =>
        {
            await CancelAsync(client).Soon();
            await Waiting.Until(() => pool.GetStatistics().CallsWaiting == 0);
        });

        [MethodImpl(MethodImplOptions.NoInlining)]
        static async Task CancelAsync(User.UserClient client)
        {
            using var cancellation = new CancellationTokenSource();
            using var call = client.ListNames(new ListNamesRequest());
            var reading = call.ResponseStream.MoveNext(cancellation.Token);
            await cancellation.CancelAsync();
            await reading.ContinueWith(static task => Assert.NotNull(task.Exception), TaskScheduler.Default);
        }
    }

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public async Task ACancelledUnaryCallThatNobodyAwaits(bool pooled)
    {
        Server.ThenHang();
        using var channel = Server.Create();
        var (client, pool) = NewClient();
        await Unobserved.LeavesNothingUnobservedAsync(async () =>
        {
            Cancel(pooled ? client : new User.UserClient(channel));
            await Waiting.Until(() => pool.GetStatistics().CallsInFlight == 0);
        });

        [MethodImpl(MethodImplOptions.NoInlining)]
        static void Cancel(User.UserClient client)
        {
            using var cancellation = new CancellationTokenSource();
            _ = client.GetNameAsync(new GetNameRequest(), cancellationToken: cancellation.Token);
            cancellation.Cancel();
        }
    }

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public async Task AResponseThatNobodyAwaits_WhoseHeadersHaveFailed(bool pooled)
    {
        Server.ThenThrow(new InvalidDataException());
        using var channel = Server.Create();
        var (client, pool) = NewClient();
        await Unobserved.LeavesNothingUnobservedAsync(async () =>
        {
            await AwaitHeadersAsync(pooled ? client : new User.UserClient(channel)).Soon();
            await Waiting.Until(() => pool.GetStatistics().CallsInFlight == 0);
        });

        [MethodImpl(MethodImplOptions.NoInlining)]
        static async Task AwaitHeadersAsync(User.UserClient client)
        {
            var call = client.GetNameAsync(new GetNameRequest());
            await call.ResponseHeadersAsync.ContinueWith(static headers => Assert.NotNull(headers.Exception), TaskScheduler.Default);
        }
    }
}

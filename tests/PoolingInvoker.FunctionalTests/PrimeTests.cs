using Microsoft.Extensions.Time.Testing;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.FunctionalTests;

/// <summary>Priming calls over real connections.</summary>
public sealed class PrimeTests
{
    [Fact]
    public async Task AChannelThatTakesLongToConnect_IsPrimedAllTheSame()
    {
        var speaks = new TaskCompletionSource(TaskCreationOptions.RunContinuationsAsynchronously);
        var primed = 0;
        await using var server = new RawServer(maxStreams: 100) { Speaks = speaks.Task };
        var time = new FakeTimeProvider(TimeProvider.System.GetUtcNow());
        using var pool = ChannelPool.ForAddress(server.Address, new ChannelPoolOptions
        {
            PrimeCallback = async (invoker, cancellationToken) =>
            {
                await new User.UserClient(invoker).GetNameAsync(new GetNameRequest(), cancellationToken: cancellationToken);
                Interlocked.Increment(ref primed);
            },
            TimeProvider = time,
        });
        var acquiring = pool.AcquireAsync().AsTask();
        await Waiting.Until(() => server.Accepted == 1);
        for (var i = 0; i < 100; i++)
        {
            // Its server does not speak for two seconds, and there is no other channel.
            time.Advance(TimeSpan.FromMilliseconds(20));
            await Task.Yield();
            Assert.False(acquiring.IsCompleted, "A call got a channel that was not primed.");
        }

        speaks.SetResult();
        (await acquiring.Soon()).Dispose();
        Assert.Equal((1, 1), (primed, server.Connections[0].Calls));
    }
}

using Grpc.Net.Client;
using PoolingInvoker.Testing;

namespace PoolingInvoker.ContractTests;

/// <summary>
/// What holds for each kind of call, whatever ends it: it looks as it does on a bare channel, which is called beside it in the same
/// situation, and its lease comes back.
/// </summary>
public abstract class CallContract(ContractServer server, CallKind kind) : IClassFixture<ContractServer>
{
    [Theory]
    [MemberData(nameof(Ending.OfTheServer), MemberType = typeof(Ending))]
    public Task EndedByTheServer(string ending) => SameAsBareAsync(new Scenario(ending));

    [Theory]
    [MemberData(nameof(Ending.OfTheServer), MemberType = typeof(Ending))]
    public Task EndedByTheServer_HeadersReadFirst(string ending) => SameAsBareAsync(new Scenario(ending) { ReadsHeadersFirst = true });

    [Fact]
    public Task CancelledBeforeTheStart() => SameAsBareAsync(new Scenario(Ending.Response) { Cancel = Point.BeforeStart });

    [Fact]
    public Task CancelledBeforeHeaders() => SameAsBareAsync(new Scenario(Ending.HangBeforeHeaders) { Cancel = Point.BeforeHeaders });

    [Fact]
    public Task CancelledAfterHeaders() => SameAsBareAsync(new Scenario(Ending.HangAfterHeaders) { Cancel = Point.AfterHeaders });

    [Fact]
    public Task DeadlineBeforeTheStart() => SameAsBareAsync(new Scenario(Ending.Response) { AbsoluteDeadline = DateTime.UtcNow.AddSeconds(-1) });

    [Fact]
    public Task DeadlineBeforeHeaders() => SameAsBareAsync(new Scenario(Ending.HangBeforeHeaders) { Deadline = TimeSpan.FromMilliseconds(400) });

    [Fact]
    public Task DeadlineAfterHeaders() => SameAsBareAsync(new Scenario(Ending.HangAfterHeaders) { Deadline = TimeSpan.FromMilliseconds(400) });

    [Fact]
    public Task DeadlineThatIsNotUtc() => SameAsBareAsync(new Scenario(Ending.Response) { AbsoluteDeadline = new DateTime(2100, 1, 1, 0, 0, 0, DateTimeKind.Local) });

    [Fact]
    public Task RequestMarshallerThrows() => SameAsBareAsync(new Scenario(Ending.Response) { RequestMarshallerThrows = true });

    [Fact]
    public Task ResponseMarshallerThrows() => SameAsBareAsync(new Scenario(Ending.Response) { ResponseMarshallerThrows = true });

    [Fact]
    public Task CredentialsThrow() => SameAsBareAsync(new Scenario(Ending.Response) { CredentialsThrow = true });

    [Fact]
    public async Task ChannelDisposedBefore()
    {
        using var channel = NewChannel();
        var invoker = channel.CreateCallInvoker();
        channel.Dispose();
        var pool = NewPool();
        await pool.DisposeAsync();
        var bare = await new Conversation(invoker, kind, server).RunAsync(new Scenario(Ending.Response));
        var pooled = await new Conversation(pool, kind, server).RunAsync(new Scenario(Ending.Response));
        Assert.Equal(bare, pooled);
    }

    [Fact]
    public Task CancelledWhileItWaitsForALease() => SameAsBareWhenTheLeaseIsAwaitedAsync(new Scenario(Ending.HangBeforeReading) { Cancel = Point.BeforeHeaders });

    [Fact]
    public Task DeadlineWhileItWaitsForALease() => SameAsBareWhenTheLeaseIsAwaitedAsync(new Scenario(Ending.HangBeforeReading) { Deadline = TimeSpan.FromMilliseconds(400) });

    /// <summary>A call that has no channel yet looks like one that has no answer yet.</summary>
    protected async Task SameAsBareWhenTheLeaseIsAwaitedAsync(Scenario scenario)
    {
        using var channel = NewChannel();
        await using var pool = NewPool(static options => (options.MaxPoolSize, options.MaxConcurrentCallsPerChannel) = (1, 1));
        using var taken = await pool.Pool.AcquireAsync().Soon();
        scenario = scenario with { Writes = false };
        var bare = await new Conversation(channel.CreateCallInvoker(), kind, server).RunAsync(scenario);
        var pooled = await new Conversation(pool, kind, server, () => Waiting.Until(() => pool.Pool.GetStatistics().CallsWaiting == 1)).RunAsync(scenario);
        Assert.Equal(bare, pooled);
        taken.Dispose();
        await NothingIsLeftAsync(pool);
    }

    protected async Task SameAsBareAsync(Scenario scenario)
    {
        using var channel = NewChannel();
        await using var pool = NewPool();
        var bare = await new Conversation(channel.CreateCallInvoker(), kind, server).RunAsync(scenario);
        Assert.NotEmpty(bare);

        // The first call makes the channel and starts when it has it; the second one finds it and starts at once.
        var first = await new Conversation(pool, kind, server, whenOver: () => NothingIsLeftAsync(pool)).RunAsync(scenario);
        Assert.Equal(bare, first);
        await NothingIsLeftAsync(pool);
        var second = await new Conversation(pool, kind, server, whenOver: () => NothingIsLeftAsync(pool)).RunAsync(scenario);
        Assert.Equal(bare, second);
        await NothingIsLeftAsync(pool);
    }

    protected static Task NothingIsLeftAsync(PoolingCallInvoker pool) =>
        Waiting.Until(() => pool.Pool.GetStatistics() is { CallsInFlight: 0, CallsWaiting: 0 });

    private GrpcChannel NewChannel() => GrpcChannel.ForAddress(server.Address, new GrpcChannelOptions { UnsafeUseInsecureChannelCallCredentials = true });

    // With the retry on, as it is by default. The methods are not idempotent, so that each call is one attempt, as on a bare channel.
    private PoolingCallInvoker NewPool(Action<ChannelPoolOptions>? configure = null)
    {
        var options = new PoolingCallInvokerOptions();
        options.Pool.ConfigureChannel = static channel => channel.UnsafeUseInsecureChannelCallCredentials = true;
        configure?.Invoke(options.Pool);
        return PoolingCallInvoker.ForAddress(server.Address, options);
    }
}

/// <summary>What holds for calls with a call object, on top.</summary>
public abstract class CallObjectContract(ContractServer server, CallKind kind) : CallContract(server, kind)
{
    [Fact]
    public Task DisposedBeforeAnything() => SameAsBareAsync(new Scenario(Ending.HangBeforeReading) { Dispose = Point.BeforeHeaders, Writes = false });

    [Fact]
    public Task DisposedWhileItWaitsForALease() => SameAsBareWhenTheLeaseIsAwaitedAsync(new Scenario(Ending.HangBeforeReading) { Dispose = Point.BeforeHeaders });

    [Fact]
    public Task DisposedAfterHeaders() => SameAsBareAsync(new Scenario(Ending.HangAfterHeaders) { Dispose = Point.AfterHeaders });
}

/// <summary>What holds for calls with a stream of responses, on top.</summary>
public abstract class ResponseStreamContract(ContractServer server, CallKind kind) : CallObjectContract(server, kind)
{
    [Fact]
    public Task CancelledInMidStream() => SameAsBareAsync(new Scenario(Ending.HangAfterMessage) { Cancel = Point.AfterMessage });

    [Fact]
    public Task DeadlineInMidStream() => SameAsBareAsync(new Scenario(Ending.HangAfterMessage) { Deadline = TimeSpan.FromMilliseconds(400) });

    [Fact]
    public Task DisposedInMidStream() => SameAsBareAsync(new Scenario(Ending.HangAfterMessage) { Dispose = Point.AfterMessage });

    [Fact]
    public Task DisposedAndNotRead() => SameAsBareAsync(new Scenario(Ending.HangAfterHeaders) { Dispose = Point.AfterHeaders, Reads = false });

    [Fact]
    public Task CancelledAndNotRead_BeforeHeaders() => SameAsBareAsync(new Scenario(Ending.HangBeforeHeaders) { Cancel = Point.BeforeHeaders, Reads = false });

    [Fact]
    public Task CancelledAndNotRead_AfterHeaders() => SameAsBareAsync(new Scenario(Ending.HangAfterHeaders) { Cancel = Point.AfterHeaders, Reads = false });

    [Fact]
    public Task CancelledAndNotRead_AfterAMessage() => SameAsBareAsync(new Scenario(Ending.HangAfterMessage) { Cancel = Point.AfterMessage, Reads = false });

    [Fact]
    public Task DeadlineAndNotRead_BeforeHeaders() => SameAsBareAsync(new Scenario(Ending.HangBeforeHeaders) { Deadline = TimeSpan.FromMilliseconds(400), Reads = false });

    [Fact]
    public Task DeadlineAndNotRead_AfterHeaders() => SameAsBareAsync(new Scenario(Ending.HangAfterHeaders) { Deadline = TimeSpan.FromMilliseconds(400), Reads = false });

    [Fact]
    public Task TransportFailureAndNotRead_BeforeHeaders() => SameAsBareAsync(new Scenario(Ending.AbortBeforeHeaders) { Reads = false });
}

public sealed class UnaryContract(ContractServer server) : CallObjectContract(server, CallKind.Unary);

public sealed class BlockingUnaryContract(ContractServer server) : CallContract(server, CallKind.BlockingUnary);

public sealed class ClientStreamingContract(ContractServer server) : CallObjectContract(server, CallKind.ClientStreaming);

public sealed class ServerStreamingContract(ContractServer server) : ResponseStreamContract(server, CallKind.ServerStreaming);

public sealed class DuplexContract(ContractServer server) : ResponseStreamContract(server, CallKind.Duplex);

using Grpc.Core;
using Grpc.Net.Client.Configuration;
using Polly;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.Tests.Calls;

/// <summary>
/// Callbacks of the user's that throw where a call is ended: those that a strategy, or a handler below the channel, has registered with the
/// token of an attempt. Whatever they throw, the call ends, its lease comes back, and no timer lets it through.
/// </summary>
public sealed class ThrowingCallbackTests : ScriptedCalls
{
    private const string OfTheUsers = "of the user's";

    public static TheoryData<string, string> Endings()
    {
        var endings = new TheoryData<string, string>();
        foreach (var kind in (string[])["unary", "client streaming", "server streaming", "duplex"])
        {
            foreach (var how in (string[])["dispose", "token", "deadline"])
            {
                endings.Add(kind, how);
            }
        }

        return endings;
    }

    [Theory]
    [MemberData(nameof(Endings))]
    public async Task ThatOfAStrategy_EndsNothingElse(string kind, string how)
    {
        Server.ThenHang();
        var registered = new TaskCompletionSource();
        var (client, pool) = NewClient(options => options.ConfigurePipeline = pipeline => pipeline.AddStrategy(_ => new Registers(registered), new RegistersOptions()));
        using var cancellation = new CancellationTokenSource();

        // The channel goes by the clock of the machine.
        DateTime? deadline = how == "deadline" ? DateTime.UtcNow.AddSeconds(0.5) : null;
        var (call, ending) = Start(client, kind, new CallOptions(deadline: deadline, cancellationToken: cancellation.Token));
        await registered.Task.Soon();
        await Waiting.Until(() => Server.Requests.Count == 1);
        switch (how)
        {
            case "dispose":
                call.Dispose();
                break;
            case "token":
                cancellation.Cancel();
                break;
            default:
                Time.Advance(TimeSpan.FromSeconds(1));
                break;
        }

        var exception = await Assert.ThrowsAsync<RpcException>(() => ending.Soon());
        Assert.Equal(how == "deadline" ? StatusCode.DeadlineExceeded : StatusCode.Cancelled, exception.StatusCode);
        await Waiting.Until(() => pool.GetStatistics().CallsInFlight == 0);
    }

    [Theory]
    [InlineData("unary")]
    [InlineData("server streaming")]
    [InlineData("duplex")]
    public async Task ThatOfAHandler_IsThrownByDispose_AsOnABareChannel_AndTheLeaseComesBack(string kind)
    {
        using var channel = Server.Create();
        var (client, pool) = NewClient();
        (await pool.AcquireAsync().Soon()).Dispose();
        Assert.Equal(await DisposeAsync(new User.UserClient(channel)), await DisposeAsync(client));
        await Waiting.Until(() => pool.GetStatistics().CallsInFlight == 0);

        async Task<string?> DisposeAsync(User.UserClient client)
        {
            var registered = new TaskCompletionSource();
            Server.Then(token => RegisterAndHangAsync(registered, token));
            var (call, ending) = Start(client, kind, default);
            await registered.Task.Soon();
            ending.Observe(); // that of a bare channel may not end
            return Record.Exception(call.Dispose)?.GetType().Name;
        }
    }

    [Theory]
    [InlineData("unary")]
    [InlineData("client streaming")]
    [InlineData("server streaming")]
    [InlineData("duplex")]
    public async Task ThatOfAHandler_IsNotThrownByATimeoutOfThePipeline(string kind)
    {
        var registered = new TaskCompletionSource();
        Server.Then(token => RegisterAndHangAsync(registered, token));
        var (client, pool) = NewClient(static options => options.ConfigurePipeline = static pipeline => pipeline.AddTimeout(TimeSpan.FromSeconds(1)));
        var (call, ending) = Start(client, kind, default);
        await registered.Task.Soon();
        Time.Advance(TimeSpan.FromSeconds(1)); // the timer runs here
        await Waiting.Until(() => pool.GetStatistics().CallsInFlight == 0);
        if (kind is "unary" or "client streaming")
        {
            var exception = await Assert.ThrowsAsync<RpcException>(() => ending.Soon());
            Assert.Equal(StatusCode.DeadlineExceeded, exception.StatusCode);
        }

        ending.Observe(); // a read on a channel whose Dispose has thrown does not end
        call.Dispose();
    }

    [Theory]
    [InlineData("ShouldHandle")]
    [InlineData("DelayGenerator")]
    [InlineData("OnHedging")]
    [InlineData("ActionGenerator")]
    [InlineData("action")]
    [InlineData("action without an attempt")]
    public async Task OfAHedge_TheCallEnds_AndNoLeaseStaysOut(string what)
    {
        // The first attempt fails in time only for who asks what became of it.
        _ = what == "ShouldHandle" ? Server.ThenStatus(StatusCode.Unavailable) : Server.ThenHang();
        var hedging = new ChannelHedgingStrategyOptions { Delay = TimeSpan.FromMilliseconds(100) };
        switch (what)
        {
            case "ShouldHandle":
                hedging.ShouldHandle = static _ => throw new FormatException(OfTheUsers);
                break;
            case "DelayGenerator":
                hedging.DelayGenerator = static _ => throw new FormatException(OfTheUsers);
                break;
            case "OnHedging":
                hedging.OnHedging = static _ => throw new FormatException(OfTheUsers);
                break;
            case "ActionGenerator":
                hedging.ActionGenerator = static _ => throw new FormatException(OfTheUsers);
                break;
            case "action":
                hedging.ActionGenerator = static _ => static () => throw new FormatException(OfTheUsers);
                break;
            default:
                hedging.ActionGenerator = static _ => static () => ValueTask.FromResult(Outcome.FromResult<object>(new GetNameReply { Name = "mine" }));
                break;
        }

        var (client, pool) = NewClient(options => options.MethodConfigs.Add(new PooledMethodConfig { Names = { MethodName.Default }, Hedging = hedging, Idempotent = true }));
        using var call = client.GetNameAsync(new GetNameRequest());
        await Elapse(call.ResponseAsync);
        if (what == "action without an attempt")
        {
            Assert.Equal("mine", (await call.ResponseAsync.Soon()).Name);
            Assert.Equal(StatusCode.OK, call.GetStatus().StatusCode);
            Assert.Empty(call.GetTrailers());
        }
        else
        {
            var exception = await Assert.ThrowsAsync<RpcException>(() => call.ResponseAsync.Soon());
            Assert.Equal(StatusCode.Internal, exception.StatusCode);
            Assert.IsType<FormatException>(exception.Status.DebugException);
            Assert.Equal(StatusCode.Internal, call.GetStatus().StatusCode);
        }

        await Waiting.Until(() => pool.GetStatistics().CallsInFlight == 0);
    }

    [Fact]
    public async Task ATimeProviderThatThrows_EndsTheCallAsInternal()
    {
        var time = new NoTimers();
        var (client, pool) = NewClient(options => options.Pool.TimeProvider = time);
        Server.ThenName("anna");
        await client.GetNameAsync(new GetNameRequest()).ResponseAsync.Soon();
        time.Throws = true;
        foreach (var kind in (string[])["unary", "client streaming", "server streaming", "duplex"])
        {
            // The slow path, which has a timer for the deadline.
            var (call, ending) = Start(client, kind, new CallOptions(deadline: DateTime.UtcNow.AddHours(1)).WithWaitForReady());
            using (call)
            {
                var exception = await Assert.ThrowsAsync<RpcException>(() => ending.Soon());
                Assert.Equal(StatusCode.Internal, exception.StatusCode);
            }
        }

        time.Throws = false;
        await Waiting.Until(() => pool.GetStatistics().CallsInFlight == 0);
    }

    private static async Task<HttpResponseMessage> RegisterAndHangAsync(TaskCompletionSource registered, CancellationToken token)
    {
        using var registration = token.Register(static () => throw new FormatException(OfTheUsers));
        registered.SetResult();
        await Task.Delay(Timeout.InfiniteTimeSpan, TimeProvider.System, token);
        throw new InvalidOperationException();
    }

    // What shows the end of the call: its response, or a read.
    private static (IDisposable Call, Task Ending) Start(User.UserClient client, string kind, CallOptions options)
    {
        switch (kind)
        {
            case "unary":
                var unary = client.GetNameAsync(new GetNameRequest(), options);
                return (unary, unary.ResponseAsync);
            case "client streaming":
                var import = client.ImportNames(options);
                return (import, import.ResponseAsync);
            case "server streaming":
                var list = client.ListNames(new ListNamesRequest(), options);
                return (list, list.ResponseStream.MoveNext(CancellationToken.None));
            default:
                var chat = client.Chat(options);
                return (chat, chat.ResponseStream.MoveNext(CancellationToken.None));
        }
    }

    private sealed class RegistersOptions : ResilienceStrategyOptions;

    private sealed class Registers(TaskCompletionSource registered) : ResilienceStrategy
    {
        protected override async ValueTask<Outcome<TResult>> ExecuteCore<TResult, TState>(
            Func<ResilienceContext, TState, ValueTask<Outcome<TResult>>> callback, ResilienceContext context, TState state)
        {
            using var registration = context.CancellationToken.Register(static () => throw new FormatException(OfTheUsers));
            registered.TrySetResult();
            return await callback(context, state);
        }
    }

    private sealed class NoTimers : TimeProvider
    {
        public bool Throws { get; set; }

        public override ITimer CreateTimer(TimerCallback callback, object? state, TimeSpan dueTime, TimeSpan period) =>
            Throws ? throw new FormatException(OfTheUsers) : base.CreateTimer(callback, state, dueTime, period);
    }
}

using System.Reflection;
using System.Runtime.CompilerServices;
using System.Text;
using Grpc.Core;
using Grpc.Net.Client;
using Microsoft.Extensions.Time.Testing;
using PoolingInvoker.Testing;

namespace PoolingInvoker.ContractTests;

/// <summary>Streams used in unusual ways: dropped, read and written at the same time, completed while disposed.</summary>
public sealed class StreamUseTests(ContractServer server) : IClassFixture<ContractServer>, IAsyncLifetime
{
    private static readonly Marshaller<string> Text = Marshallers.Create(Encoding.UTF8.GetBytes, Encoding.UTF8.GetString);

    private readonly FakeTimeProvider _time = new(DateTimeOffset.UtcNow);
    private PoolingCallInvoker _pool = null!;
    private GrpcChannel _channel = null!;

    public ValueTask InitializeAsync()
    {
        _pool = PoolingCallInvoker.ForAddress(server.Address, new PoolingCallInvokerOptions { Pool = { TimeProvider = _time, PooledChannelLifetime = Timeout.InfiniteTimeSpan, ProbeDelay = Timeout.InfiniteTimeSpan } });
        _channel = GrpcChannel.ForAddress(server.Address);
        return ValueTask.CompletedTask;
    }

    public async ValueTask DisposeAsync()
    {
        await Waiting.Until(() => _pool.Pool.GetStatistics().CallsInFlight == 0);
        await _pool.DisposeAsync();
        _channel.Dispose();
    }

    [Theory]
    [InlineData(MethodType.ServerStreaming, Ending.HangAfterHeaders)]
    [InlineData(MethodType.ServerStreaming, Ending.HangAfterMessage)]
    [InlineData(MethodType.DuplexStreaming, Ending.HangAfterMessage)]
    [InlineData(MethodType.ClientStreaming, Ending.HangBeforeReading)] // half a minute later, as its response might be awaited
    public async Task ADroppedCall_IsEndedAndItsLeaseTakenBack(MethodType kind, string ending)
    {
        // Held until the server has the call: a collection before that would take it back before it is sent.
        List<object> held = [];
        var id = await StartAsync(kind, ending, held);
        GC.Collect();
        GC.WaitForPendingFinalizers();
        await server.Reached(id).Soon();
        Assert.Equal((1, 0), (_pool.Pool.GetStatistics().CallsInFlight, _pool.Pool.GetStatistics().LeaksReclaimed));
        held.Clear();
        await Waiting.Until(() =>
        {
            GC.Collect();
            GC.WaitForPendingFinalizers();
            _time.Advance(TimeSpan.FromSeconds(1));
            return _pool.Pool.GetStatistics().CallsInFlight == 0;
        });
        Assert.Equal(1, _pool.Pool.GetStatistics().LeaksReclaimed);
    }

    [Fact]
    public async Task ACallOfWhichOnlyTheResponseIsHeld_IsNotDropped()
    {
        var response = await StartAndHoldResponseAsync();
        for (var i = 0; i < 5; i++)
        {
            GC.Collect();
            GC.WaitForPendingFinalizers();
            await Task.Yield();
        }

        Assert.False(response.IsCompleted);
        Assert.Equal(0, _pool.Pool.GetStatistics().LeaksReclaimed);
        Assert.Equal(1, _pool.Pool.GetStatistics().CallsInFlight);
        _pool.Dispose();
        await Assert.ThrowsAsync<RpcException>(() => response.Soon());
    }

    [Fact]
    public async Task ASecondRead_WhileOneIsUnderWay_IsRefused_AndDoesNotEndTheCall()
    {
        foreach (var invoker in Both())
        {
            var (options, id) = Options(Ending.HangAfterHeaders);
            using var call = invoker.AsyncServerStreamingCall(NewMethod(MethodType.ServerStreaming), null, options, "hello");
            var first = call.ResponseStream.MoveNext(CancellationToken.None);
            await server.Reached(id).Soon();
            await Assert.ThrowsAsync<InvalidOperationException>(() => call.ResponseStream.MoveNext(CancellationToken.None).Soon());
            Assert.False(first.IsCompleted);
            Assert.Throws<InvalidOperationException>(() => call.GetStatus());
            call.Dispose();
            await Assert.ThrowsAsync<RpcException>(() => first.Soon());
        }
    }

    [Fact]
    public async Task ASecondWrite_WhileOneWaits_IsRefused_AndSoIsCompleting()
    {
        await using var pool = PoolingCallInvoker.ForAddress(server.Address, new PoolingCallInvokerOptions
        {
            Pool = { MaxPoolSize = 1, MaxConcurrentCallsPerChannel = 1 },
        });
        var taken = await pool.Pool.AcquireAsync().Soon();
        var (options, _) = Options(Ending.Response);
        using var call = pool.AsyncClientStreamingCall(NewMethod(MethodType.ClientStreaming), null, options);
        var first = call.RequestStream.WriteAsync("hello");
        await Assert.ThrowsAsync<InvalidOperationException>(() => call.RequestStream.WriteAsync("hello").Soon());
        await Assert.ThrowsAsync<InvalidOperationException>(() => call.RequestStream.CompleteAsync().Soon());
        Assert.False(first.IsCompleted);

        taken.Dispose();
        await first.Soon();
        await call.RequestStream.CompleteAsync().Soon();
        Assert.Equal("one", await call.ResponseAsync.Soon());
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public async Task Misuse_IsToldInTheWordsOfABareChannel(bool waits)
    {
        await using var waiting = PoolingCallInvoker.ForAddress(server.Address, new PoolingCallInvokerOptions
        {
            Pool = { MaxPoolSize = 1, MaxConcurrentCallsPerChannel = 1 },
        });
        using var taken = await waiting.Pool.AcquireAsync().Soon();
        Assert.Equal(await ToldAsync(_channel.CreateCallInvoker()), await ToldAsync(waits ? waiting : _pool));

        static async Task<string[]> ToldAsync(CallInvoker invoker)
        {
            var told = new List<string>();
            var (options, _) = Options(Ending.HangBeforeReading);
            told.Add((await Record.ExceptionAsync(() =>
                invoker.AsyncUnaryCall(NewMethod(MethodType.Unary), null, options.WithDeadline(DateTime.Now), "hello").ResponseAsync.Soon()))!.Message);
            using (var call = invoker.AsyncDuplexStreamingCall(NewMethod(MethodType.DuplexStreaming), null, options))
            {
                await TellAsync(() => call.RequestStream.WriteAsync(null!));
                await TellAsync(() => Task.FromResult(call.GetStatus()));
                await TellAsync(() => Task.FromResult(call.GetTrailers()));
                var writing = call.RequestStream.WriteAsync(new string('x', 2_000_000));
                await TellAsync(() => call.RequestStream.WriteAsync("hello"));
                await TellAsync(() => call.RequestStream.CompleteAsync());
                var reading = call.ResponseStream.MoveNext(CancellationToken.None);
                await TellAsync(() => call.ResponseStream.MoveNext(CancellationToken.None));
                call.Dispose();
                await Task.WhenAll(writing, reading).ContinueWith(static both => both.Exception, TaskScheduler.Default).Soon(); // seen, so that it is not reported in another test
            }

            using (var call = invoker.AsyncClientStreamingCall(NewMethod(MethodType.ClientStreaming), null, options))
            {
                await call.RequestStream.CompleteAsync().Soon();
                await TellAsync(() => call.RequestStream.WriteAsync("hello"));
                await TellAsync(() => call.RequestStream.WriteAsync("hello", CancellationToken.None));
                await TellAsync(() => call.RequestStream.CompleteAsync());
            }

            return [.. told];

            async Task TellAsync(Func<Task> misuse) => told.Add(await Record.ExceptionAsync(() => misuse().Soon()) is { } exception
                ? $"{exception.GetType().Name} {exception.Message}"
                : "nothing");
        }
    }

    [Fact]
    public async Task ATokenOfAWriteOrARead_EndsTheCall_AsOnABareChannel()
    {
        foreach (var invoker in Both())
        {
            var (options, id) = Options(Ending.HangAfterHeaders);
            using var cancellation = new CancellationTokenSource();
            using var call = invoker.AsyncServerStreamingCall(NewMethod(MethodType.ServerStreaming), null, options, "hello");
            var reading = call.ResponseStream.MoveNext(cancellation.Token);
            await server.Reached(id).Soon();
            await cancellation.CancelAsync();
            var exception = await Assert.ThrowsAsync<RpcException>(() => reading.Soon());
            Assert.Equal(StatusCode.Cancelled, exception.StatusCode);
            Assert.Equal(cancellation.Token, Assert.IsAssignableFrom<OperationCanceledException>(exception.Status.DebugException).CancellationToken);
            Assert.Equal(StatusCode.Cancelled, call.GetStatus().StatusCode);
        }
    }

    [Fact]
    public async Task CompletingWhileDisposing_LosesNothing()
    {
        for (var i = 0; i < 100; i++)
        {
            var (options, _) = Options(Ending.Response);
            using var call = _pool.AsyncDuplexStreamingCall(NewMethod(MethodType.DuplexStreaming), null, options);
            await call.RequestStream.WriteAsync("hello").Soon();
            var completing = Task.Run(() => call.RequestStream.CompleteAsync());
            var disposing = Task.Run(call.Dispose);
            await Task.WhenAll(completing, disposing).ContinueWith(static both => both.Exception, TaskScheduler.Default).Soon(); // seen, so that it is not reported in another test
        }
    }

    [Fact]
    public async Task WriteOptions_AreThoseOfTheCall_AndCanBeSetAtAnyTime()
    {
        foreach (var invoker in Both())
        {
            var (options, _) = Options(Ending.Response);
            var given = new WriteOptions(WriteFlags.NoCompress);
            using var call = invoker.AsyncClientStreamingCall(NewMethod(MethodType.ClientStreaming), null, options.WithWriteOptions(given));
            Assert.Same(given, call.RequestStream.WriteOptions);
            var other = new WriteOptions(WriteFlags.BufferHint);
            call.RequestStream.WriteOptions = other;
            Assert.Same(other, call.RequestStream.WriteOptions);
            await call.RequestStream.WriteAsync("hello", CancellationToken.None).Soon();
            Assert.Same(other, call.RequestStream.WriteOptions);
            call.RequestStream.WriteOptions = given;
            Assert.Same(given, call.RequestStream.WriteOptions);
            await call.RequestStream.CompleteAsync().Soon();
            await call.ResponseAsync.Soon();
        }
    }

    [Fact]
    public async Task TheDebugger_ShowsWhatItShowsOfABareChannel()
    {
        var shown = new List<string[]>();
        foreach (var invoker in Both())
        {
            // A call that waits for a channel has none to show.
            await (invoker is PoolingCallInvoker pool ? pool.ConnectAsync() : Task.CompletedTask);
            var (options, id) = Options(Ending.HangBeforeHeaders);
            using var unary = invoker.AsyncUnaryCall(NewMethod(MethodType.Unary), null, options, "hello");
            using var server1 = invoker.AsyncServerStreamingCall(NewMethod(MethodType.ServerStreaming), null, options, "hello");
            using var client = invoker.AsyncClientStreamingCall(NewMethod(MethodType.ClientStreaming), null, options);
            using var duplex = invoker.AsyncDuplexStreamingCall(NewMethod(MethodType.DuplexStreaming), null, options);
            await server.Reached(id).Soon();
            shown.Add([Shown(unary), Shown(server1), Shown(client), Shown(duplex)]);
        }

        Assert.Equal(shown[0], shown[1]);
        Assert.All(shown[1], static line => Assert.Matches(@"^Channel = 127\.0\.0\.1:\d+, Method = /contract/\w+, IsComplete = false \| Channel=GrpcChannel Method=\w+ Request=\w*$", line));

        // Its display line and its properties are private, and for the debugger alone.
        static string Shown(object call)
        {
            const BindingFlags Hidden = BindingFlags.Instance | BindingFlags.NonPublic | BindingFlags.Public;
            var line = (string)call.GetType().GetMethod("DebuggerToString", Hidden)!.Invoke(call, null)!;
            var proxy = call.GetType().GetNestedTypes(BindingFlags.NonPublic).Single(static type => type.Name.EndsWith("DebugView", StringComparison.Ordinal));
            var view = Activator.CreateInstance(proxy.MakeGenericType(call.GetType().GetGenericArguments()), call)!;
            var method = view.GetType().GetProperty("Method")!.GetValue(view);
            return $"{line} | Channel={view.GetType().GetProperty("Channel")!.GetValue(view)?.GetType().Name}"
                + $" Method={method?.GetType().GetProperty("Name")!.GetValue(method)} Request={view.GetType().GetProperty("Request")?.GetValue(view)}";
        }
    }

    private CallInvoker[] Both() => [_channel.CreateCallInvoker(), _pool];

    [MethodImpl(MethodImplOptions.NoInlining)]
    private async Task<string> StartAsync(MethodType kind, string ending, List<object> held)
    {
        var (options, id) = Options(ending);
        switch (kind)
        {
            case MethodType.ServerStreaming:
                held.Add(_pool.AsyncServerStreamingCall(NewMethod(kind), null, options, "hello"));
                break;
            case MethodType.ClientStreaming:
                held.Add(_pool.AsyncClientStreamingCall(NewMethod(kind), null, options));
                break;
            default:
                var call = _pool.AsyncDuplexStreamingCall(NewMethod(kind), null, options);
                held.Add(call);
                await call.RequestStream.CompleteAsync();
                break;
        }

        return id;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private async Task<Task<string>> StartAndHoldResponseAsync()
    {
        var (options, id) = Options(Ending.HangBeforeHeaders);
        var call = _pool.AsyncClientStreamingCall(NewMethod(MethodType.ClientStreaming), null, options);
        await call.RequestStream.CompleteAsync();
        await server.Reached(id).Soon();
        return call.ResponseAsync;
    }

    private static (CallOptions Options, string Id) Options(string ending)
    {
        var id = Guid.NewGuid().ToString();
        return (new CallOptions(new Metadata { { "ending", ending }, { "id", id } }), id);
    }

    private static Method<string, string> NewMethod(MethodType kind) => new(kind, "contract", kind.ToString(), Text, Text);
}

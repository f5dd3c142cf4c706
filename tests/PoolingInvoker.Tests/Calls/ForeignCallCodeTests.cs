using Google.Protobuf;
using Google.Protobuf.Reflection;
using Grpc.Core;
using Grpc.Net.Client.Configuration;
using Microsoft.Extensions.Logging;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.Tests.Calls;

/// <summary>
/// What of the user's a call runs, crossed with what it may do, for each kind of call: no lease stays out, nothing hangs, and the caller has
/// the outcome that is in the table. What a bare channel runs too ends as it does there.
/// </summary>
public sealed class ForeignCallCodeTests : ScriptedCalls
{
    private static Foreign? _ofDescriptors; // a descriptor is asked of a message that nobody here has made

    public enum Code
    {
        ShouldHandle,
        DelayGenerator,
        OnRetry,
        HedgingShouldHandle,
        HedgingDelay,
        ActionGenerator,
        OnHedging,
        IsIdempotent,
        Descriptor,
        Logger,
        Serializer,
        Deserializer,
        Credentials,
        Handler,
    }

    public enum Deed
    {
        Throws,
        Fails,
        GivesNull,
        CompletesTwice,
        Blocks,
        IsLate,
        IsLateWhileThePoolIsDisposed,
        IsLateWhileTheTokenFires,
        CallsBack,
        DisposesThePool,
        CancelsTheCall,
    }

    public static TheoryData<Code, Deed> All => [.. from code in Enum.GetValues<Code>() from deed in Enum.GetValues<Deed>() where Foreign.CanDo(code, deed) select (code, deed)];

#pragma warning disable CA2025 // The call is over by then.
    [Theory]
    [MemberData(nameof(All))]
    public async Task TheCallEndsAsTheTableSays(Code code, Deed deed)
    {
        foreach (var kind in (string[])["unary", "blocking unary", "client streaming", "server streaming", "duplex"])
        {
            if (IsOfHedging(code) && !kind.EndsWith("unary", StringComparison.Ordinal))
            {
                continue; // others are not hedged
            }

            var expected = code < Code.Serializer ? Expected(code, deed, kind) : await RunAsync(code, deed, kind, overPool: false);

            // A bare channel that is disposed under its handler says Internal of the response, and Cancelled of the call. Over a pool it is Cancelled.
            expected = code == Code.Handler && expected.StartsWith("Internal ← ObjectDisposedException", StringComparison.Ordinal) ? "Cancelled" : expected;
            var actual = await RunAsync(code, deed, kind, overPool: true);
            if (kind is ("server streaming" or "duplex") && deed is (Deed.DisposesThePool or Deed.IsLateWhileThePoolIsDisposed))
            {
                // A read that begins after the dispose is told so, and one that began before is cancelled.
                (expected, actual) = (expected.Replace("ObjectDisposedException", "Cancelled", StringComparison.Ordinal), actual.Replace("ObjectDisposedException", "Cancelled", StringComparison.Ordinal));
            }

            if (actual == "Cancelled" && expected.StartsWith("Unavailable", StringComparison.Ordinal) && deed is (Deed.DisposesThePool or Deed.IsLateWhileThePoolIsDisposed))
            {
                continue; // what comes first: the failure of the attempt, or the end of the pool
            }

            Assert.Equal($"{kind}: {expected}", $"{kind}: {actual}");
        }
    }

    // The first attempt has failed, and another one would succeed.
    private static string Expected(Code code, Deed deed, string kind) => (code, deed) switch
    {
        (Code.Logger, Deed.DisposesThePool) => kind is "server streaming" or "duplex" ? "ObjectDisposedException" : "Cancelled", // a read that begins after that
        (Code.Descriptor, _) => "Unavailable ← HttpRequestException", // what has no method of this name is not idempotent
        (_, Deed.CancelsTheCall or Deed.IsLateWhileTheTokenFires) => "Cancelled ← OperationCanceledException",
        (Code.Logger, _) => "OK",
        (Code.IsIdempotent, Deed.Throws or Deed.GivesNull) => "Unavailable ← HttpRequestException",
        (Code.ShouldHandle or Code.HedgingShouldHandle or Code.ActionGenerator, Deed.GivesNull) => "Unavailable ← HttpRequestException",
        (_, Deed.DisposesThePool or Deed.IsLateWhileThePoolIsDisposed) => IsOfHedging(code) ? "Cancelled" : "Unavailable ← HttpRequestException",
        (_, Deed.Throws or Deed.Fails) => "Internal ← FormatException",
        _ => "OK",
    };

    private static bool IsOfHedging(Code code) => code is Code.HedgingShouldHandle or Code.HedgingDelay or Code.ActionGenerator or Code.OnHedging;

    private async Task<string> RunAsync(Code code, Deed deed, string kind, bool overPool)
    {
        using var cancellation = new CancellationTokenSource();
        var foreign = new Foreign(code, deed, cancellation);
        Server.ConfigureChannel = options =>
        {
            (options.UnsafeUseInsecureChannelCallCredentials, options.HttpHandler) = (true, new ForeignHandler(foreign, options.HttpHandler!));
        };
        Server.Forget();
        if (code < Code.Serializer)
        {
            Server.ThenBreak();
        }

        for (var i = 0; i < 4; i++)
        {
            _ = kind is "client streaming" or "duplex" ? Server.ThenReplyAfterRequests(new NameReply { Name = "a" }) : Server.ThenReply(new NameReply { Name = "a" });
        }

        var channel = overPool ? null : Server.Create();
        var invoker = channel?.CreateCallInvoker() ?? NewInvoker(foreign.Configure);
        foreign.Owner = channel ?? (IDisposable)((PoolingCallInvoker)invoker).Pool;
        _ofDescriptors = foreign;
        foreign.IsOn = true;
        var token = cancellation.Token;
        var calling = Task.Run(() => CallAsync(invoker, kind, foreign, token));
        var elapsing = Task.Run(() => Elapse(calling)); // what is held may hold the thread on which time passes
        await Waiting.Until(() => calling.IsCompleted || foreign.IsHeld);
        if (foreign.IsHeld)
        {
            await (deed == Deed.IsLateWhileTheTokenFires ? cancellation.CancelAsync() : Task.CompletedTask);
            if (deed == Deed.IsLateWhileThePoolIsDisposed)
            {
                foreign.Owner.Dispose();
            }

            foreign.Release();
        }

        await elapsing;
        foreign.IsOn = false;
        if (invoker is PoolingCallInvoker { Pool: var pool })
        {
            await Waiting.Until(() => pool.GetStatistics() is { CallsInFlight: 0, CallsWaiting: 0 });
        }

        channel?.Dispose();
        Assert.True(foreign.WasRun);
        return await calling;
    }

    private static async Task<string> CallAsync(CallInvoker invoker, string kind, Foreign foreign, CancellationToken token)
    {
        var options = new CallOptions(cancellationToken: token, credentials: foreign.Credentials);
        var marshaller = Marshallers.Create<Note>(foreign.Serialize, foreign.Deserialize);
        var type = kind switch
        {
            "client streaming" => MethodType.ClientStreaming,
            "server streaming" => MethodType.ServerStreaming,
            "duplex" => MethodType.DuplexStreaming,
            _ => MethodType.Unary,
        };
        var method = new Method<Note, Note>(type, "user.v1.User", "ByHand", marshaller, marshaller);
        Func<Status> status = static () => default;
        IDisposable? open = null;
        try
        {
            switch (kind)
            {
                case "unary":
                    var unary = invoker.AsyncUnaryCall(method, null, options, new Note());
                    (status, open) = (unary.GetStatus, unary);
                    return Describe(await unary.ResponseAsync);
                case "blocking unary":
                    return Describe(invoker.BlockingUnaryCall(method, null, options, new Note()));
                case "client streaming":
                    var client = invoker.AsyncClientStreamingCall(method, null, options);
                    (status, open) = (client.GetStatus, client);
                    await WriteAsync(client.RequestStream);
                    return Describe(await client.ResponseAsync);
                case "server streaming":
                    var streaming = invoker.AsyncServerStreamingCall(method, null, options, new Note());
                    (status, open) = (streaming.GetStatus, streaming);
                    return await ReadAsync(streaming.ResponseStream);
                default:
                    var duplex = invoker.AsyncDuplexStreamingCall(method, null, options);
                    (status, open) = (duplex.GetStatus, duplex);
                    await WriteAsync(duplex.RequestStream);
                    return await ReadAsync(duplex.ResponseStream);
            }
        }
        catch (RpcException exception)
        {
            var (thrown, told) = (Describe(exception.Status), Describe(status()));
            return told == thrown || told == Describe(default(Status)) ? thrown : $"{thrown}, but GetStatus {told}";
        }
        catch (Exception exception)
        {
            return exception is InvalidOperationException and not ObjectDisposedException ? $"{exception.GetType().Name} '{exception.Message}'" : exception.GetType().Name;
        }
        finally
        {
            open?.Dispose();
        }

        static async Task WriteAsync(IClientStreamWriter<Note> requests)
        {
            try
            {
                await requests.WriteAsync(new Note(), CancellationToken.None);
                await requests.CompleteAsync();
            }
            catch (Exception exception) when (exception is RpcException or IOException or ObjectDisposedException)
            {
                // The response tells.
            }
        }

        static async Task<string> ReadAsync(IAsyncStreamReader<Note> responses)
        {
            Note? last = null;
            while (await responses.MoveNext(CancellationToken.None))
            {
                last = responses.Current;
            }

            return Describe(last);
        }
    }

    private static string Describe(Note? note) => note is null ? "OK, null" : "OK";

    private static string Describe(Status status) => $"{status.StatusCode}{(status.DebugException is { } cause ? $" ← {cause.GetType().Name}" : "")}";

    private sealed class Note : IMessage
    {
        public MessageDescriptor Descriptor => _ofDescriptors!.Run(Code.Descriptor) is { } task && task.Wait(Waiting.Long) ? NameReply.Descriptor : null!;

        public void MergeFrom(CodedInputStream input)
        {
        }

        public void WriteTo(CodedOutputStream output)
        {
        }

        public int CalculateSize() => 0;
    }

    private sealed class ForeignHandler(Foreign foreign, HttpMessageHandler inner) : DelegatingHandler(inner)
    {
        protected override Task<HttpResponseMessage> SendAsync(HttpRequestMessage request, CancellationToken cancellationToken)
        {
            return foreign.Run(Code.Handler) is { } task ? SendAfterAsync(task) : null!;

            async Task<HttpResponseMessage> SendAfterAsync(Task task)
            {
                await task;
                return await base.SendAsync(request, cancellationToken);
            }
        }
    }

    /// <summary>All that is the user's.</summary>
    private sealed class Foreign(Code code, Deed deed, CancellationTokenSource cancellation) : ILoggerFactory, ILogger
    {
        [ThreadStatic]
        private static bool _isWithin;

        private readonly TaskCompletionSource _released = new(TaskCreationOptions.RunContinuationsAsynchronously);
        private volatile bool _wasRun;
        private volatile bool _isHeld;

        public IDisposable Owner { get; set; } = null!;

        public bool IsOn { get; set; }

        public bool WasRun => _wasRun;

        public bool IsHeld => _isHeld;

        public CallCredentials? Credentials => code == Code.Credentials ? CallCredentials.FromInterceptor((_, _) => Run(Code.Credentials)!) : null;

        /// <summary>Whether the code can do that: what is not asynchronous cannot be late, and what gives nothing cannot give null.</summary>
        public static bool CanDo(Code code, Deed deed) => deed switch
        {
            Deed.Fails or Deed.IsLate or Deed.IsLateWhileThePoolIsDisposed or Deed.IsLateWhileTheTokenFires =>
                code is not (Code.IsIdempotent or Code.Descriptor or Code.Logger or Code.Serializer or Code.Deserializer or Code.ActionGenerator),
            Deed.GivesNull => code is not Code.Logger,
            Deed.CompletesTwice => code is Code.Serializer,
            _ => true,
        };

        public void Configure(PoolingCallInvokerOptions options)
        {
            options.IsIdempotent = code == Code.Descriptor ? null : _ => code != Code.IsIdempotent || Run(Code.IsIdempotent) is { } task && task.Wait(Waiting.Long);
            options.Pool.LoggerFactory = this;
            var preset = options.Retry.ShouldHandle;
            var delay = options.Retry.DelayGenerator!;
            if (code == Code.ShouldHandle)
            {
                options.Retry.ShouldHandle = async arguments => await (Run(Code.ShouldHandle) ?? Task.CompletedTask).ContinueWith(Rethrow, TaskScheduler.Default) && deed != Deed.GivesNull && await preset(arguments);
            }

            options.Retry.DelayGenerator = arguments => code == Code.DelayGenerator ? DelayAsync(Run(code)) : delay(arguments);
            options.Retry.OnRetry = arguments => Run(Code.OnRetry) is { } task ? new ValueTask(task) : default;
            if (IsOfHedging(code))
            {
                var hedging = new ChannelHedgingStrategyOptions { Delay = TimeSpan.FromMilliseconds(100), MaxHedgedAttempts = 2 };
                var handles = hedging.ShouldHandle;
                var action = hedging.ActionGenerator;
                hedging.ShouldHandle = async arguments => await (Run(Code.HedgingShouldHandle) ?? Task.CompletedTask).ContinueWith(Rethrow, TaskScheduler.Default) && (code, deed) != (Code.HedgingShouldHandle, Deed.GivesNull) && await handles(arguments);
                hedging.DelayGenerator = async arguments =>
                {
                    await (Run(Code.HedgingDelay) ?? Task.CompletedTask);
                    return code == Code.HedgingShouldHandle ? Timeout.InfiniteTimeSpan : TimeSpan.FromMilliseconds(100); // what it handles alone is hedged
                };
                hedging.OnHedging = arguments => Run(Code.OnHedging) is { } task ? new ValueTask(task) : default;
                hedging.ActionGenerator = arguments => Run(Code.ActionGenerator) is null ? null : action(arguments);
                options.MethodConfigs.Add(new PooledMethodConfig { Names = { MethodName.Default }, Hedging = hedging });
            }

            static bool Rethrow(Task task)
            {
                task.GetAwaiter().GetResult();
                return true;
            }

            static async ValueTask<TimeSpan?> DelayAsync(Task? task)
            {
                if (task is null)
                {
                    return null;
                }

                await task;
                return TimeSpan.Zero;
            }
        }

        public void Serialize(Note note, SerializationContext context)
        {
            var task = Run(Code.Serializer);
            if (task is null)
            {
                return; // never completes
            }

            context.Complete([1]);
            if (code == Code.Serializer && deed == Deed.CompletesTwice && IsOn)
            {
                context.Complete([1]);
            }
        }

        public Note Deserialize(DeserializationContext context)
        {
            context.PayloadAsNewBuffer();
            return Run(Code.Deserializer) is null ? null! : new Note();
        }

        public Task? Run(Code what)
        {
            if (what != code || !IsOn || _isWithin)
            {
                return Task.CompletedTask;
            }

            var isFirst = !_wasRun;
            _wasRun = true;
            _isWithin = true;
            try
            {
                switch (deed)
                {
                    case Deed.Throws:
                        throw new FormatException("of the user's");
                    case Deed.Fails:
                        return Task.FromException(new FormatException("of the user's"));
                    case Deed.GivesNull:
                        return null;
                    case Deed.Blocks:
                        _isHeld = true;
                        return _released.Task.Wait(Waiting.Long) ? Task.CompletedTask : Task.FromException(new TimeoutException());
                    case Deed.IsLate or Deed.IsLateWhileThePoolIsDisposed or Deed.IsLateWhileTheTokenFires:
                        _isHeld = true;
                        return _released.Task;
                    case Deed.CallsBack when Owner is ChannelPool pool:
                        _ = pool.GetStatistics();
                        _ = pool.GetChannels();
                        if (pool.TryAcquire(out var lease))
                        {
                            lease.Dispose();
                        }

                        break;
                    case Deed.DisposesThePool when isFirst:
                        Owner.Dispose();
                        break;
                    case Deed.CancelsTheCall:
                        cancellation.Cancel();
                        break;
                    default:
                        break;
                }
            }
            finally
            {
                _isWithin = false;
            }

            return Task.CompletedTask;
        }

        public void Release() => _released.TrySetResult();

        public void AddProvider(ILoggerProvider provider)
        {
        }

        public ILogger CreateLogger(string categoryName) => this;

        public IDisposable? BeginScope<TState>(TState state)
            where TState : notnull => null;

        public bool IsEnabled(LogLevel logLevel) => true;

        public void Log<TState>(LogLevel logLevel, EventId eventId, TState state, Exception? exception, Func<TState, Exception?, string> formatter) =>
            Run(Code.Logger)?.Wait(Waiting.Long);

        public void Dispose()
        {
        }
    }
}

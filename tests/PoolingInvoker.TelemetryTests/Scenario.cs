using System.Collections.Concurrent;
using System.Diagnostics.Metrics;
using System.Net;
using System.Runtime.CompilerServices;
using Grpc.Core;
using Grpc.Net.Client;
using Grpc.Net.Client.Configuration;
using Microsoft.AspNetCore.Http;
using Microsoft.Extensions.ObjectPool;
using Microsoft.Extensions.Time.Testing;
using PoolingInvoker.FunctionalTests;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.TelemetryTests;

/// <summary>
/// All that is measured has happened, and some of it goes on: over a real server, in a pool that is full, and in one whose time is virtual. The
/// numbers are those that are asserted.
/// </summary>
internal sealed class Scenario : IAsyncDisposable
{
    public const string Users = "users";
    public const string Full = "full";

    private readonly List<IDisposable> _calls = [];
    private readonly List<IAsyncDisposable> _pools = [];

    private Scenario(HttpServer server) => Server = server;

    public HttpServer Server { get; }
    public string Virtual { get; } = $"virtual-{Guid.NewGuid()}"; // counters go on where another pool of the name and the server had stopped

    public static async Task<Scenario> StartAsync(IMeterFactory? meters = null)
    {
        var scenario = new Scenario(await StartServerAsync());
        await scenario.CallAsync(meters);
        await scenario.FillAsync(meters);
        await scenario.LetTimePassAsync(meters);
        return scenario;
    }

    public async ValueTask DisposeAsync()
    {
        _calls.ForEach(static call => call.Dispose());
        foreach (var pool in _pools)
        {
            await pool.DisposeAsync();
        }

        await Server.DisposeAsync();
    }

    private static Task<HttpServer> StartServerAsync()
    {
        var requests = new ConcurrentDictionary<string, int>();
        return HttpServer.StartAsync(async context =>
        {
            var method = context.Request.Path.Value!.Split('/')[^1];
            var isFirst = requests.AddOrUpdate(method, 1, static (_, count) => count + 1) == 1;
            context.Response.ContentType = "application/grpc";
            switch (method)
            {
                case "GetName" when isFirst:
                    context.Response.Headers.GrpcStatus = "14";
                    return;
                case "ListNames":
                    await context.Response.Body.FlushAsync();
                    await HangAsync(context);
                    return;
                case "Chat":
                case "GetProfile" when isFirst:
                    await HangAsync(context);
                    return;
                default:
                    await HttpServer.ReplyAsync(context, []);
                    return;
            }
        });
    }

    private static Task HangAsync(HttpContext context) =>
        Task.Delay(Timeout.InfiniteTimeSpan, context.RequestAborted).ContinueWith(static _ => { }, TaskScheduler.Default);

    // A retry, a hedge, a call with a key, one that fails, one that is dropped, and one that is under way with a request that is kept.
    private async Task CallAsync(IMeterFactory? meters)
    {
        var options = new PoolingCallInvokerOptions
        {
            Pool = { Name = Users, MeterFactory = meters, DrainTimeout = TimeSpan.Zero, TargetConcurrentCallsPerChannel = null, ProbeDelay = Timeout.InfiniteTimeSpan },
            Retry = { Delay = TimeSpan.FromMilliseconds(1) },
        };
        options.MethodConfigs.Add(new PooledMethodConfig
        {
            Names = { new MethodName { Service = "user.v1.User", Method = "GetProfile" } },
            Hedging = new ChannelHedgingStrategyOptions { Delay = TimeSpan.Zero, MaxHedgedAttempts = 1 },
        });
        var invoker = PoolingCallInvoker.ForAddress(Server.Address, options);
        _pools.Add(invoker);
        var client = new User.UserClient(invoker);
        await client.GetNameAsync(new GetNameRequest()).ResponseAsync.Soon();
        await client.GetProfileAsync(new GetProfileRequest()).ResponseAsync.Soon();
        await new User.UserClient(invoker.WithAffinity("7")).RenameAsync(new RenameRequest()).ResponseAsync.Soon();
        Drop(client);
        await Waiting.Until(() =>
        {
            GC.Collect();
            return invoker.Pool.GetStatistics().LeaksReclaimed == 1;
        });

        var chat = client.Chat();
        _calls.Add(chat);
        await chat.RequestStream.WriteAsync(new ChatMessage { Text = "kept" }).Soon();
        await Waiting.Until(() => invoker.Pool.GetStatistics().CallsInFlight == 1);

        [MethodImpl(MethodImplOptions.NoInlining)]
        static void Drop(User.UserClient client) => client.ListNames(new ListNamesRequest());
    }

    // One call is under way, one waits, and one is refused.
    private async Task FillAsync(IMeterFactory? meters)
    {
        var pool = ChannelPool.ForAddress(Server.Address, new ChannelPoolOptions
        {
            Name = Full,
            MeterFactory = meters,
            MaxPoolSize = 1,
            MaxConcurrentCallsPerChannel = 1,
            MaxCallsWaiting = 1,
            DrainTimeout = TimeSpan.Zero,
        });
        _pools.Add(pool);
        _calls.Add(await pool.AcquireAsync().Soon());
        _ = pool.AcquireAsync().AsTask().ContinueWith(static waiting => waiting.Exception, TaskScheduler.Default);
        await Assert.ThrowsAsync<ChannelPoolExhaustedException>(() => pool.AcquireAsync().AsTask()).Soon();
    }

    // A channel is replaced, one is idle, one cannot be made, and nothing comes from another.
    private async Task LetTimePassAsync(IMeterFactory? meters)
    {
        var time = new FakeTimeProvider();
        var policy = new Policy();
        CallInvoker? silent = null;
        var events = new ConcurrentQueue<ChannelPoolEventKind>();
        var pool = new ChannelPool(policy, new ChannelPoolOptions
        {
            Name = Virtual,
            MeterFactory = meters,
            TimeProvider = time,
            MaxConcurrentCallsPerChannel = 1,
            PooledChannelLifetime = Timeout.InfiniteTimeSpan,
            ProbeCallback = (channel, token) =>
                (silent ??= channel) == channel ? Task.Delay(Timeout.InfiniteTimeSpan, token) : Task.CompletedTask,
            OnEvent = one => events.Enqueue(one.Kind),
        });
        _pools.Add(pool);

        // 5 s of use, after which the policy does not want the channel any more.
        var lease = await pool.AcquireAsync().Soon();
        time.Advance(TimeSpan.FromSeconds(5));
        policy.IsGood = false;
        lease.Dispose();
        await Until(ChannelPoolEventKind.Replaced);
        policy.IsGood = true;

        // The first one is below the least number of channels, and is made anew in its place.
        var (first, second) = (await pool.AcquireAsync().Soon(), await pool.AcquireAsync().Soon());
        first.Dispose();
        second.Dispose();
        await Until(ChannelPoolEventKind.Retired, TimeSpan.FromMinutes(1));

        var call = new User.UserClient(new PoolingCallInvoker(pool)).GetNameAsync(new GetNameRequest());
        _calls.Add(call);
        await Until(ChannelPoolEventKind.GivenUp, TimeSpan.FromMilliseconds(250));

        policy.Fails = true;
        Assert.Throws<InvalidOperationException>(() =>
        {
            while (pool.TryAcquire(out var free))
            {
                _calls.Add(free);
            }
        });
        await Until(ChannelPoolEventKind.ConnectFailed);

        Task Until(ChannelPoolEventKind kind, TimeSpan? passing = null) => Waiting.Until(() =>
        {
            if (passing is { } step)
            {
                time.Advance(step);
            }

            return events.Contains(kind);
        });
    }

    private sealed class Policy : HttpMessageHandler, IPooledObjectPolicy<GrpcChannel>
    {
        public bool IsGood { get; set; } = true;

        public bool Fails { get; set; }

        public GrpcChannel Create() => Fails ? throw new InvalidOperationException("no channel") : GrpcChannel.ForAddress("http://virtual:5000", new GrpcChannelOptions { HttpHandler = this });

        public bool Return(GrpcChannel obj) => IsGood;

        protected override async Task<HttpResponseMessage> SendAsync(HttpRequestMessage request, CancellationToken cancellationToken)
        {
            await Task.Delay(Timeout.InfiniteTimeSpan, cancellationToken);
            return new HttpResponseMessage(HttpStatusCode.OK);
        }
    }
}

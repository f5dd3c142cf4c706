using System.Net.Sockets;
using Grpc.Core;
using Grpc.Net.Client;
using Grpc.Net.Client.Configuration;
using Polly;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.Tests;

/// <summary>Bad input gets an error that says what was given, what is allowed and which option to change.</summary>
public sealed class OptionsTests
{
    [Theory]
    [InlineData("localhost:5000")]
    [InlineData("users")]
    [InlineData("")]
    [InlineData("/users")]
    [InlineData("ftp://users")]
    public void AnAddressThatCannotBeDialled(string address)
    {
        var exception = Assert.Throws<ArgumentException>(() => PoolingCallInvoker.ForAddress(address));
        Assert.Contains($"'{address}'", exception.Message, StringComparison.Ordinal);
        Assert.Contains("'http://users:5000'", exception.Message, StringComparison.Ordinal);
        Assert.Throws<ArgumentException>(() => ChannelPool.ForAddress(address));
    }

    [Fact]
    public void NoAddress()
    {
        Assert.Throws<ArgumentNullException>(() => PoolingCallInvoker.ForAddress((string)null!));
        Assert.Throws<ArgumentNullException>(() => PoolingCallInvoker.ForAddress((Uri)null!));
        Assert.Throws<ArgumentException>(() => PoolingCallInvoker.ForAddress(new Uri("users", UriKind.Relative)));
    }

    [Fact]
    public void NothingToWorkWith()
    {
        Assert.Throws<ArgumentNullException>(() => new PoolingCallInvoker(null!));
        Assert.Throws<ArgumentNullException>(() => new ChannelPool(null!));
        Assert.Throws<ArgumentNullException>(() => new PoolingInterceptor(null!));
    }

    public static TheoryData<string, Action<ChannelPoolOptions>> BadOptions => new()
    {
        { "MaxPoolSize is 0. It must be at least 1.", static options => (options.MinPoolSize, options.MaxPoolSize) = (0, 0) },
        { "MinPoolSize is -1. It must be at least 0.", static options => options.MinPoolSize = -1 },
        { "MinPoolSize (5) is larger than MaxPoolSize (4). Lower the one or raise the other.", static options => (options.MinPoolSize, options.MaxPoolSize) = (5, 4) },
        { "MaxConcurrentCallsPerChannel is 0. It must be at least 1, or null for the default.", static options => options.MaxConcurrentCallsPerChannel = 0 },
        { "AffinityLoadFactor is 0.9. It must be at least 1, or double.PositiveInfinity to keep calls with a key together whatever their number.", static options => options.AffinityLoadFactor = 0.9 },
        { "AffinityLoadFactor is NaN. It must be at least 1, or double.PositiveInfinity to keep calls with a key together whatever their number.", static options => options.AffinityLoadFactor = double.NaN },
        { "MaxCallsWaiting is -1. It must be at least 0.", static options => options.MaxCallsWaiting = -1 },
        { "AcquireTimeout is -00:00:01. It must be from zero to 24.20:31:23.6470000, or Timeout.InfiniteTimeSpan to wait without limit.", static options => options.AcquireTimeout = TimeSpan.FromSeconds(-1) },
        { "AcquireTimeout is 25.00:00:00. It must be from zero to 24.20:31:23.6470000, or Timeout.InfiniteTimeSpan to wait without limit.", static options => options.AcquireTimeout = TimeSpan.FromDays(25) },
        { "DrainTimeout is -00:00:01. It must be from zero to 24.20:31:23.6470000, or Timeout.InfiniteTimeSpan to wait without limit.", static options => options.DrainTimeout = TimeSpan.FromSeconds(-1) },
        { "PooledChannelLifetime is 00:00:00. It must be positive, or Timeout.InfiniteTimeSpan to turn it off.", static options => options.PooledChannelLifetime = TimeSpan.Zero },
        { "PooledChannelIdleTimeout is -00:00:01. It must be positive, or Timeout.InfiniteTimeSpan to turn it off.", static options => options.PooledChannelIdleTimeout = TimeSpan.FromSeconds(-1) },
        { "LeakDetectionThreshold is -00:00:01. It must be positive, or zero to turn leak detection off.", static options => options.LeakDetectionThreshold = TimeSpan.FromSeconds(-1) },
        { "MaxRetryBufferSize is -1. It must be at least 0.", static options => options.MaxRetryBufferSize = -1 },
        { "TimeProvider is null. Leave it at TimeProvider.System for the clock of the machine.", static options => options.TimeProvider = null! },
    };

    [Theory]
    [MemberData(nameof(BadOptions), DisableDiscoveryEnumeration = true)]
    public void AnOptionOutOfRange(string message, Action<ChannelPoolOptions> spoil)
    {
        var options = new ChannelPoolOptions();
        spoil(options);
        Assert.Equal(message, Assert.Throws<ArgumentException>(() => ChannelPool.ForAddress("http://users:5000", options)).Message);
        Assert.Equal(message, Assert.Throws<ArgumentException>(() => new ChannelPool(new StubPolicy(), options)).Message);
    }

    public static TheoryData<string, Action<ChannelRetryStrategyOptions>> BadRetries { get; } = new()
    {
        { "Retry.MaxRetryAttempts is -1. It must be at least 0, which turns the retry off.", static retry => retry.MaxRetryAttempts = -1 },
        { "Retry.BackoffType is 7, which is none. Leave it as it is for Exponential.", static retry => retry.BackoffType = (DelayBackoffType)7 },
        { "Retry.Delay is -00:00:01. It must be from 0 to 1 day.", static retry => retry.Delay = TimeSpan.FromSeconds(-1) },
        { "Retry.Delay is 2.00:00:00. It must be from 0 to 1 day.", static retry => retry.Delay = TimeSpan.FromDays(2) },
        { "Retry.MaxDelay is -00:00:01. It must be from 0 to 1 day, or null for no bound.", static retry => retry.MaxDelay = TimeSpan.FromSeconds(-1) },
        { "Retry.MaxDelay is 2.00:00:00. It must be from 0 to 1 day, or null for no bound.", static retry => retry.MaxDelay = TimeSpan.FromDays(2) },
        { "Retry.Randomizer is null. Leave it as it is for random jitter.", static retry => retry.Randomizer = null! },
        { "Retry.ShouldHandle is null. Leave it as it is for the preset.", static retry => retry.ShouldHandle = null! },
    };

    [Theory]
    [MemberData(nameof(BadRetries), DisableDiscoveryEnumeration = true)]
    public void ARetryThatPollyDoesNotTake(string message, Action<ChannelRetryStrategyOptions> spoil)
    {
        var options = new PoolingCallInvokerOptions();
        spoil(options.Retry);
        Assert.StartsWith(message, Assert.Throws<ArgumentException>(() => PoolingCallInvoker.ForAddress("http://users:5000", options)).Message, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("dns:///users:5000")]
    [InlineData("https+http://users")]
    public void AnAddressOfAList_WithAnotherScheme_PointsToForAddress(string address) => Assert.Equal(
        $"The address '{address}' has no scheme that the pool can dial. It must begin with 'http://' or 'https://', as in 'http://users:5000'; ForAddress takes 'dns:///', too. (Parameter 'address')",
        Assert.Throws<ArgumentException>(() => PoolingCallInvoker.ForAddresses([address])).Message);

    [Fact]
    public void AMistakeInAMethodConfig_SaysOfWhichOne()
    {
        static string MistakeOf(PooledMethodConfig config) =>
            Assert.Throws<ArgumentException>(() => PoolingCallInvoker.ForAddress("http://users:5000", new PoolingCallInvokerOptions { MethodConfigs = { config } })).Message;
        var name = new MethodName { Service = "user.v1.User", Method = "GetName" };
        Assert.StartsWith(
            "MethodConfigs[user.v1.User/GetName]: Retry.MaxRetryAttempts is -1. It must be at least 0",
            MistakeOf(new PooledMethodConfig { Names = { name }, Retry = new ChannelRetryStrategyOptions { MaxRetryAttempts = -1 } }),
            StringComparison.Ordinal);
        Assert.StartsWith(
            "MethodConfigs[user.v1.User/GetName, user.v1.User/]: Hedging.MaxHedgedAttempts is 11.",
            MistakeOf(new PooledMethodConfig { Names = { name, new MethodName { Service = "user.v1.User" } }, Hedging = new ChannelHedgingStrategyOptions { MaxHedgedAttempts = 11 } }),
            StringComparison.Ordinal);
    }

    [Fact]
    public void APartThatIsMissing()
    {
        Assert.Contains("Retry is null", Assert.Throws<ArgumentException>(() => PoolingCallInvoker.ForAddress("http://users:5000", new PoolingCallInvokerOptions { Retry = null! })).Message, StringComparison.Ordinal);
        Assert.Contains("Pool is null", Assert.Throws<ArgumentException>(() => PoolingCallInvoker.ForAddress("http://users:5000", new PoolingCallInvokerOptions { Pool = null! })).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void APipelineOfOnesOwn_NeedsNoRetry()
    {
        using var invoker = PoolingCallInvoker.ForAddress("http://users:5000", new PoolingCallInvokerOptions { Retry = null!, ConfigurePipeline = static _ => { } });
    }

    /// <summary>A retry of which each number is at the end of its range: Polly takes it when it is first needed.</summary>
    [Theory]
    [InlineData(0, 0)]
    [InlineData(1, int.MaxValue)]
    public async Task ARetryAtTheEndsOfItsRanges_IsTakenByPolly(int days, int attempts)
    {
        var options = new PoolingCallInvokerOptions
        {
            Retry = { Delay = TimeSpan.FromDays(days), MaxDelay = TimeSpan.FromDays(days), MaxRetryAttempts = Math.Max(1, attempts), Randomizer = static () => 0.5 },
            IsIdempotent = static _ => true,
            Pool = { ConfigureHandler = static handler => handler.ConnectCallback = static (_, _) => throw new SocketException((int)SocketError.ConnectionRefused) },
        };
        await using var invoker = PoolingCallInvoker.ForAddress("http://users:5000", options);
        var exception = await Assert.ThrowsAsync<RpcException>(async () =>
            await new User.UserClient(invoker).GetNameAsync(new GetNameRequest(), deadline: DateTime.UtcNow.AddSeconds(10)));
        Assert.Equal(StatusCode.Unavailable, exception.StatusCode);
    }

    [Fact]
    public void OneHandlerForAllChannels_IsSaidSoWhenThePoolIsMade()
    {
        using var shared = new SocketsHttpHandler();
        var exception = Assert.Throws<ArgumentException>(() => ChannelPool.ForAddress("http://users:5000", new ChannelPoolOptions
        {
            ConfigureChannel = options => options.HttpHandler = shared,
        }));
        Assert.Contains("the same SocketsHttpHandler", exception.Message, StringComparison.Ordinal);
        Assert.Contains("Pool.ConfigureHandler", exception.Message, StringComparison.Ordinal);

        // Behind a delegating handler for each channel it is still the same.
        Assert.Throws<ArgumentException>(() => ChannelPool.ForAddress("http://users:5000", new ChannelPoolOptions
        {
            ConfigureChannel = options => options.HttpHandler = new Wrapping(shared),
        }));

        using var client = new HttpClient();
        Assert.Throws<ArgumentException>(() => ChannelPool.ForAddress("http://users:5000", new ChannelPoolOptions
        {
            ConfigureChannel = options => options.HttpClient = client,
        }));

        // One channel may have it.
        using var one = ChannelPool.ForAddress("http://users:5000", new ChannelPoolOptions
        {
            MaxPoolSize = 1,
            ConfigureChannel = options => (options.HttpHandler, options.DisposeHttpClient) = (shared, false),
        });
        Assert.True(one.TryAcquire(out _));
    }

    [Fact]
    public void AHandlerOfTheUsersOwnForEachChannel_AndOneAroundThePools_AreTaken()
    {
        var handlers = new List<SocketsHttpHandler>();
        using var pool = ChannelPool.ForAddress("http://users:5000", new ChannelPoolOptions
        {
            MaxConcurrentCallsPerChannel = 1,
            ConfigureHandler = handlers.Add,
            ConfigureChannel = options => options.HttpHandler = new Wrapping(options.HttpHandler!),
        });
        for (var i = 0; i < 3; i++)
        {
            Assert.True(pool.TryAcquire(out _));
        }

        Assert.Equal(3, handlers.Distinct().Count());
        Assert.All(handlers, static handler => Assert.False(handler.EnableMultipleHttp2Connections));
    }

    [Fact]
    public void CallbacksForChannelsThatAPolicyMakes_AreSaidToBeUnused()
    {
        var exception = Assert.Throws<ArgumentException>(() => new ChannelPool(new StubPolicy(), new ChannelPoolOptions { ConfigureChannel = static _ => { } }));
        Assert.Contains("policy of your own", exception.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void TheOptionsAreCopied()
    {
        var options = new ChannelPoolOptions { MaxPoolSize = 1, MaxConcurrentCallsPerChannel = 1 };
        using var pool = new ChannelPool(new StubPolicy(), options);
        options.MaxPoolSize = 2;
        Assert.True(pool.TryAcquire(out _));
        Assert.False(pool.TryAcquire(out _));
    }

    [Fact]
    public async Task AfterDispose_ACallIsRefusedAsByADisposedChannel()
    {
        var invoker = PoolingCallInvoker.ForAddress("http://users:5000");
        var client = new User.UserClient(invoker);
        await invoker.DisposeAsync();
        Assert.Throws<ObjectDisposedException>(() => client.GetNameAsync(new GetNameRequest()));
        Assert.Throws<ObjectDisposedException>(() => client.GetName(new GetNameRequest()));
        Assert.Throws<ObjectDisposedException>(() => client.ListNames(new ListNamesRequest()));
        Assert.Throws<ObjectDisposedException>(() => client.ImportNames());
        Assert.Throws<ObjectDisposedException>(() => client.Chat());
        await Assert.ThrowsAsync<ObjectDisposedException>(() => invoker.ConnectAsync().Soon());
    }

    [Fact]
    public async Task AnInvokerOverAPoolOfSomebodyElse_LeavesItAlone()
    {
        using var pool = new ChannelPool(new StubPolicy());
        await using (var invoker = new PoolingCallInvoker(pool))
        {
            Assert.Same(pool, invoker.Pool);
            await invoker.AsChannel().ShutdownAsync();
        }

        Assert.True(pool.TryAcquire(out _));
    }

    [Fact]
    public void OptionsForAPoolThatExistsAlready_AreAnError_UnlessTheyAreItsOwn()
    {
        var options = new PoolingCallInvokerOptions { Pool = { MaxPoolSize = 2 } };
        using var pool = new ChannelPool(new StubPolicy(), options.Pool);
        Assert.Same(pool, new PoolingCallInvoker(pool, options).Pool);
        var exception = Assert.Throws<ArgumentException>(() => new PoolingCallInvoker(pool, new PoolingCallInvokerOptions { Pool = { RetryThrottling = null } }));
        Assert.Equal("Pool is set, but the pool exists already, with the options that it was made with. Set them where it is made. (Parameter 'options')", exception.Message);
        Assert.Throws<ArgumentException>(() => new PoolingCallInvoker(pool, new PoolingCallInvokerOptions { Pool = new ChannelPoolOptions() }));
    }

    [Fact]
    public void AName_IsInTheLogAndInEvents_AndIsTheTargetByDefault()
    {
        using var log = new RecordingLoggerFactory();
        var told = new List<ChannelPoolEvent>();
        var options = new ChannelPoolOptions { Name = "users", LoggerFactory = log, OnEvent = told.Add, Queue = InlineWork.Queue };
        using (var pool = ChannelPool.ForAddress("http://localhost:5000", options))
        {
            Assert.True(pool.TryAcquire(out var lease));
            lease.Dispose();
            Assert.Equal("users", pool.Name);
        }

        Assert.Equal(["users", "users"], told.Select(static one => one.PoolName));
        Assert.NotEmpty(log.Entries);
        Assert.All(log.Entries, static entry => Assert.StartsWith("users: ", entry.Message, StringComparison.Ordinal));
        using var other = ChannelPool.ForAddress("http://localhost:5000");
        Assert.Equal("localhost:5000", other.Name);
    }

    [Fact]
    public void ADeadlineThatIsNotUtc_IsRefusedAtOnce_AsByABareChannel()
    {
        using var channel = GrpcChannel.ForAddress("http://users:5000");
        using var invoker = PoolingCallInvoker.ForAddress("http://users:5000");
        var deadline = new CallOptions(deadline: new DateTime(2100, 1, 1, 0, 0, 0, DateTimeKind.Local));
        foreach (var client in new[] { new User.UserClient(channel), new User.UserClient(invoker) })
        {
            Assert.Throws<InvalidOperationException>(() => client.GetNameAsync(new GetNameRequest(), deadline));
            Assert.Throws<InvalidOperationException>(() => client.Chat(deadline));
        }

        Assert.Equal(0, invoker.Pool.GetStatistics().CallsInFlight);
    }

    private sealed class Wrapping(HttpMessageHandler inner) : DelegatingHandler(inner);
}

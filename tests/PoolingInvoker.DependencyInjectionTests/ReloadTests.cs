using Grpc.Core;
using Grpc.Net.ClientFactory;
using Microsoft.Extensions.Configuration;
using Microsoft.Extensions.DependencyInjection;
using Microsoft.Extensions.Hosting;
using Microsoft.Extensions.Logging;
using Microsoft.Extensions.Options;
using Microsoft.Extensions.Primitives;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.DependencyInjectionTests;

/// <summary>A configuration that is checked at the start, and that changes while the app is at work.</summary>
public sealed class ReloadTests
{
    private readonly IConfigurationRoot _configuration = new ConfigurationBuilder().AddInMemoryCollection().Build();
    private readonly List<ChannelPoolEvent> _events = [];

    [Fact]
    public async Task AHost_DoesNotStartWithAMistake_ThatNobodyHasMetYet()
    {
        Set(("Pool:MaxPoolSize", "0"));
        var builder = Host.CreateEmptyApplicationBuilder(new HostApplicationBuilderSettings());
        Add(builder.Services, new Uri("http://localhost"));
        using var host = builder.Build();
        var exception = await Assert.ThrowsAsync<OptionsValidationException>(() => host.StartAsync());
        Assert.Equal("Pools:users:Pool:MaxPoolSize is 0. It must be at least 1.", exception.Message);
    }

    [Fact]
    public async Task AClient_IsNotMadeWithAMistake()
    {
        Set(("Pool:DrainTimeout", "soon"));
        await using var app = new ClientApp(services => Add(services, new Uri("http://localhost")));
        var message = Assert.Throws<InvalidOperationException>(() => app.Client).Message;
        Assert.StartsWith("The channel pool of the gRPC client 'UserClient' cannot be made: Pools:users:Pool:DrainTimeout is 'soon'.", message, StringComparison.Ordinal);
        Set(("Pool:DrainTimeout", "5"));
        Assert.NotNull(app.Client); // it is asked again
    }

    [Fact]
    public async Task APool_ThatCannotFollowItsConfiguration_IsNotLeftBehind()
    {
        var tokens = new Tokens { Fails = true };
        var disposed = 0;
        await using var app = new ClientApp(services => Add(services, new Uri("http://localhost"))
            .AddHttpMessageHandler(() => new Told(() => disposed++))
            .Services.AddSingleton<IOptionsChangeTokenSource<PoolingCallInvokerOptions>>(tokens));
        Assert.Throws<ArithmeticException>(() => app.Pool);
        Assert.Equal(2, disposed); // of the channels that are prepared when a pool is made
        tokens.Fails = false;
        Assert.NotNull(app.Pool);
        Assert.Equal(2, disposed);
    }

    [Fact]
    public async Task WhatChanges_IsTakenUp_AndTold()
    {
        await using var server = await UserServer.StartAsync();
        Set(("Pool:MaxPoolSize", "5"), ("Retry:MaxRetryAttempts", "0"));
        await using var app = new ClientApp(services => Add(services, server.Address));
        server.Failures = 1;
        await Assert.ThrowsAsync<RpcException>(() => app.Client.GetNameAsync(new GetNameRequest()).ResponseAsync.Soon());

        Set(("Pool:MinPoolSize", "3"), ("Retry:MaxRetryAttempts", "2"), ("Pool:ProbeDelay", "Infinite"));
        Assert.Equal("MinPoolSize 1 → 3, ProbeDelay 00:00:01 → Infinite, Retry.MaxRetryAttempts 0 → 2", (await ToldAsync(ChannelPoolEventKind.OptionsChanged)).Message);
        await Waiting.Until(() => app.Pool.GetChannels().Count(static channel => channel.State == PooledChannelState.Active) == 3);
        server.Failures = 2;
        await app.CallAsync(overPool: true);
        var log = Assert.Single(app.Logs.GetSnapshot(), static record => record.Id.Name == "OptionsChanged");
        Assert.Equal(("PoolingInvoker.ChannelPool", LogLevel.Information), (log.Category, log.Level));
        Assert.Contains("MinPoolSize 1 → 3", log.Message, StringComparison.Ordinal);

        Set(("Pool:MaxPoolSize", "2"), ("Pool:MinPoolSize", "1"));
        await Waiting.Until(() => app.Pool.GetStatistics() is { Channels: 2, DrainingChannels: 0 });
        await app.CallAsync(overPool: true);
    }

    [Fact]
    public async Task ACallInFlight_OutlivesItsChannelsRetirement()
    {
        await using var server = await UserServer.StartAsync();
        Set(("Pool:MaxConcurrentCallsPerChannel", "1"));
        await using var app = new ClientApp(services => Add(services, server.Address));
        var calls = Enumerable.Range(0, 3).Select(_ => app.Client.RenameAsync(new RenameRequest()).ResponseAsync).ToList();
        await Waiting.Until(() => server.Calls.Count == 3);
        Set(("Pool:MaxPoolSize", "1"));
        await Waiting.Until(() => app.Pool.GetStatistics() is { Channels: 1, DrainingChannels: 2 });
        Assert.All(calls, static call => Assert.False(call.IsCompleted));
        server.Gate.SetResult();
        await Task.WhenAll(calls).Soon();
        await Waiting.Until(() => app.Pool.GetStatistics() is { Channels: 1, DrainingChannels: 0 });
    }

    [Theory]
    [InlineData("Pool:MaxPoolSize", "none")]
    [InlineData("Pool:MaxPoolSize", "0")]
    [InlineData("Pool:MaxPoolSzie", "5")]
    public async Task AChangeWithAMistake_IsNotTakenUp_AndTheLogSaysWhy(string key, string value)
    {
        await using var app = new ClientApp(services => Add(services, new Uri("http://localhost")));
        Assert.NotNull(app.Client);
        Set(("Retry:MaxRetryAttempts", "5"), (key, value));
        var log = Assert.Single(app.Logs.GetSnapshot(), static record => record.Id.Name == "ConfigurationRefused");
        Assert.Equal(("PoolingInvoker.ClientPools", LogLevel.Error), (log.Category, log.Level));
        Assert.StartsWith($"Pools:users:{key} is ", Assert.IsType<OptionsValidationException>(log.Exception).Message, StringComparison.Ordinal);
        Assert.Empty(_events);

        Set((key, "50"));
        if (key == "Pool:MaxPoolSize")
        {
            Assert.Equal("MaxPoolSize 100 → 50, Retry.MaxRetryAttempts 3 → 5", (await ToldAsync(ChannelPoolEventKind.OptionsChanged)).Message);
        }
    }

    [Fact]
    public async Task WhatCannotChange_IsInTheLog()
    {
        await using var app = new ClientApp(services => Add(services, new Uri("http://localhost")));
        Assert.NotNull(app.Client);
        Set(("Pool:LeakDetectionThreshold", "60"));
        var log = Assert.Single(app.Logs.GetSnapshot(), static record => record.Id.Name == "OptionsKept");
        Assert.Equal(LogLevel.Warning, log.Level);
        Assert.Contains("LeakDetectionThreshold 00:00:00 → 00:01:00", log.Message, StringComparison.Ordinal);
        Assert.Empty(_events);
    }

    [Fact]
    public async Task CodeAfterTheSection_HasTheLastWord_AlsoWhenItChanges()
    {
        Set(("Pool:MaxPoolSize", "5"), ("Pool:MinPoolSize", "2"));
        await using var app = new ClientApp(services => services.AddGrpcClient<User.UserClient>(static options => options.Address = new Uri("http://localhost"))
            .AddChannelPool(static options => (options.Pool.MinPoolSize, options.Pool.MaxCallsWaiting) = (1, 7))
            .AddChannelPool(_configuration.GetSection("Pools:users"), options => (options.Pool.MaxPoolSize, options.Pool.OnEvent) = (options.Pool.MaxPoolSize * 2, Note)));
        Assert.NotNull(app.Client);
        Set(("Pool:MaxPoolSize", "6"));
        Assert.Equal("MaxPoolSize 10 → 12", (await ToldAsync(ChannelPoolEventKind.OptionsChanged)).Message);
    }

    [Fact]
    public async Task OptionsOfAnotherSource_AreFollowedAsWell_AndOfEachClientItsOwn()
    {
        await using var app = new ClientApp(services =>
        {
            foreach (var name in new[] { "blue", "green" })
            {
                services.AddGrpcClient<User.UserClient>(name, static options => options.Address = new Uri("http://localhost"))
                    .AddChannelPool(_configuration.GetSection($"Pools:{name}"), options => options.Pool.OnEvent = told => Note(told));
            }
        });
        var factory = app.Services.GetRequiredService<GrpcClientFactory>();
        _ = (factory.CreateClient<User.UserClient>("blue"), factory.CreateClient<User.UserClient>("green"));
        Assert.Equal(2, app.Logs.GetSnapshot().Count(static record => record.Id.Name == "NoSection"));
        _configuration["Pools:green:Pool:MaxPoolSize"] = "9";
        _configuration.Reload();
        Assert.Equal("MaxPoolSize 100 → 9", (await ToldAsync(ChannelPoolEventKind.OptionsChanged)).Message);
        Assert.Single(app.Logs.GetSnapshot(), static record => record.Id.Name == "OptionsChanged");
    }

    [Fact]
    public async Task AfterTheEnd_AChangeIsNobodysBusiness()
    {
        var app = new ClientApp(services => Add(services, new Uri("http://localhost")));
        Assert.NotNull(app.Client);
        await app.DisposeAsync();
        Set(("Pool:MaxPoolSize", "none"));
        Assert.DoesNotContain(app.Logs.GetSnapshot(), static record => record.Level >= LogLevel.Warning && record.Id.Name != "NoSection");
    }

    private IHttpClientBuilder Add(IServiceCollection services, Uri address) => services.AddGrpcClient<User.UserClient>(options => options.Address = address)
        .AddChannelPool(_configuration.GetSection("Pools:users"), options => options.Pool.OnEvent = Note);

    private void Set(params (string Key, string Value)[] values)
    {
        foreach (var (key, value) in values)
        {
            _configuration[$"Pools:users:{key}"] = value;
        }

        _configuration.Reload();
    }

    private void Note(ChannelPoolEvent told)
    {
        lock (_events)
        {
            _events.Add(told);
        }
    }

    private async Task<ChannelPoolEvent> ToldAsync(ChannelPoolEventKind kind)
    {
        ChannelPoolEvent? found = null;
        await Waiting.Until(() =>
        {
            lock (_events)
            {
                return (found = _events.Find(told => told.Kind == kind)) is not null;
            }
        });
        return found!;
    }

    // The first token is taken when the options are read, and the second to follow them.
    private sealed class Tokens : IOptionsChangeTokenSource<PoolingCallInvokerOptions>
    {
        private int _taken;

        public bool Fails { get; set; }
        public string Name => nameof(User.UserClient);

        public IChangeToken GetChangeToken() => ++_taken > 1 && Fails ? throw new ArithmeticException("of the app") : new CancellationChangeToken(CancellationToken.None);
    }

    private sealed class Told(Action disposed) : DelegatingHandler
    {
        protected override void Dispose(bool disposing)
        {
            disposed();
            base.Dispose(disposing);
        }
    }
}

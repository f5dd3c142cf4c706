using Microsoft.Playwright;
using PoolingInvoker.Demo.Servers;
using PoolingInvoker.Demo.Web;
using PoolingInvoker.Testing;
using static Microsoft.Playwright.Assertions;

namespace PoolingInvoker.BrowserTests;

/// <summary>Each control of the demo, in Chromium, with its effect in the pool. It needs that, and not only the SDK.</summary>
[Trait("Tier", "all")]
public sealed class DemoTests(Browser browser) : IAsyncLifetime
{
    private readonly string _settings = Path.Combine(Path.GetTempPath(), $"{Guid.NewGuid()}.json");
    private ServerFleet _servers = null!;
    private WebApplication _front = null!;
    private Tab _tab = null!;

    private ChannelPool Pool => WebFront.PoolOf(_front.Services);

    private IPage Page => _tab.Page;

    public async ValueTask InitializeAsync()
    {
        await WriteSettingsAsync(maxPoolSize: 20);
        _servers = await ServerFleet.StartAsync([]);
        _front = WebFront.Build(_servers, _settings);
        await _front.StartAsync();
        _tab = await browser.OpenAsync(new Uri(_front.Urls.Single()));
        await Page.GotoAsync(_front.Urls.Single());
        await Expect(Page.Locator("#servers li")).ToHaveCountAsync(3);
        await Expect(Page.Locator(".status")).ToHaveTextAsync("Live");
    }

    public async ValueTask DisposeAsync()
    {
        await _tab.DisposeAsync();
        await _front.StopAsync();
        await _front.DisposeAsync();
        await _servers.DisposeAsync();
        File.Delete(_settings);
    }

    [Fact]
    public async Task TheSlider_OfCallers_MakesAsManyCalls_AndEndsThem()
    {
        await SlideAsync("Callers", 40);
        await Waiting.Until(() => Pool.GetStatistics().CallsInFlight > 20);
        await Expect(RowOf("calls a second").Locator("td").Nth(1)).Not.ToHaveTextAsync("0");
        await Expect(RowOf("calls a second").Locator("td").First).Not.ToHaveTextAsync("0");
        await SlideAsync("Callers", 0);
        await Waiting.Until(() => Pool.GetStatistics().CallsInFlight == 0);
        Assert.Empty(_tab.Complaints);
    }

    [Fact]
    public async Task TheSlider_OfStreams_MakesCallsStreams()
    {
        await SlideAsync("Streams", 100);
        await SlideAsync("Callers", 30);
        await Waiting.Until(() => Pool.GetStatistics().CallsInFlight == 30);
        await Expect(RowOf("p50 ms").Locator("td").Nth(1)).ToHaveTextAsync("–");
        await Expect(RowOf("calls a second").Locator("td").Nth(1)).Not.ToHaveTextAsync("0");
    }

    [Fact]
    public async Task AServer_IsKilled_AndComesBack()
    {
        await SlideAsync("Callers", 30);
        var server = await OneThatAnswersThePoolAsync();
        await ButtonAsync($"Kill {server}");
        await Waiting.Until(() => Pool.GetStatistics().ChannelsReplaced > 0);
        await Expect(Page.Locator(".events li[data-kind=Replaced]").First).ToBeVisibleAsync();
        Assert.Equal(FleetServerState.Killed, _servers.StateOf(server));
        await ButtonAsync($"Restart {server}");
        await Expect(Page.GetByRole(AriaRole.Button, new() { Name = $"Kill {server}" })).ToBeVisibleAsync();
        Assert.Equal(FleetServerState.Up, _servers.StateOf(server));
        Assert.Empty(_tab.Complaints);
    }

    [Fact]
    public async Task AServer_ThatHangs_IsGivenUp()
    {
        await SlideAsync("Callers", 30);
        await Waiting.Until(() => Pool.GetStatistics().Channels >= 3);
        var server = await OneThatAnswersThePoolAsync();
        await ButtonAsync($"Hang {server}");
        await Waiting.Until(() => Pool.GetStatistics().ChannelsGivenUp > 0);
        await Expect(Page.Locator(".events li[data-kind=GivenUp]").First).ToBeVisibleAsync();
        await ButtonAsync($"Let go on {server}");
        await Expect(Page.GetByRole(AriaRole.Button, new() { Name = $"Hang {server}" })).ToBeVisibleAsync();
        Assert.Equal(FleetServerState.Up, _servers.StateOf(server));
    }

    [Fact]
    public async Task TheNetwork_IsPaused_AndMended()
    {
        await SlideAsync("Callers", 20);
        await Waiting.Until(() => Pool.GetStatistics().CallsInFlight > 0);
        var network = Page.GetByRole(AriaRole.Button, new() { Name = "Pause the network" });
        await network.ClickAsync();
        await Expect(network).ToHaveAttributeAsync("aria-pressed", "true");
        await Expect(RowOf("calls a second").Locator("td").Nth(1)).ToHaveTextAsync("0");
        await network.ClickAsync();
        await Expect(RowOf("calls a second").Locator("td").Nth(1)).Not.ToHaveTextAsync("0");
    }

    [Fact]
    public async Task AServer_IsAdded_AndAnswers()
    {
        await ButtonAsync("Add a server");
        await Expect(Page.Locator("#servers li")).ToHaveCountAsync(4);
        await SetAsync("MinPoolSize", 8);
        await SlideAsync("Callers", 30);
        await Expect(RowOf("answers of server-4").Locator("td").Nth(1)).Not.ToHaveTextAsync("0");
    }

    [Fact]
    public async Task AnOption_IsChanged_InThePoolAtWork()
    {
        await SlideAsync("Callers", 100);
        await Waiting.Until(() => Pool.GetStatistics().Channels > 3);
        await SetAsync("MaxPoolSize", 3);
        await Waiting.Until(() => Pool.GetStatistics() is { MaxPoolSize: 3, Channels: 3 });
        await Expect(Page.Locator(".events li[data-kind=OptionsChanged]").First).ToContainTextAsync("MaxPoolSize");
    }

    [Fact]
    public async Task TheFile_IsChanged_AndThePageShowsIt()
    {
        await SlideAsync("Callers", 10);
        await Waiting.Until(() => Pool.GetStatistics().MaxPoolSize == 20);
        await WriteSettingsAsync(maxPoolSize: 7);
        await Expect(Page.Locator(".events li[data-kind=OptionsChanged]").First).ToContainTextAsync("MaxPoolSize");
        await Expect(Page.GetByLabel("MaxPoolSize")).ToHaveValueAsync("7");
    }

    [Theory]
    [InlineData(ColorScheme.Light, 1280)]
    [InlineData(ColorScheme.Dark, 360)]
    public async Task Everybody_CanUseIt(ColorScheme scheme, int width)
    {
        await using var tab = await browser.OpenAsync(new Uri(_front.Urls.Single()), scheme, width);
        await tab.Page.GotoAsync(_front.Urls.Single());
        await Expect(tab.Page.Locator("#servers li")).ToHaveCountAsync(3);
        await SlideAsync("Callers", 20);
        await Expect(tab.Page.Locator(".lanes .lane").First).ToBeVisibleAsync();
        Assert.Empty(await tab.AxeAsync());
        Assert.Equal(0, await tab.OverflowAsync());
        Assert.Empty(tab.Complaints);
    }

    private Task SlideAsync(string name, int value) => Page.GetByRole(AriaRole.Slider, new() { NameRegex = new($"^{name}") }).FillAsync($"{value}");

    private Task ButtonAsync(string name) => Page.GetByRole(AriaRole.Button, new() { Name = name }).ClickAsync();

    private async Task SetAsync(string option, int value)
    {
        await Page.GetByLabel(option).FillAsync($"{value}");
        await Page.GetByLabel(option).PressAsync("Enter");
    }

    // The balancer gives servers in turn to all who connect, and the bare channel is one of them: the pool may have none to a server.
    private async Task<string> OneThatAnswersThePoolAsync()
    {
        for (var since = TimeProvider.System.GetTimestamp(); TimeProvider.System.GetElapsedTime(since) < Waiting.Long;)
        {
            foreach (var server in (string[])["server-1", "server-2", "server-3"])
            {
                if (await RowOf($"answers of {server}").Locator("td").Nth(1).InnerTextAsync() is not ("0" or ""))
                {
                    return server;
                }
            }
        }

        throw new TimeoutException("No server answers the pool.");
    }

    private ILocator RowOf(string name) => Page.Locator("#compared tr").Filter(new() { Has = Page.GetByText(name, new() { Exact = true }) });

    private Task WriteSettingsAsync(int maxPoolSize) => File.WriteAllTextAsync(
        _settings, $$"""{ "Users": { "Pool": { "MinPoolSize": 3, "MaxPoolSize": {{maxPoolSize}}, "TargetConcurrentCallsPerChannel": 12 }, "Retry": { "MaxRetryAttempts": 3 } } }""");
}

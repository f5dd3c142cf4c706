using Microsoft.Playwright;
using PoolingInvoker.Testing;
using static Microsoft.Playwright.Assertions;

namespace PoolingInvoker.BrowserTests;

/// <summary>The page of MapChannelPools in Chromium. It needs that, and not only the SDK.</summary>
[Trait("Tier", "all")]
public sealed class DashboardTests(Browser browser, ITestOutputHelper output)
{
    [Fact]
    public async Task CallsInFlight_AreSeen_AndNothingIsAskedOfOthers()
    {
        await using var users = await Users.StartAsync();
        await using var tab = await browser.OpenAsync(users.Page);
        await tab.Page.GotoAsync($"{users.Page}pools");
        await Expect(tab.Page.GetByRole(AriaRole.Status)).ToHaveTextAsync("Live");
        await Expect(tab.Page.GetByRole(AriaRole.Heading, new() { Name = "users", Exact = true })).ToBeVisibleAsync();

        using var first = await users.HoldCallAsync();
        using var second = await users.HoldCallAsync();
        await Expect(NumberOf(tab, "in flight")).ToHaveTextAsync("2");
        await Expect(tab.Page.Locator(".lanes .lane").First).ToContainTextAsync("of 100 calls");
        await Expect(tab.Page.Locator(".endpoints .lane")).ToContainTextAsync(["100 % of calls"]);
        await Expect(tab.Page.Locator(".events")).ToContainTextAsync("Created");
        await Expect(tab.Page.Locator("figure canvas").First).ToBeVisibleAsync();
        Assert.Empty(tab.Complaints);
    }

    [Fact]
    public async Task AChannel_WhoseServerIsKilled_IsSeenToBeReplaced()
    {
        await using var users = await Users.StartAsync(servers: 2);
        await using var tab = await browser.OpenAsync(users.Page);
        await tab.Page.GotoAsync($"{users.Page}pools/");
        await Expect(tab.Page.GetByRole(AriaRole.Status)).ToHaveTextAsync("Live");
        await users.Invoker.ConnectAsync().Soon();
        var lanes = tab.Page.Locator(".lanes .lane");
        await Expect(lanes.Locator(".id").Filter(new() { HasText = "#1" })).ToBeVisibleAsync();

        await users.KillServerOfAsync(channel: 1);
        await users.CallUntilAsync(() => users.Invoker.Pool.GetStatistics().ChannelsReplaced > 0);
        await Expect(tab.Page.Locator(".events li[data-kind=Replaced]").First).ToContainTextAsync("in place of #1");
        await Expect(lanes.Locator(".id").GetByText("#1", new() { Exact = true })).ToHaveCountAsync(0);
        Assert.Empty(tab.Complaints);
    }

    [Fact]
    public async Task WhenTheServerIsGone_TheNumbersLookOld_AndComeBackWithIt()
    {
        await using var users = await Users.StartAsync();
        await using var tab = await browser.OpenAsync(users.Page);
        await tab.Page.GotoAsync($"{users.Page}pools/");
        await Expect(tab.Page.GetByRole(AriaRole.Status)).ToHaveTextAsync("Live");

        await users.StopPageAsync();
        await Expect(tab.Page.GetByRole(AriaRole.Status)).ToContainTextAsync("The numbers are old");
        await Expect(NumberOf(tab, "channels")).ToHaveCSSAsync("text-decoration-line", "line-through");
        Assert.Empty(await tab.AxeAsync());

        await users.StartPageAgainAsync();
        await Expect(tab.Page.GetByRole(AriaRole.Status)).ToHaveTextAsync("Live");
        await Expect(NumberOf(tab, "channels")).ToHaveCSSAsync("text-decoration-line", "none");
    }

    [Theory]
    [InlineData(ColorScheme.Light, 1280)]
    [InlineData(ColorScheme.Dark, 1280)]
    [InlineData(ColorScheme.Light, 360)]
    [InlineData(ColorScheme.Dark, 360)]
    public async Task Everybody_CanReadIt(ColorScheme scheme, int width)
    {
        await using var users = await Users.StartAsync(servers: 2);
        await using var tab = await browser.OpenAsync(users.Page, scheme, width);
        await tab.Page.GotoAsync($"{users.Page}pools/");
        await Expect(tab.Page.GetByRole(AriaRole.Status)).ToHaveTextAsync("Live");
        using var held = await users.HoldCallAsync();
        await users.KillServerOfAsync(channel: 1);
        await users.CallUntilAsync(() => users.Invoker.Pool.GetStatistics().ChannelsReplaced > 0);
        await Expect(tab.Page.Locator(".events li[data-kind=Replaced]").First).ToBeVisibleAsync();
        Assert.Empty(await tab.AxeAsync());
        Assert.Equal(0, await tab.OverflowAsync());
        Assert.Empty(tab.Complaints);
    }

    [Fact]
    public async Task ALongError_Wraps_AndIsNoMarkup()
    {
        const string Bad = "<img src=x onerror=alert(1)>";
        await using var users = await Users.StartAsync(prime: (_, _) => throw new InvalidOperationException(Bad + new string('x', 3_000)));
        await using var tab = await browser.OpenAsync(users.Page, width: 360);
        await tab.Page.GotoAsync($"{users.Page}pools/");
        await Expect(tab.Page.GetByRole(AriaRole.Status)).ToHaveTextAsync("Live");
        await Assert.ThrowsAnyAsync<Exception>(() => users.Invoker.ConnectAsync()).Soon();
        await Expect(tab.Page.Locator(".events .error").First).ToContainTextAsync(Bad);
        Assert.Equal(0, await tab.OverflowAsync());
        Assert.Equal(0, await tab.Page.Locator("img").CountAsync());
        Assert.Empty(tab.Complaints);
    }

    [Fact]
    public async Task TheKeyboard_ReachesAllOfIt_AndPauses()
    {
        await using var users = await Users.StartAsync(others: ["orders"]);
        await using var tab = await browser.OpenAsync(users.Page);
        await tab.Page.GotoAsync($"{users.Page}pools/");
        var orders = tab.Page.GetByRole(AriaRole.Button, new() { NameRegex = new("^orders") });
        await Expect(orders).ToBeVisibleAsync();

        await tab.Page.Keyboard.PressAsync("Tab");
        await Expect(tab.Page.GetByRole(AriaRole.Button, new() { Name = "Pause" })).ToBeFocusedAsync();
        await tab.Page.Keyboard.PressAsync("Tab");
        await tab.Page.Keyboard.PressAsync("Tab");
        await Expect(orders).ToBeFocusedAsync();
        await tab.Page.Keyboard.PressAsync("Enter");
        await Expect(tab.Page.GetByRole(AriaRole.Heading, new() { Name = "orders", Exact = true })).ToBeVisibleAsync();
        await tab.Page.Keyboard.PressAsync("Tab");
        await Expect(tab.Page.GetByRole(AriaRole.List, new() { Name = "Events of orders" })).ToBeFocusedAsync();

        await tab.Page.GetByRole(AriaRole.Button, new() { Name = "users" }).ClickAsync();
        await tab.Page.GetByRole(AriaRole.Button, new() { Name = "Pause" }).PressAsync("Space");
        await Expect(tab.Page.Locator(".when")).ToContainTextAsync("paused");
        var calls = await NumberOf(tab, "in flight").TextContentAsync();
        using var held = await users.HoldCallAsync();
        var looks = users.Looks;
        await Waiting.Until(() => users.Looks > looks + 1);
        Assert.Equal(calls, await NumberOf(tab, "in flight").TextContentAsync());
        await tab.Page.GetByRole(AriaRole.Button, new() { Name = "Pause" }).PressAsync("Space");
        await Expect(NumberOf(tab, "in flight")).ToHaveTextAsync("1");
    }

    [Fact]
    public async Task AHundredChannels_ChangeWithoutNewElements()
    {
        await using var users = await Users.StartAsync(channels: 100);
        await using var tab = await browser.OpenAsync(users.Page);
        await tab.Page.GotoAsync($"{users.Page}pools/");
        await users.Invoker.ConnectAsync().Soon();
        await Expect(tab.Page.Locator(".lanes .lane[data-state=Active]")).ToHaveCountAsync(100);
        await using var load = Load.Start(users.Client, callers: 50);
        await Expect(NumberOf(tab, "in flight")).ToHaveTextAsync("50");
        await tab.Page.EvaluateAsync(
            """
            () => {
              window.added = 0;
              window.frames = [];
              new MutationObserver(records => records.forEach(record => window.added += record.addedNodes.length))
                .observe(document.querySelector('.lanes'), { childList: true });
              const count = at => requestAnimationFrame(count, window.frames.push(at));
              requestAnimationFrame(count);
            }
            """);
        var looks = users.Looks;
        await Waiting.Until(() => users.Looks > looks + 6);
        Assert.Equal(0, await tab.Page.EvaluateAsync<int>("() => window.added"));
        Assert.Equal("50", await NumberOf(tab, "in flight").TextContentAsync());
        output.WriteLine(await tab.Page.EvaluateAsync<string>(
            "() => { const f = window.frames; return `${f.length} frames in ${Math.round(f.at(-1) - f[0])} ms, the longest ${Math.round(Math.max(...f.slice(1).map((at, i) => at - f[i])))} ms`; }"));
        Assert.Empty(tab.Complaints);
    }

    private static ILocator NumberOf(Tab tab, string name) =>
        tab.Page.Locator(".numbers div").Filter(new() { Has = tab.Page.GetByText(name, new() { Exact = true }) }).Locator("dd");
}

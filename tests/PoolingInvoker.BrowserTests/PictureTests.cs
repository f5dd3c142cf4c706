using Microsoft.Playwright;
using PoolingInvoker.Testing;
using static Microsoft.Playwright.Assertions;

namespace PoolingInvoker.BrowserTests;

/// <summary>
/// The pictures of the docs, taken anew: <c>PICTURES</c> is the path of their folder. Without it nothing is written. It needs Chromium.
/// </summary>
[Trait("Tier", "all")]
public sealed class PictureTests(Browser browser)
{
    private static readonly string? Folder = Environment.GetEnvironmentVariable("PICTURES");

    [Theory]
    [InlineData("dashboard.png", ColorScheme.Light, 1200, 860)]
    [InlineData("dashboard-dark.png", ColorScheme.Dark, 1200, 860)]
    [InlineData("dashboard-phone.png", ColorScheme.Light, 360, 740)]
    public async Task ThePage_OfAPoolAtWork(string file, ColorScheme scheme, int width, int height)
    {
        await using var users = await Users.StartAsync(servers: 3);
        await using var tab = await browser.OpenAsync(users.Page, scheme, width, height);
        await tab.Page.GotoAsync($"{users.Page}pools/");
        await Expect(tab.Page.GetByRole(AriaRole.Status)).ToHaveTextAsync("Live");
        var looks = Folder is null ? 4 : 120; // a minute of lines
        await using var load = Load.Start(users.Client, callers: 40);
        await Waiting.Until(4 * Waiting.Long, () => users.Looks > looks);
        await users.KillServerOfAsync(channel: 1);
        await Expect(tab.Page.Locator(".events li[data-kind=Replaced]").First).ToBeVisibleAsync();
        var replaced = users.Looks;
        await Waiting.Until(() => users.Looks > replaced + (Folder is null ? 2 : 20));
        if (Folder is not null)
        {
            await tab.Page.ScreenshotAsync(new PageScreenshotOptions { Path = Path.Combine(Folder, file), Animations = ScreenshotAnimations.Disabled });
        }

        Assert.Equal(0, await tab.OverflowAsync());
        Assert.Empty(tab.Complaints);
    }
}

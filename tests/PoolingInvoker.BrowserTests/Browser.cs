using System.Collections.Concurrent;
using Microsoft.Playwright;

[assembly: AssemblyFixture(typeof(PoolingInvoker.BrowserTests.Browser))]

namespace PoolingInvoker.BrowserTests;

/// <summary>Chromium, as it is installed on the machine, for all tests.</summary>
public sealed class Browser : IAsyncLifetime
{
    private IPlaywright? _playwright;
    private IBrowser? _browser;

    public async ValueTask InitializeAsync()
    {
        _playwright = await Playwright.CreateAsync();
        _browser = await _playwright.Chromium.LaunchAsync(new BrowserTypeLaunchOptions
        {
            ExecutablePath = Environment.GetEnvironmentVariable("CHROMIUM") ?? "/usr/bin/chromium",
            Args = ["--no-sandbox"], // root has none
        });
    }

    /// <summary>A page that may ask one host alone.</summary>
    public async Task<Tab> OpenAsync(Uri host, ColorScheme scheme = ColorScheme.Light, int width = 1280, int height = 900)
    {
        var context = await _browser!.NewContextAsync(new BrowserNewContextOptions
        {
            ColorScheme = scheme,
            ViewportSize = new ViewportSize { Width = width, Height = height },
            ReducedMotion = ReducedMotion.Reduce,
            TimezoneId = "UTC",
        });
        context.SetDefaultTimeout(30_000);
        return await Tab.NewAsync(context, host);
    }

    public async ValueTask DisposeAsync()
    {
        if (_browser is not null)
        {
            await _browser.CloseAsync();
        }

        _playwright?.Dispose();
    }
}

/// <summary>A page, what it has complained of, and what it wanted of others.</summary>
public sealed class Tab : IAsyncDisposable
{
    private readonly IBrowserContext _context;
    private readonly ConcurrentQueue<string> _complaints = new();

    private Tab(IBrowserContext context, IPage page) => (_context, Page) = (context, page);

    public IPage Page { get; }

    /// <summary>Errors and warnings of the console, exceptions, and requests to another host, but for those that were allowed.</summary>
    public IEnumerable<string> Complaints => _complaints;

    internal static async Task<Tab> NewAsync(IBrowserContext context, Uri host)
    {
        var tab = new Tab(context, await context.NewPageAsync());
        await context.RouteAsync(
            url => new Uri(url).Authority != host.Authority,
            route =>
            {
                tab._complaints.Enqueue($"a request to {route.Request.Url}");
                return route.AbortAsync();
            });
        tab.Page.Console += (_, message) =>
        {
            if (message.Type is "error" or "warning")
            {
                tab._complaints.Enqueue($"{message.Type}: {message.Text}");
            }
        };
        tab.Page.PageError += (_, error) => tab._complaints.Enqueue(error);
        return tab;
    }

    /// <summary>What axe finds wrong with the page as it is.</summary>
    public async Task<IReadOnlyList<string>> AxeAsync()
    {
        using var reader = new StreamReader(typeof(Tab).Assembly.GetManifestResourceStream("axe.js")!);
        await Page.EvaluateAsync(await reader.ReadToEndAsync()); // not as a script of the page, whose policy allows none
        return await Page.EvaluateAsync<string[]>(
            """
            async () => (await axe.run()).violations.flatMap(one => one.nodes.map(node => `${one.id}: ${node.target} ${node.any.map(any => any.message)}`))
            """);
    }

    /// <summary>By how many pixels the page is wider than the window.</summary>
    public Task<int> OverflowAsync() => Page.EvaluateAsync<int>("() => document.documentElement.scrollWidth - document.documentElement.clientWidth");

    public async ValueTask DisposeAsync() => await _context.CloseAsync();
}

using System.Net;
using System.Net.Http.Headers;
using System.Text.RegularExpressions;
using PoolingInvoker.Testing;

namespace PoolingInvoker.AspNetCoreTests;

/// <summary>The page and its files over HTTP.</summary>
public sealed partial class PageTests
{
    [Fact]
    public async Task ThePage_AndAllThatItLoads_IsServed()
    {
        await using var app = await PageApp.StartAsync();
        using var page = await app.Http.GetAsync("pools/").Soon();
        Assert.Equal(HttpStatusCode.OK, page.StatusCode);
        Assert.Equal("text/html", page.Content.Headers.ContentType?.MediaType);
        Assert.Contains("default-src 'self'", page.Headers.GetValues("Content-Security-Policy").Single(), StringComparison.Ordinal);

        var seen = new HashSet<string>();
        var left = new Queue<string>(FilesIn(await page.Content.ReadAsStringAsync()));
        while (left.TryDequeue(out var name))
        {
            if (!seen.Add(name))
            {
                continue;
            }

            using var file = await app.Http.GetAsync($"pools/{name}").Soon();
            Assert.True(file.IsSuccessStatusCode, name);
            Assert.Equal(name.EndsWith(".css", StringComparison.Ordinal) ? "text/css" : "text/javascript", file.Content.Headers.ContentType?.MediaType);
            Assert.Equal("nosniff", file.Headers.GetValues("X-Content-Type-Options").Single());
            foreach (var next in FilesIn(await file.Content.ReadAsStringAsync()))
            {
                left.Enqueue(next);
            }
        }

        Assert.Superset(new HashSet<string> { "pools.css", "pools.js", "lanes.js", "uPlot.iife.min.js" }, seen);
        Assert.Contains("MIT", await app.Http.GetStringAsync("pools/uPlot.LICENSE.txt").Soon(), StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("pools", "./pools/")]
    [InlineData("some/pools", "./pools/")]
    public async Task ThePage_IsAtItsPathWithASlash(string path, string location)
    {
        await using var app = await PageApp.StartAsync(also: static application => application.MapChannelPools("/some/pools"));
        using var moved = await app.Http.GetAsync(path).Soon();
        Assert.Equal(HttpStatusCode.Found, moved.StatusCode);
        Assert.Equal(location, moved.Headers.Location?.OriginalString);
    }

    [Fact]
    public async Task AFile_IsNotSentTwice()
    {
        await using var app = await PageApp.StartAsync();
        using var first = await app.Http.GetAsync("pools/pools.js").Soon();
        using var request = new HttpRequestMessage(HttpMethod.Get, "pools/pools.js");
        request.Headers.IfNoneMatch.Add(first.Headers.ETag!);
        using var second = await app.Http.SendAsync(request).Soon();
        Assert.Equal(HttpStatusCode.NotModified, second.StatusCode);
    }

    [Fact]
    public async Task WhatIsNotThere_IsNotFound()
    {
        await using var app = await PageApp.StartAsync();
        using var response = await app.Http.GetAsync("pools/index.htm").Soon();
        Assert.Equal(HttpStatusCode.NotFound, response.StatusCode);
    }

    [Theory]
    [InlineData("pools")]
    [InlineData("pools/")]
    [InlineData("pools/pools.js")]
    [InlineData("pools/live")]
    public async Task Authorization_HoldsForAllOfIt(string path)
    {
        await using var app = await PageApp.StartAsync(conventions: static page => page.RequireAuthorization());
        using var refused = await app.Http.GetAsync(path, HttpCompletionOption.ResponseHeadersRead).Soon();
        Assert.Equal(HttpStatusCode.Unauthorized, refused.StatusCode);

        using var request = new HttpRequestMessage(HttpMethod.Get, path);
        request.Headers.Authorization = new AuthenticationHeaderValue(PageApp.TestScheme);
        using var allowed = await app.Http.SendAsync(request, HttpCompletionOption.ResponseHeadersRead).Soon();
        Assert.True(allowed.StatusCode is HttpStatusCode.OK or HttpStatusCode.Found);
    }

    [Theory]
    [InlineData("POST", "pools/")]
    [InlineData("DELETE", "pools/live")]
    [InlineData("PUT", "pools/pools.js")]
    public async Task ItReadsOnly(string method, string path)
    {
        await using var app = await PageApp.StartAsync();
        using var request = new HttpRequestMessage(new HttpMethod(method), path);
        using var response = await app.Http.SendAsync(request).Soon();
        Assert.Equal(HttpStatusCode.MethodNotAllowed, response.StatusCode);
    }

    [Fact]
    public async Task TwoPoolsOfOneName_AreRefused()
    {
        await using var pool = ChannelPool.ForAddress("http://localhost:1");
        var error = Assert.Throws<ArgumentException>(() => new ChannelPoolsPageOptions().Add(pool, "users").Add(pool, "users"));
        Assert.Contains("'users'", error.Message, StringComparison.Ordinal);
    }

    private static IEnumerable<string> FilesIn(string text) => Names().Matches(text).Select(static match => match.Groups[1].Value);

    [GeneratedRegex(@"(?:src=|href=|from )[""'](?:\./)?([\w.]+\.(?:js|css))[""']")]
    private static partial Regex Names();
}

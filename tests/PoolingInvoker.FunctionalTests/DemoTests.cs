using System.Diagnostics;
using System.Net.Http.Json;
using System.Text.Json;
using PoolingInvoker.Demo.Servers;
using PoolingInvoker.Testing;

namespace PoolingInvoker.FunctionalTests;

/// <summary>The demo as a person starts it: in a process of its own.</summary>
public sealed class DemoTests(ITestOutputHelper output)
{
    [Fact]
    public async Task TheTour_LosesNoCall()
    {
        using var demo = Start("tour");
        var shown = demo.StandardOutput.ReadToEndAsync();
        await demo.WaitForExitAsync().WaitAsync(3 * Waiting.Long); // it goes on for twelve seconds, and starts three servers
        output.WriteLine(await shown);
        Assert.Equal(0, demo.ExitCode);
        Assert.Contains("The pools lost no call", await shown, StringComparison.Ordinal);
    }

    [Fact]
    public async Task TheWebFront_AnswersFromAllServers()
    {
        using var demo = Start();
        try
        {
            string? line;
            do
            {
                line = await demo.StandardOutput.ReadLineAsync().Soon();
                Assert.NotNull(line);
            }
            while (!line.Contains("http://", StringComparison.Ordinal));

            using var http = new HttpClient { BaseAddress = new Uri(line.Trim().Split(' ')[0]) };
            var servers = new HashSet<string>();

            // The pool connects with the first call, and calls go to those channels that are there.
            await http.GetStringAsync("users/1").Soon();
            await UntilConnectedAsync(http).Soon();
            for (var id = 1; id <= 30; id++)
            {
                var user = await http.GetFromJsonAsync<JsonElement>($"users/{id}").Soon();
                Assert.Equal($"user-{id}", user.GetProperty("name").GetString());
                servers.Add(user.GetProperty("server").GetString()!);
            }

            Assert.Equal(3, servers.Count);
            Assert.Contains("<html", await http.GetStringAsync("").Soon(), StringComparison.Ordinal);
            var pool = await http.GetFromJsonAsync<JsonElement>("pool").Soon();
            Assert.Equal(3, pool.GetProperty("statistics").GetProperty("channels").GetInt32());
            Assert.Equal(0, pool.GetProperty("statistics").GetProperty("callsInFlight").GetInt32());
        }
        finally
        {
            demo.Kill();
            await demo.WaitForExitAsync().Soon();
        }
    }

    private static async Task UntilConnectedAsync(HttpClient http)
    {
        while (await http.GetFromJsonAsync<JsonElement>("pool") is var pool && pool.GetProperty("statistics").GetProperty("idleChannels").GetInt32() < 3)
        {
        }
    }

    [Theory]
    [InlineData("--servers nonsense", 2)]
    [InlineData("dance", 2)]
    [InlineData("--help", 0)]
    public async Task Arguments(string arguments, int exitCode)
    {
        using var demo = Start(arguments.Split(' '));
        var said = await demo.StandardOutput.ReadToEndAsync().Soon() + await demo.StandardError.ReadToEndAsync().Soon();
        await demo.WaitForExitAsync().Soon();
        Assert.Equal(exitCode, demo.ExitCode);
        Assert.Contains("tour", said, StringComparison.Ordinal);
    }

    private static Process Start(params string[] arguments)
    {
        var start = new ProcessStartInfo("dotnet") { RedirectStandardOutput = true, RedirectStandardError = true };
        start.ArgumentList.Add(typeof(UserServer).Assembly.Location);
        Array.ForEach(arguments, start.ArgumentList.Add);
        return Process.Start(start)!;
    }
}

using System.Diagnostics;
using PoolingInvoker.Testing;

namespace PoolingInvoker.FunctionalTests;

/// <summary>A program that has no file descriptors left, and then has some again.</summary>
public sealed class DescriptorShortageTests(ITestOutputHelper output)
{
    [Fact]
    public async Task WithoutDescriptors_CallsEndAsOnABareChannel_AndAllIsWellAfterwards()
    {
        await using var server = await EndpointServer.StartAsync("127.0.0.1");
        var command = $"ulimit -n {DescriptorShortage.Limit} && exec dotnet '{typeof(DescriptorShortage).Assembly.Location}' {DescriptorShortage.Command} http://{server.EndPoint}";
        using var process = Process.Start(new ProcessStartInfo("sh", ["-c", command]) { RedirectStandardOutput = true, RedirectStandardError = true })!;
        var errors = process.StandardError.ReadToEndAsync();
        var said = process.StandardOutput.ReadToEndAsync();
        await process.WaitForExitAsync().WaitAsync(3 * Waiting.Long).ContinueWith(_ => process.Kill(), TaskScheduler.Default);
        var lines = (await said).Split('\n', StringSplitOptions.RemoveEmptyEntries);
        output.WriteLine($"{string.Join('\n', lines)}\n{await errors}");

        Assert.Equal(0, process.ExitCode);
        Assert.Equal("OK", lines[0]);
        Assert.Matches("^bare: Unavailable .*SocketException: ", lines[1]);
        Assert.Matches("^cold: Unavailable .*SocketException: .*Too many open files", lines[2]);
        Assert.Equal(["warm: OK", "cold afterwards: OK", "warm afterwards: OK", "disposed"], lines[3..]);
    }
}

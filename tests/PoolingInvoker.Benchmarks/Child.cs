using System.Diagnostics;
using System.Globalization;
using PoolingInvoker.Benchmarks.Scenarios;
using PoolingInvoker.Protos;

namespace PoolingInvoker.Benchmarks;

/// <summary>What is measured in a process of its own, which prints one number.</summary>
internal static class Child
{
    public const string First = "first";
    public const string Idle = "idle";

    public static async Task<double> RunAsync(string what, Contender contender, Uri address)
    {
        using var process = Process.Start(new ProcessStartInfo("dotnet", [typeof(Child).Assembly.Location, "child", what, contender.Name, $"{address}"])
        {
            RedirectStandardOutput = true,
        })!;
        try
        {
            var line = await process.StandardOutput.ReadLineAsync();
            await process.WaitForExitAsync();
            return double.Parse(
                line ?? throw new InvalidOperationException($"The process that measures '{what}' of '{contender}' ended without a figure: see above."), CultureInfo.InvariantCulture);
        }
        finally
        {
            process.Kill();
        }
    }

    public static async Task MainAsync(string what, string contender, Uri address)
    {
        await using var client = Contender.Named(contender).Connect(address);
        Console.WriteLine((what == First ? await FirstAnswerAsync(client) : await IdleStreamsAsync(client)).ToString(CultureInfo.InvariantCulture));
    }

    // From the start of the process on: the runtime is the same for all.
    private static async Task<double> FirstAnswerAsync(Client client)
    {
        await client.User.GetNameAsync(new GetNameRequest { Id = 7 });
        using var process = Process.GetCurrentProcess();
        return (DateTime.Now - process.StartTime).TotalMilliseconds;
    }

    private static async Task<double> IdleStreamsAsync(Client client)
    {
        // The first ones bring what is there once.
        var streams = new List<IDisposable>();
        await OpenAsync(200);
        Close();
        var before = GC.GetTotalMemory(forceFullCollection: true);
        await OpenAsync(IdleStreams.Streams);
        var held = GC.GetTotalMemory(forceFullCollection: true) - before;
        Close();
        return held / (double)IdleStreams.Streams;

        void Close()
        {
            streams.ForEach(static stream => stream.Dispose());
            streams.Clear();
        }

        async Task OpenAsync(int count)
        {
            for (var i = 0; i < count; i++)
            {
                var chat = client.User.Chat();
                streams.Add(chat);
                await chat.RequestStream.WriteAsync(new ChatMessage { Text = "hello" });
                await chat.ResponseStream.MoveNext(CancellationToken.None);
            }
        }
    }
}

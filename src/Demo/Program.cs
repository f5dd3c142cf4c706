using System.Runtime.InteropServices;
using PoolingInvoker.Demo;
using PoolingInvoker.Demo.Servers;
using PoolingInvoker.Demo.Web;

if (!CommandLine.TryParse(args, out var command, out var mistake))
{
    Console.Error.WriteLine($"{mistake}{Environment.NewLine}{Environment.NewLine}{CommandLine.Usage}");
    return 2;
}

try
{
    return command switch
    {
        CommandLine.Serve serve => await ServeAsync(serve),
        CommandLine.Web web => await UntilInterruptedAsync(stop => ShowAsync(web.Servers, stop)),
        CommandLine.Tour tour => await UntilInterruptedAsync(stop => TourAsync(tour.Servers, stop)),
        _ => Help(),
    };
}
catch (IOException exception)
{
    Console.Error.WriteLine(exception.Message); // a port that is taken, a journal that cannot be written
    return 1;
}

// One server in a process of its own, which prints its address and runs until it is killed.
static async Task<int> ServeAsync(CommandLine.Serve serve)
{
    await using var server = await UserServer.StartAsync(serve.Name, serve.EndPoint.Port, serve.Journal, address: serve.EndPoint.Address);
    Console.WriteLine(server.Address);
    await server.WaitForShutdownAsync();
    return 0;
}

static async Task<int> ShowAsync(IReadOnlyList<Uri> running, CancellationToken stop)
{
    await using var servers = await ServerFleet.StartAsync(running);
    var settings = Path.Combine(AppContext.BaseDirectory, "appsettings.json");
    await using var front = WebFront.Build(servers, settings);
    await front.StartAsync(stop);

    var address = front.Urls.Single();
    Console.WriteLine($"""
        A web front, with {string.Join(", ", servers.Names)} behind it. Ctrl+C stops it.
          {address}/          a bare channel and the pool side by side, and what to do to the servers
          {address}/pools/    a live picture of the pool, as any app can have it
          {address}/users/1   a call, and /users/2 another
          {address}/pool      the statistics of the pool
        The options of the pool are in {settings}, and may be changed there.
        """);

    await LivePicture.DrawAsync(WebFront.PoolOf(front.Services), front.Services.GetRequiredService<LastReplies>(), stop);
    await front.StopAsync(CancellationToken.None);
    return 0;
}

static async Task<int> TourAsync(IReadOnlyList<Uri> running, CancellationToken stop)
{
    await using var servers = await ServerFleet.StartAsync(running);
    return await Tour.RunAsync(servers, stop);
}

// The embedded servers take Ctrl+C for themselves: whoever wants to know of it has to ask.
static async Task<int> UntilInterruptedAsync(Func<CancellationToken, Task<int>> run)
{
    using var stop = new CancellationTokenSource();
    using var interrupt = PosixSignalRegistration.Create(PosixSignal.SIGINT, Stop);
    using var terminate = PosixSignalRegistration.Create(PosixSignal.SIGTERM, Stop);
    try
    {
        return await run(stop.Token);
    }
    catch (OperationCanceledException) when (stop.IsCancellationRequested)
    {
        Console.WriteLine("Interrupted.");
        return 1;
    }

    void Stop(PosixSignalContext signal)
    {
        signal.Cancel = true;
        stop.Cancel();
    }
}

static int Help()
{
    Console.WriteLine(CommandLine.Usage);
    return 0;
}

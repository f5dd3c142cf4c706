using System.Globalization;
using PoolingInvoker.FunctionalTests;
using Xunit.Runner.InProc.SystemConsole;

// Not async: the thread that starts a load of blocking calls is none of the thread pool.
return args is [BlockingLoad.Command, var kind, var callers, var client, var address]
    ? BlockingLoad.Run(kind, int.Parse(callers, CultureInfo.InvariantCulture), client, new Uri(address))
    : args is [ProxiedCall.Command, var server, var hash]
    ? ProxiedCall.RunAsync(new Uri(server), hash).GetAwaiter().GetResult()
    : args is [DescriptorShortage.Command, var target]
    ? DescriptorShortage.RunAsync(new Uri(target)).GetAwaiter().GetResult()
    : ConsoleRunner.Run(args).GetAwaiter().GetResult();

using PoolingInvoker.Demo.Servers;

// serve NAME PORT [JOURNAL]: one server in a process of its own, which prints its address and runs until it is killed.
if (args is ["serve", var name, var port, ..])
{
    await using var server = await UserServer.StartAsync(name, int.Parse(port), args.ElementAtOrDefault(3));
    Console.WriteLine(server.Address);
    await server.WaitForShutdownAsync();
    return 0;
}

return 1;

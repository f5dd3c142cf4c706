using System.Net;
using Grpc.Net.Client.Configuration;
using Microsoft.AspNetCore.Builder;
using Microsoft.AspNetCore.Hosting;
using Microsoft.AspNetCore.Hosting.Server;
using Microsoft.AspNetCore.Hosting.Server.Features;
using Microsoft.AspNetCore.Server.Kestrel.Core;
using Microsoft.Extensions.DependencyInjection;
using Microsoft.Extensions.Logging;
using PoolingInvoker;
using PoolingInvoker.NativeTests;
using PoolingInvoker.Protos;

// All five kinds of calls over a real connection; each is refused once, so that each is made twice, and its requests are written twice.
var builder = WebApplication.CreateSlimBuilder(args);
builder.Logging.ClearProviders();
builder.Services.AddGrpc();
builder.WebHost.ConfigureKestrel(static kestrel => kestrel.Listen(IPAddress.Loopback, 0, static listen => listen.Protocols = HttpProtocols.Http2));
await using var server = builder.Build();
server.MapGrpcService<RefusingUserService>();
await server.StartAsync();

// All but ImportNames are idempotent by their .proto.
var import = new PooledMethodConfig { Idempotent = true };
import.Names.Add(new MethodName { Service = "user.v1.User", Method = "ImportNames" });
var options = new PoolingCallInvokerOptions { MethodConfigs = { import } };
await using var invoker = PoolingCallInvoker.ForAddress(server.Services.GetRequiredService<IServer>().Features.Get<IServerAddressesFeature>()!.Addresses.Single(), options);
var client = new User.UserClient(invoker);
var retries = 0;

Check("unary", (await client.GetNameAsync(new GetNameRequest { Id = 1 })).Name, "user 1");
Check("blocking unary", client.GetName(new GetNameRequest { Id = 2 }).Name, "user 2");

using (var call = client.ListNames(new ListNamesRequest { Count = 3 }))
{
    var names = new List<string>();
    while (await call.ResponseStream.MoveNext(CancellationToken.None))
    {
        names.Add(call.ResponseStream.Current.Name);
    }

    Check("server streaming", string.Join(", ", names), "user 0, user 1, user 2");
}

using (var call = client.ImportNames())
{
    for (var i = 0; i < 3; i++)
    {
        await call.RequestStream.WriteAsync(new ImportNameRequest { Id = i });
    }

    await call.RequestStream.CompleteAsync();
    Check("client streaming", $"{(await call.ResponseAsync).Imported}", "3");
}

using (var call = client.Chat())
{
    await call.RequestStream.WriteAsync(new ChatMessage { Text = "one" });
    await call.RequestStream.WriteAsync(new ChatMessage { Text = "two" });
    await call.RequestStream.CompleteAsync();
    var texts = new List<string>();
    while (await call.ResponseStream.MoveNext(CancellationToken.None))
    {
        texts.Add(call.ResponseStream.Current.Text);
    }

    Check("duplex", string.Join(", ", texts), "one, two");
}

Console.WriteLine(invoker.Pool.GetStatistics());
return 0;

void Check(string what, string got, string expected)
{
    var statistics = invoker.Pool.GetStatistics();
    Console.WriteLine($"{what}: {got}");
    if (got != expected || statistics.Retries != ++retries)
    {
        throw new InvalidOperationException($"{what} gave '{got}' and not '{expected}', or was not made twice: {statistics}");
    }
}

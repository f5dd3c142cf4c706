using System.Collections.Concurrent;
using Grpc.Core;
using Microsoft.AspNetCore.Builder;
using Microsoft.Extensions.DependencyInjection;
using ProtoBuf.Grpc;
using ProtoBuf.Grpc.Server;

namespace PoolingInvoker.DropInTests.CodeFirst;

/// <summary>Serves <see cref="IGreeter"/>. The header <c>do</c> of a request says what else is to become of it.</summary>
public sealed class GreeterServer : KestrelServer
{
    /// <summary>Ends with an error status before anything is answered.</summary>
    public const string Fail = "fail";

    /// <summary>Ends with an error status after the headers and, where there are several, a message.</summary>
    public const string FailLate = "fail late";

    /// <summary>Ends with a status that says to try again.</summary>
    public const string Unavailable = "unavailable";

    /// <summary>Does so the first two times that a request with this id comes.</summary>
    public const string UnavailableTwice = "unavailable twice";

    public const string HangBeforeHeaders = "hang before headers";
    public const string HangAfterHeaders = "hang after headers";

    private readonly ConcurrentDictionary<string, TaskCompletionSource> _hanging = new();
    private readonly ConcurrentDictionary<string, int> _arrived = new();

    /// <summary>Completes when the request with this id hangs.</summary>
    public Task Hangs(string id) => Hanging(id).Task;

    /// <summary>How often a request with this id has come.</summary>
    public int Arrived(string id) => _arrived.GetValueOrDefault(id);

    protected override void AddServices(IServiceCollection services)
    {
        services.AddCodeFirstGrpc();
        services.AddSingleton<IGreeter>(new Greeter(this));
    }

    protected override void Map(WebApplication application)
    {
        // The server is not told of deadlines: it is always the client that ends a call for its own.
        application.Use(static (context, next) =>
        {
            context.Request.Headers.Remove("grpc-timeout");
            return next(context);
        });
        application.MapGrpcService<IGreeter>();
    }

    private TaskCompletionSource Hanging(string id) =>
        _hanging.GetOrAdd(id, static _ => new TaskCompletionSource(TaskCreationOptions.RunContinuationsAsynchronously));

    private sealed class Greeter(GreeterServer server) : IGreeter
    {
        public async ValueTask<Greeting> GreetAsync(Greeting greeting, CallContext context)
        {
            await BeginAsync(context);
            await GoOnAsync(context);
            return new Greeting($"hello {greeting.Text}");
        }

        public Greeting GreetAtOnce(Greeting greeting, CallContext context) => GreetAsync(greeting, context).AsTask().GetAwaiter().GetResult();

        public async IAsyncEnumerable<Greeting> GreetEachAsync(Greeting greeting, CallContext context)
        {
            await BeginAsync(context);
            foreach (var (index, name) in greeting.Text.Split(' ').Index())
            {
                if (index > 0)
                {
                    await GoOnAsync(context);
                }

                yield return new Greeting($"hello {name}");
            }
        }

        public async ValueTask<Greeting> GreetTogetherAsync(IAsyncEnumerable<Greeting> greetings, CallContext context)
        {
            // A client that captures headers sends nothing before it has them.
            var requests = await TakenIfRefusedAsync(greetings, context);
            await BeginAsync(context);
            var texts = await requests.Select(static greeting => greeting.Text).ToListAsync();
            await GoOnAsync(context);
            return new Greeting($"hello {string.Join(" and ", texts)}");
        }

        public async IAsyncEnumerable<Greeting> ConverseAsync(IAsyncEnumerable<Greeting> greetings, CallContext context)
        {
            var requests = await TakenIfRefusedAsync(greetings, context);
            await BeginAsync(context);
            var isFirst = true;
            await foreach (var greeting in requests)
            {
                if (isFirst || context.RequestHeaders!.GetValue("do") is not (FailLate or HangAfterHeaders))
                {
                    yield return new Greeting($"hello {greeting.Text}");
                }

                isFirst = false;
            }

            await GoOnAsync(context);
        }

        // All that the client sends is taken before it is refused, so that it always sees the refusal and not a failure to send.
        private static async Task<IAsyncEnumerable<Greeting>> TakenIfRefusedAsync(IAsyncEnumerable<Greeting> greetings, CallContext context) =>
            context.RequestHeaders!.GetValue("do") is Fail or Unavailable ? (await greetings.ToListAsync()).ToAsyncEnumerable() : greetings;

        private async Task BeginAsync(CallContext context)
        {
            var call = context.ServerCallContext!;
            var id = call.RequestHeaders.GetValue("id") ?? "";
            var arrived = server._arrived.AddOrUpdate(id, 1, static (_, count) => count + 1);
            call.ResponseTrailers.Add("said", "last");
            switch (call.RequestHeaders.GetValue("do"))
            {
                case Fail:
                    throw new RpcException(new Status(StatusCode.FailedPrecondition, "not now"), new Metadata { { "why", "because" } });
                case Unavailable:
                case UnavailableTwice when arrived <= 2:
                    throw new RpcException(new Status(StatusCode.Unavailable, "try again"));
                case HangBeforeHeaders:
                    await HangAsync(id, context);
                    break;
                default:
                    await call.WriteResponseHeadersAsync(new Metadata { { "said", "first" } });
                    break;
            }
        }

        private async Task GoOnAsync(CallContext context)
        {
            var headers = context.RequestHeaders!;
            switch (headers.GetValue("do"))
            {
                case FailLate:
                    throw new RpcException(new Status(StatusCode.FailedPrecondition, "no more"), new Metadata { { "why", "because" } });
                case HangAfterHeaders:
                    await HangAsync(headers.GetValue("id")!, context);
                    break;
                default:
                    break;
            }
        }

        private Task HangAsync(string id, CallContext context)
        {
            server.Hanging(id).TrySetResult();
            return Task.Delay(Timeout.Infinite, context.CancellationToken);
        }
    }
}

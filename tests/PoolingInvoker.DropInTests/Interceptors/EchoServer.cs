using Grpc.Core;
using Microsoft.AspNetCore.Builder;
using Microsoft.Extensions.DependencyInjection;
using PoolingInvoker.DropInTests.Protos;

namespace PoolingInvoker.DropInTests.Interceptors;

/// <summary>Sends back what comes, and by which way it came: the names that interceptors have left in the header <c>way</c>.</summary>
public sealed class EchoServer : KestrelServer
{
    /// <summary>A request with this text ends the call with an error status.</summary>
    public const string Fail = "fail";

    protected override void AddServices(IServiceCollection services) => services.AddGrpc();

    protected override void Map(WebApplication application) => application.MapGrpcService<EchoService>();

    private sealed class EchoService : Echo.EchoBase
    {
        public override async Task<EchoMessage> Say(EchoMessage request, ServerCallContext context)
        {
            await BeginAsync(context);
            End([request], context);
            return request;
        }

        public override async Task Repeat(EchoMessage request, IServerStreamWriter<EchoMessage> responseStream, ServerCallContext context)
        {
            await BeginAsync(context);
            await responseStream.WriteAsync(request);
            await responseStream.WriteAsync(request);
            End([request], context);
        }

        public override async Task<EchoMessage> Join(IAsyncStreamReader<EchoMessage> requestStream, ServerCallContext context)
        {
            // All requests are taken before anything is answered, so that it is always the same that the client sees first.
            var requests = await requestStream.ReadAllAsync().ToListAsync();
            await BeginAsync(context);
            End(requests, context);
            return new EchoMessage { Text = string.Join(' ', requests.Select(static request => request.Text)) };
        }

        public override async Task Chat(IAsyncStreamReader<EchoMessage> requestStream, IServerStreamWriter<EchoMessage> responseStream, ServerCallContext context)
        {
            await BeginAsync(context);
            var requests = new List<EchoMessage>();
            await foreach (var request in requestStream.ReadAllAsync())
            {
                requests.Add(request);
                await responseStream.WriteAsync(request);
            }

            End(requests, context);
        }

        private static Task BeginAsync(ServerCallContext context) =>
            context.WriteResponseHeadersAsync(new Metadata { { "way", context.RequestHeaders.GetValue("way") ?? "" } });

        private static void End(List<EchoMessage> requests, ServerCallContext context)
        {
            context.ResponseTrailers.Add("requests", $"{requests.Count}");
            if (requests.Any(static request => request.Text == Fail))
            {
                throw new RpcException(new Status(StatusCode.FailedPrecondition, "not now"));
            }
        }
    }
}

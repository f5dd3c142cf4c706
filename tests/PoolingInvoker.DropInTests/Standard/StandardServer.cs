using Grpc.AspNetCore.HealthChecks;
using Grpc.Health.V1;
using Grpc.HealthCheck;
using Microsoft.AspNetCore.Builder;
using Microsoft.Extensions.DependencyInjection;

namespace PoolingInvoker.DropInTests.Standard;

/// <summary>The health and reflection services of Grpc.AspNetCore.</summary>
public sealed class StandardServer : KestrelServer
{
    /// <summary>What a call of the health service waits for is told here.</summary>
    public void SetStatus(string service, HealthCheckResponse.Types.ServingStatus status) => Get<HealthServiceImpl>().SetStatus(service, status);

    protected override void AddServices(IServiceCollection services)
    {
        services.AddGrpc();
        services.AddGrpcReflection();
        services.AddGrpcHealthChecks();
        services.Configure<GrpcHealthChecksOptions>(static options => options.UseHealthChecksCache = true);
    }

    protected override void Map(WebApplication application)
    {
        application.MapGrpcHealthChecksService();
        application.MapGrpcReflectionService();
    }
}

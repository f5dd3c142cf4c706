using Grpc.Net.ClientFactory;
using Microsoft.Extensions.DependencyInjection;
using Microsoft.Extensions.Http;
using Microsoft.Extensions.Options;

namespace PoolingInvoker;

/// <summary>
/// Puts the pool below a client, as the last of its interceptors of channel scope, which is the innermost: what the app has configured is above
/// it, and the channel that the client factory makes below it is never used.
/// </summary>
internal sealed class PoolBelowClient(string client, IServiceProvider provider) : IPostConfigureOptions<GrpcClientFactoryOptions>
{
    public void PostConfigure(string? name, GrpcClientFactoryOptions options)
    {
        if (name != client)
        {
            return;
        }

        var pools = provider.GetRequiredService<ClientPools>();
        var address = options.Address ?? BaseAddress();
        if (address is not null && ClientAddress.Complaint(address.OriginalString) is { } complaint)
        {
            throw new InvalidOperationException($"The channel pool of the gRPC client '{client}' cannot be made: {complaint}");
        }

        if (address is not null && ClientAddress.IsForDiscovery(address))
        {
            // The channel of the client factory takes no such scheme.
            options.Address = pools.Rewrite(client, address);
        }

        InterceptorRegistration? own = null;
        own = new InterceptorRegistration(InterceptorScope.Channel, _ =>
        {
            if (options.InterceptorRegistrations.Last(static registration => registration.Scope == InterceptorScope.Channel) != own)
            {
                throw new InvalidOperationException(
                    $"An interceptor was added to the gRPC client '{client}' below its channel pool, where no call would come to it: by a "
                    + "PostConfigure<GrpcClientFactoryOptions> after AddChannelPool. Add it with AddInterceptor, or call AddChannelPool after it.");
            }

            return new PoolingInterceptor(pools.InvokerOf(client));
        });
        options.InterceptorRegistrations.Add(own);
    }

    // As the client factory finds it, where there is no other.
    private Uri? BaseAddress()
    {
        using var http = new HttpClient();
        foreach (var configure in provider.GetRequiredService<IOptionsMonitor<HttpClientFactoryOptions>>().Get(client).HttpClientActions)
        {
            configure(http);
        }

        return http.BaseAddress;
    }
}

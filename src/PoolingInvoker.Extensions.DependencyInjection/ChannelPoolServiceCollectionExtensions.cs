using System.Diagnostics.CodeAnalysis;
using Microsoft.Extensions.Configuration;
using PoolingInvoker;

namespace Microsoft.Extensions.DependencyInjection;

/// <summary>Adds gRPC clients over pools of channels.</summary>
public static class ChannelPoolServiceCollectionExtensions
{
    /// <summary>Adds a gRPC client whose calls are made over a pool of channels: <c>AddGrpcClient</c> with an address, and <c>AddChannelPool</c>.</summary>
    /// <typeparam name="TClient">The client, as it is generated.</typeparam>
    /// <param name="services">The services of the app.</param>
    /// <param name="address">The address, with its scheme, as in <c>http://users:5000</c>.</param>
    /// <param name="configure">Changes the options of the pool and its retry.</param>
    /// <returns>The builder of the client, for interceptors, call credentials, handlers.</returns>
    /// <exception cref="ArgumentException">The address has no scheme that can be dialled.</exception>
    public static IHttpClientBuilder AddPooledGrpcClient<[DynamicallyAccessedMembers(DynamicallyAccessedMemberTypes.PublicConstructors)] TClient>(
        this IServiceCollection services, string address, Action<PoolingCallInvokerOptions> configure)
        where TClient : class => services.AddPooledGrpcClient<TClient>(address).AddChannelPool(configure);

    /// <summary>Adds a gRPC client over a pool whose options a section of the configuration has.</summary>
    /// <typeparam name="TClient">The client, as it is generated.</typeparam>
    /// <param name="services">The services of the app.</param>
    /// <param name="address">The address, with its scheme, as in <c>http://users:5000</c>.</param>
    /// <param name="section">The section, as in <c>builder.Configuration.GetSection("GrpcPools:users")</c>.</param>
    /// <param name="configure">Changes the options after the section has.</param>
    /// <returns>The builder of the client, for interceptors, call credentials, handlers.</returns>
    public static IHttpClientBuilder AddPooledGrpcClient<[DynamicallyAccessedMembers(DynamicallyAccessedMemberTypes.PublicConstructors)] TClient>(
        this IServiceCollection services, string address, IConfiguration section, Action<PoolingCallInvokerOptions>? configure = null)
        where TClient : class => services.AddPooledGrpcClient<TClient>(address).AddChannelPool(section, configure);

    /// <inheritdoc cref="AddPooledGrpcClient{TClient}(IServiceCollection, string, Action{PoolingCallInvokerOptions})"/>
    public static IHttpClientBuilder AddPooledGrpcClient<[DynamicallyAccessedMembers(DynamicallyAccessedMemberTypes.PublicConstructors)] TClient>(this IServiceCollection services, string address)
        where TClient : class
    {
        ArgumentNullException.ThrowIfNull(services);
        ArgumentNullException.ThrowIfNull(address);
        if (ClientAddress.Complaint(address) is { } complaint)
        {
            throw new ArgumentException($"The gRPC client {typeof(TClient).Name} cannot be added: {complaint}", nameof(address));
        }

        var uri = new Uri(address, UriKind.Absolute);
        return services.AddGrpcClient<TClient>(options => options.Address = uri).AddChannelPool();
    }
}

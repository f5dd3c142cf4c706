using Grpc.Net.ClientFactory;
using Microsoft.Extensions.Configuration;
using Microsoft.Extensions.DependencyInjection.Extensions;
using Microsoft.Extensions.Http;
using Microsoft.Extensions.Options;
using PoolingInvoker;

namespace Microsoft.Extensions.DependencyInjection;

/// <summary>Puts a pool of channels below gRPC clients that an app has.</summary>
public static class ChannelPoolHttpClientBuilderExtensions
{
    /// <summary>
    /// Makes the calls of a gRPC client over a pool of channels. What is configured for the client holds for each channel of the pool: its address,
    /// channel options, call credentials, interceptors, HTTP handlers, logging. The pool is made with the first client, and drained when the
    /// container is disposed, as it is when a host stops. It is a keyed service, too: <c>GetRequiredKeyedService&lt;PoolingCallInvoker&gt;(builder.Name)</c>.
    /// </summary>
    /// <param name="builder">What <c>AddGrpcClient</c> gave.</param>
    /// <param name="configure">Changes the options of the pool and its retry. <c>services.Configure&lt;PoolingCallInvokerOptions&gt;(builder.Name, …)</c> does so as well.</param>
    /// <returns>The builder. The order of this and of its other methods does not matter.</returns>
    /// <exception cref="InvalidOperationException">The builder is not that of a gRPC client.</exception>
    /// <example><code>
    /// services.AddGrpcClient&lt;User.UserClient&gt;(o => o.Address = new Uri("http://users:5000"))
    ///     .AddChannelPool(options => options.Pool.MaxPoolSize = 20);
    /// </code></example>
    public static IHttpClientBuilder AddChannelPool(this IHttpClientBuilder builder, Action<PoolingCallInvokerOptions> configure)
    {
        ArgumentNullException.ThrowIfNull(configure);
        return builder.AddChannelPool((_, options) => configure(options));
    }

    /// <inheritdoc cref="AddChannelPool(IHttpClientBuilder, Action{PoolingCallInvokerOptions})"/>
    public static IHttpClientBuilder AddChannelPool(this IHttpClientBuilder builder) => builder.AddChannelPool(static (_, _) => { });

    /// <inheritdoc cref="AddChannelPool(IHttpClientBuilder, Action{PoolingCallInvokerOptions})"/>
    public static IHttpClientBuilder AddChannelPool(this IHttpClientBuilder builder, Action<IServiceProvider, PoolingCallInvokerOptions> configure)
    {
        ArgumentNullException.ThrowIfNull(builder);
        ArgumentNullException.ThrowIfNull(configure);
        RequireGrpcClient(builder);
        var (services, name) = (builder.Services, builder.Name);
        services.AddTransient<IConfigureOptions<PoolingCallInvokerOptions>>(
            provider => new ConfigureNamedOptions<PoolingCallInvokerOptions>(name, options => configure(provider, options)));
        if (services.Any(service => service.IsKeyedService && service.ServiceType == typeof(PoolingCallInvoker) && name.Equals(service.ServiceKey)))
        {
            return builder; // it has one, with more options now
        }

        services.TryAddSingleton<ClientPools>();
        services.TryAddSingleton(static provider => new PooledClients(provider.GetRequiredService<ClientPools>(), provider.GetServices<PooledClient>()));
        services.TryAddSingleton<HandlerRecipes>();
        services.AddSingleton(new PooledClient(name));
        services.AddKeyedSingleton(name, static (provider, key) => provider.GetRequiredService<ClientPools>().InvokerOf((string)key!));
        services.AddSingleton<IPostConfigureOptions<GrpcClientFactoryOptions>>(provider => new PoolBelowClient(name, provider));

        // Statement order is important: what the app configures comes after it, and has the last word.
        services.Insert(0, ServiceDescriptor.Transient<IConfigureOptions<PoolingCallInvokerOptions>>(provider => new ClientDefaults(name, provider)));
        PutFirst(services);
        services.AddSingleton<IValidateOptions<PoolingCallInvokerOptions>>(provider => new PoolOptionsValidation(name, provider));
        services.AddOptions<PoolingCallInvokerOptions>(name).ValidateOnStart();
        return builder;
    }

    /// <summary>
    /// Makes the calls of a gRPC client over a pool of channels whose options a section of the configuration has. They are checked when the host
    /// starts: a key that is not known, or a value that a key cannot have, is an <see cref="OptionsValidationException"/> that names it. When
    /// the configuration changes the pool takes it up while it is at work, and says so in its log and in an event (<see cref="ChannelPool.UpdateOptions"/>);
    /// one with a mistake is not taken up, which the log says.
    /// </summary>
    /// <param name="builder">What <c>AddGrpcClient</c> gave.</param>
    /// <param name="section">The section, as in <c>builder.Configuration.GetSection("GrpcPools:users")</c>. Its keys are those of <see cref="PoolingCallInvokerSettings"/>.</param>
    /// <param name="configure">Changes the options after the section has, and is called again when it has changed.</param>
    /// <returns>The builder. Where there are several of these calls, each changes what those before it have left.</returns>
    /// <exception cref="InvalidOperationException">The builder is not that of a gRPC client.</exception>
    /// <example><code>
    /// services.AddGrpcClient&lt;User.UserClient&gt;(o => o.Address = new Uri("http://users:5000"))
    ///     .AddChannelPool(builder.Configuration.GetSection("GrpcPools:users"));
    /// </code></example>
    public static IHttpClientBuilder AddChannelPool(this IHttpClientBuilder builder, IConfiguration section, Action<PoolingCallInvokerOptions>? configure = null)
    {
        ArgumentNullException.ThrowIfNull(builder);
        ArgumentNullException.ThrowIfNull(section);
        var source = new PoolSection(builder.Name, section);
        builder.AddChannelPool((_, options) => source.Configure(options));
        builder.Services.AddSingleton(source);
        builder.Services.AddSingleton<IOptionsChangeTokenSource<PoolingCallInvokerOptions>>(source);
        return configure is null ? builder : builder.AddChannelPool(configure);
    }

    // The first filter is the outermost, and what it is given is all that makes a handler of the client.
    private static void PutFirst(IServiceCollection services)
    {
        for (var i = services.Count - 1; i >= 0; i--)
        {
            if (!services[i].IsKeyedService && services[i].ImplementationType == typeof(HandlerRecipes.Filter))
            {
                services.RemoveAt(i);
            }
        }

        services.Insert(0, ServiceDescriptor.Singleton<IHttpMessageHandlerBuilderFilter, HandlerRecipes.Filter>());
    }

    // As the methods of the client factory ask for it.
    private static void RequireGrpcClient(IHttpClientBuilder builder)
    {
        if (!builder.Services.Any(service => !service.IsKeyedService && service.ImplementationInstance is ConfigureNamedOptions<GrpcClientFactoryOptions> options && options.Name == builder.Name))
        {
            throw new InvalidOperationException(
                "AddChannelPool is for a gRPC client: call it on what services.AddGrpcClient<TClient>(…) gives. "
                + (builder.Name is null ? "It cannot be a default of all HTTP clients." : $"'{builder.Name}' is another HTTP client."));
        }
    }
}

using Microsoft.Extensions.DependencyInjection;

namespace PoolingInvoker.DependencyInjectionTests;

/// <summary>What the tests of clients have in common.</summary>
internal static class ClientAppExtensions
{
    /// <summary>The line in question.</summary>
    public static IHttpClientBuilder With(this IHttpClientBuilder builder, bool pool, Action<PoolingCallInvokerOptions>? configure = null) =>
        !pool ? builder : configure is null ? builder.AddChannelPool() : builder.AddChannelPool(configure);

    public static async Task<int> CountAsync<T>(this IAsyncEnumerable<T> items)
    {
        var count = 0;
        await foreach (var _ in items)
        {
            count++;
        }

        return count;
    }
}

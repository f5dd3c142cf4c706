using Grpc.Net.Client;
using Microsoft.Extensions.ObjectPool;

namespace PoolingInvoker;

/// <summary>Makes the channels of a pool, and judges them.</summary>
internal interface IChannelFactory : IDisposable
{
    /// <summary>Where the channels connect to, as far as that is known.</summary>
    string Target { get; }

    /// <summary>Whether channels throw <see cref="OperationCanceledException"/> where others throw an RpcException.</summary>
    bool ThrowsOperationCanceled => false;

    /// <summary>Why a channel without a transport does not say how many calls its server takes.</summary>
    string WhyLimitIsUnknown => "a policy makes the channels";

    /// <summary>Makes a channel, to one of the endpoints of a pool that has several. The transport is null where it is the user's own.</summary>
    (GrpcChannel Channel, ChannelTransport? Transport) Create(ChannelEndpoint? endpoint);

    /// <summary>What callers are told of a failure of <see cref="Create"/>.</summary>
    Exception Explain(Exception error) => error;

    /// <summary>Whether a channel is still good after a call.</summary>
    bool IsGood(GrpcChannel channel) => true;
}

/// <summary>Makes channels by a policy of the user's.</summary>
internal sealed class PolicyChannelFactory(IPooledObjectPolicy<GrpcChannel> policy) : IChannelFactory
{
    public string Target => policy.GetType().Name;

    public static PolicyChannelFactory Of(IPooledObjectPolicy<GrpcChannel> policy, ChannelPoolOptions? options)
    {
        ArgumentNullException.ThrowIfNull(policy);
        return options is null or { ConfigureChannel: null, ConfigureHandler: null } ? new PolicyChannelFactory(policy) : throw new ArgumentException(
            "ConfigureChannel and ConfigureHandler change channels that the pool makes itself. With a policy of your own, do it in its Create.",
            nameof(options));
    }

    public (GrpcChannel Channel, ChannelTransport? Transport) Create(ChannelEndpoint? endpoint) =>
        (policy.Create() ?? throw new InvalidOperationException("it returned null"), null);

    public Exception Explain(Exception error) =>
        new InvalidOperationException($"{Target}.Create did not make a channel: {error.Message}", error);

    public bool IsGood(GrpcChannel channel) => policy.Return(channel);

    public void Dispose()
    {
        // The policy is the user's.
    }
}

using Grpc.Net.Client;
using Microsoft.Extensions.ObjectPool;

namespace PoolingInvoker;

/// <summary>Makes the channels of a pool, and judges them.</summary>
internal interface IChannelFactory
{
    string Target { get; } // where the channels connect to, as far as that is known
    bool ThrowsOperationCanceled => false; // where other channels throw an RpcException
    string WhyLimitIsUnknown => "a policy makes the channels"; // how many calls the server takes, where there is no transport
    (GrpcChannel Channel, ChannelTransport? Transport) Create(ChannelEndpoint? endpoint); // no transport: it is the user's own
    Exception Explain(Exception error) => error; // what callers are told of a failure of Create
    bool IsGood(GrpcChannel channel) => true; // after a call
    void DropPrepared() { } // what is made ahead: with the pool, and where all is to be made anew
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
}

using System.Collections.Concurrent;
using Grpc.Core;
using Grpc.Net.Client;

namespace PoolingInvoker.Tests;

/// <summary>
/// Makes channels that are never asked for anything, remembers where they go, and plays the network: to connect is to prime
/// (<see cref="ConnectAsync"/>), which fails where an endpoint is dead.
/// </summary>
internal sealed class EndpointPolicy(TimeProvider time) : IChannelFactory
{
    // The pool primes a channel on the thread that has made it, as long as nothing is waited for between.
    [ThreadStatic]
    private static ChannelEndpoint? _made;

    private readonly ConcurrentDictionary<GrpcChannel, ChannelEndpoint> _endpoints = new();
    private readonly ConcurrentQueue<(ChannelEndpoint Endpoint, DateTimeOffset At)> _dials = new();

    /// <summary>The endpoints that cannot be reached.</summary>
    public HashSet<ChannelEndpoint> Dead { get; } = [];

    /// <summary>What connecting waits for, on the way to an endpoint that is not dead.</summary>
    public Task Connected { get; set; } = Task.CompletedTask;

    /// <summary>What an attempt waits for, before it fails, on the way to an endpoint that is dead.</summary>
    public Task Refused { get; set; } = Task.CompletedTask;

    /// <summary>Each attempt to connect, and when it was made.</summary>
    public IReadOnlyList<(ChannelEndpoint Endpoint, DateTimeOffset At)> Dials => [.. _dials];

    public ChannelEndpoint EndpointOf(GrpcChannel channel) => _endpoints[channel];

    public string Target => nameof(EndpointPolicy);

    public (GrpcChannel Channel, ChannelTransport? Transport) Create(ChannelEndpoint? endpoint)
    {
        var channel = StubPolicy.NewChannel();
        _endpoints[channel] = _made = endpoint!;
        return (channel, null);
    }

    public Task ConnectAsync(CallInvoker invoker, CancellationToken cancellationToken)
    {
        var endpoint = _made!;
        _dials.Enqueue((endpoint, time.GetUtcNow()));
        return Dead.Contains(endpoint) ? FailAsync() : Connected.WaitAsync(cancellationToken);

        async Task FailAsync()
        {
            await Refused.WaitAsync(cancellationToken);
            throw new IOException($"{endpoint} cannot be reached.");
        }
    }
}

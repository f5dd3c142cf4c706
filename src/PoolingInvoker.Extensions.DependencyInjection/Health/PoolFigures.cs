using Grpc.Core;

namespace PoolingInvoker;

/// <summary>The figures of a pool as data of a health check, under the names that they have in the statistics.</summary>
internal static class PoolFigures
{
    public static IReadOnlyDictionary<string, object> Of(ChannelPoolStatistics statistics, IReadOnlyList<PooledChannelSnapshot> channels) => new Dictionary<string, object>
    {
        [nameof(statistics.Channels)] = statistics.Channels,
        ["ConnectedChannels"] = channels.Count(static channel => channel.ConnectivityState == ConnectivityState.Ready && channel.State != PooledChannelState.Draining),
        [nameof(statistics.IdleChannels)] = statistics.IdleChannels,
        [nameof(statistics.DrainingChannels)] = statistics.DrainingChannels,
        [nameof(statistics.MinPoolSize)] = statistics.MinPoolSize,
        [nameof(statistics.MaxPoolSize)] = statistics.MaxPoolSize,
        [nameof(statistics.CallsInFlight)] = statistics.CallsInFlight,
        [nameof(statistics.CallsWaiting)] = statistics.CallsWaiting,
        [nameof(statistics.LeasesTaken)] = statistics.LeasesTaken,
        [nameof(statistics.ChannelsCreated)] = statistics.ChannelsCreated,
        [nameof(statistics.ChannelsReplaced)] = statistics.ChannelsReplaced,
        [nameof(statistics.ChannelsGivenUp)] = statistics.ChannelsGivenUp,
        [nameof(statistics.Retries)] = statistics.Retries,
        [nameof(statistics.Hedges)] = statistics.Hedges,
        [nameof(statistics.AffinityCalls)] = statistics.AffinityCalls,
        [nameof(statistics.AffinityMoves)] = statistics.AffinityMoves,
        [nameof(statistics.LeaksReclaimed)] = statistics.LeaksReclaimed,
    };
}

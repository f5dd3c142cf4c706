using Grpc.Net.Client.Configuration;

namespace PoolingInvoker;

/// <summary>What all calls over a pool share, whatever invoker they are of. It is new where the options of the pool that say how much have changed.</summary>
internal sealed class CallShares
{
    private readonly object _lock = new();
    private readonly PoolState _state;
    private volatile Share _share;

    public CallShares(PoolState state)
    {
        (_state, _share) = (state, NewShare(state.Options, before: null));
        state.Metrics.BudgetLeft = () => Budget?.Left;
        state.Metrics.ReplayBytes = () => ReplaySpace.Taken;
    }

    public RetryBudget? Budget => Now.Budget;
    public ReplaySpace ReplaySpace => Now.Space;

    private Share Now => _share is var share && share.IsOf(_state.Options) ? share : Renew();

    private Share Renew()
    {
        lock (_lock)
        {
            var options = _state.Options;
            return _share.IsOf(options) ? _share : _share = NewShare(options, _share);
        }
    }

    private static Share NewShare(ChannelPoolOptions options, Share? before)
    {
        var budget = before?.Policy == options.RetryThrottling && before is not null ? before.Budget
            : options.RetryThrottling is { MaxTokens: { } most, TokenRatio: { } ratio } ? new RetryBudget(most, ratio)
            : null;
        var space = before?.MostBytes == options.MaxRetryBufferSize ? before.Space : new ReplaySpace(options.MaxRetryBufferSize);
        return new Share(options.RetryThrottling, budget, options.MaxRetryBufferSize, space);
    }

    private sealed record Share(RetryThrottlingPolicy? Policy, RetryBudget? Budget, long MostBytes, ReplaySpace Space)
    {
        public bool IsOf(ChannelPoolOptions options) => Policy == options.RetryThrottling && MostBytes == options.MaxRetryBufferSize;
    }
}

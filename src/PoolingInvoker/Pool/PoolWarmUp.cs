namespace PoolingInvoker;

/// <summary>Brings a pool up to its minimum, and connects the channels that there are.</summary>
internal sealed class PoolWarmUp(PoolState state, ChannelConnector connector, string target)
{
    public async Task RunAsync(CancellationToken cancellationToken)
    {
        await (state.Balancer?.Watcher?.FirstAsync(cancellationToken) ?? Task.CompletedTask).ConfigureAwait(false);
        TaskCompletionSource? underWay;
        bool triesOthers;
        int creates;
        do
        {
            List<PooledChannel> unconnected;
            int connected;
            using (state.Enter())
            {
                // What others are making is waited for, and seen to if it fails.
                state.ThrowIfDisposed();
                underWay = state.Creating > 0 && state.Active.Count < state.Minimum
                    ? connector.NextCreated ??= new TaskCompletionSource(TaskCreationOptions.RunContinuationsAsynchronously)
                    : null;
                creates = Math.Max(0, state.Minimum - state.Count);
                state.Creating += creates;
                unconnected = [.. state.Active.Where(static channel => channel.Transport is not { HasConnections: true })];
                connected = state.Active.Count - unconnected.Count;
            }

            var outcomes = await Task.WhenAll(
            [
                .. Enumerable.Range(0, creates).Select(_ => state.Work.DoAsync(() => connector.DialAsync(old: null, PoolReason.WarmUp))),
                .. unconnected.Select(channel => state.Work.DoAsync(
                    async () => (await connector.ConnectAsync(channel).FailureAsync().ConfigureAwait(false), true))),
            ]).WaitAsync(cancellationToken).ConfigureAwait(false);
            triesOthers = ThrowIfFailed(outcomes, connected);
            if (underWay is not null)
            {
                await underWay.Task.WaitAsync(cancellationToken).ConfigureAwait(false);
            }
        }
        while (underWay is not null || triesOthers || creates > 0); // one that takes long to connect has joined before
    }

    // Otherwise it says whether there are endpoints left that may be better.
    private bool ThrowIfFailed((Exception? Error, bool IsMade)[] outcomes, int connected)
    {
        var failed = outcomes.Where(static outcome => outcome.Error is not null).ToList();
        if (failed.Count == 0 || connected + outcomes.Length - failed.Count >= Math.Max(1, state.Options.MinPoolSize))
        {
            return false;
        }

        using (state.Enter())
        {
            // Others may have been connected meanwhile, to endpoints of another priority.
            if (state.Active.Count(static channel => channel.Transport is { HasConnections: true }) >= Math.Max(1, state.Options.MinPoolSize))
            {
                return false;
            }

            if (failed.TrueForAll(static outcome => outcome.IsMade) && state.Balancer is { Endpoints.MayDial: true } balancer
                && (state.Count < state.Minimum || (state.Creating > 0 && balancer.MayDialElsewhere)))
            {
                return true;
            }
        }

        throw failed.Find(static outcome => !outcome.IsMade).Error ?? new HttpRequestException(
            HttpRequestError.ConnectionError,
            $"{failed.Count} of {outcomes.Length} channels could not connect to {target}: {failed[0].Error!.Message}",
            failed.Count == 1 ? failed[0].Error : new AggregateException(failed.Select(static outcome => outcome.Error!)));
    }
}
